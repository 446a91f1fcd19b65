// [LTS, UTE] per key of the pack in, [LTS, UTE] per key of a shard out: of some of the pack's rows,
// which a rank stores one behind the other, and of the keys that it stores, in whatever order.
//
// Rows are stored ascending, so a bound x of the pack is the bound f(x) of the shard: how many of its
// rows are below row x. Bounds of neighbouring keys are close, mostly in one segment: behind the start
// of a chunk of rows up to the start of the next, where f rises along the chunk and then stays.
//
//     rows [0, 2) [4, 5)          x        0  1  2  3  4  5
//                                 f(x)     0  1  2  2  2  3      segments: 1 .. 4 and from 5 on
//
//     column   0  1  2  3  4  5  6         keys [5, 7) [0, 1) [9, 10)
//     LTS      3  3  3  5  5  5  5         place 0  1  2  3
//     UTE      0  1  2  3  3  3  4         key   5  6  0  -       9 is no key: padding
//       LTS    2  2  2  3  3  3  3         LTS   3  3  2  3
//       UTE    0  1  2  2  2  2  2         UTE   2  2  0  3       seen by none of the 3 rows
//
//   shard_columns_of_two   of one or two chunks of rows, all keys in their order. A thread a pair of
//                          columns, 16 bytes, a step
//   shard_columns          of any chunks. A block makes tables of them in shared memory (chunks.cuh);
//                          a thread keeps the segments that its bounds were in, and searches where
//                          the next ones are not
//   chunk_sums             before it, where chunks are too many for a block to count: what lies before
//                          each. A block some in a row, behind adding up all before these
//   needed_keys            how many keys of each block of keys are shown to a row. A warp a block of
//                          keys, or all warps where blocks are large
//
// Moves 8 bytes a column in and 8 out. Slices of columns (batch rows, heads) are mapped alike, by
// blocks_a_slice blocks each. Preconditions: columns and shard are 8-byte aligned and apart.

#include "chunks.cuh"
#include "columns.cuh"
#include "overlap.cuh"

#define NO_KEY 0xffffffffu

// The columns that a block writes: steps * 2 * BLOCK_THREADS of a slice.
struct ShardTile {
    const int2* columns;  // (column_num,) of (LTS, UTE): the slice's
    int2* shard;          // (key_num,)
    unsigned column_num, key_num;
    unsigned lead;        // of the shard
    unsigned start;       // first place of the block + lead
    bool is_aligned;      // pairs of the columns lie as those of the shard do

    __device__ ShardTile(
        const int2* of_slices, unsigned column_num, int2* shards, unsigned key_num,
        unsigned blocks_a_slice, unsigned steps)
        : columns(of_slices + (unsigned long long)(blockIdx.x / blocks_a_slice) * column_num),
          shard(shards + (unsigned long long)(blockIdx.x / blocks_a_slice) * key_num),
          column_num(column_num), key_num(key_num), lead(column_lead(shard)),
          start(blockIdx.x % blocks_a_slice * 2 * BLOCK_THREADS * steps),
          is_aligned(column_lead(columns) == lead)
    {
    }

    // The first place of the thread's pair; -1 in front of a half pair.
    __device__ unsigned place(unsigned step) const
    {
        return start + 2 * (step * BLOCK_THREADS + threadIdx.x) - lead;
    }

    // Loads the columns of the pair at a place, of a shard that has all keys in their order.
    __device__ void load(unsigned place, int2 (&pair)[2]) const
    {
        if (place < key_num && place + 1 < key_num && is_aligned) {
            int4 both = *reinterpret_cast<const int4*>(columns + place);
            pair[0] = make_int2(both.x, both.y);
            pair[1] = make_int2(both.z, both.w);
            return;
        }
        for (unsigned i = 0; i < 2; ++i)
            if (place + i < key_num) pair[i] = columns[place + i];
    }
};

// Behind a chunk's start up to the next one's: f(x) = below + x - start there, at most + length.
struct Segment {
    int start, next;
    unsigned below, length;

    __device__ bool has(int x) const { return start < x && x <= next; }
    __device__ int rows_below(int x) const
    {
        unsigned inside = x > start ? (unsigned)x - (unsigned)start : 0;
        return (int)(below + min(inside, length));
    }
};

// Two chunks of rows; the second is empty if there is one, both if there is none.
struct TwoChunks {
    Segment first, second;

    __device__ TwoChunks(const Chunks& chunks)
    {
        Chunk chunk[2] = {};
        for (unsigned i = 0; i < 2; ++i)
            if (i < chunks.num) chunk[i] = chunks[i];
        first = {chunk[0].start, 0, 0, chunk[0].length};
        second = {chunk[1].start, 0, 0, chunk[1].length};
    }
    __device__ int rows_below(int x) const { return first.rows_below(x) + second.rows_below(x); }
    __device__ int2 bounds(int2 column) const
    {
        return make_int2(rows_below(column.x), rows_below(column.y));
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void shard_columns_of_two(
    const int2* columns,     // (slices, column_num) of (LTS, UTE)
    unsigned column_num,     // in [1, INT32_MAX]
    const void* row_chunks,  // (row_chunk_num, 2) of int32, or of int64
    unsigned row_stride,     // 1 for int32, 2 for int64
    unsigned row_chunk_num,  // in [0, 2]
    int2* shard,             // (slices, column_num)
    unsigned blocks_a_slice,
    unsigned steps)          // pairs a thread
{
    ShardTile tile(columns, column_num, shard, column_num, blocks_a_slice, steps);
    int2 pair[2] = {}, next[2] = {};
    tile.load(tile.place(0), pair);
    TwoChunks rows(Chunks{row_chunks, row_stride, row_chunk_num});
#pragma unroll 1
    for (unsigned step = 0; step < steps; ++step) {
        if (step + 1 < steps) tile.load(tile.place(step + 1), next);
        store_pair(
            tile.shard, tile.place(step), column_num, rows.bounds(pair[0]), rows.bounds(pair[1]));
        for (unsigned i = 0; i < 2; ++i) pair[i] = next[i];
    }
}

// What maps bounds by a table of the chunks of rows.
struct RowMap {
    const ChunkTable& rows;
    Segment lts = {0, 0, 0, 0}, ute = {0, 0, 0, 0};  // that have no x at first

    // Returns the segment of a bound x: the entries up to this one start at x - 1 = start_below or
    // before, the others behind it. A chunk that starts at x itself has no row below x.
    __device__ Segment segment(unsigned entry, int start_below) const
    {
        const int2* entries = rows.entries;
        if (entry == 0) return {-INT32_MAX_VALUE - 1, entries[0].x, 0, 0};
        int2 own = entries[entry - 1], after = entries[entry];
        if (rows.group == 1) return {own.x, after.x, (unsigned)own.y, (unsigned)after.y - (unsigned)own.y};
        unsigned first = rows.first_of(entry - 1), end = rows.end_of(entry - 1);
        if (rows.stored) {
            unsigned lo[1] = {first + 1}, hi[1] = {end};
            int key[1] = {start_below};
            upper_bounds(Starts{rows.stored}, lo, hi, key);
            own = rows.stored[lo[0] - 1];
            after = rows.stored[lo[0]];
            return {own.x, after.x, (unsigned)own.y, (unsigned)after.y - (unsigned)own.y};
        }
        Chunk chunk = rows.chunks[first];
        Segment found = {chunk.start, after.x, (unsigned)own.y, chunk.length};
        for (unsigned i = first + 1; i < end; ++i) {
            chunk = rows.chunks[i];
            if (chunk.start > start_below) {
                found.next = chunk.start;
                break;
            }
            found = {chunk.start, after.x, found.below + found.length, chunk.length};
        }
        return found;
    }

    __device__ int2 bounds(int2 column)
    {
        if (!lts.has(column.x) || !ute.has(column.y)) {
            unsigned lo[2] = {0, 0}, hi[2] = {rows.num, rows.num};
            int key[2] = {max(column.x, 0) - 1, max(column.y, 0) - 1};
            upper_bounds(Starts{rows.entries}, lo, hi, key);
            lts = segment(lo[0], key[0]);
            ute = segment(lo[1], key[1]);
        }
        return make_int2(lts.rows_below(column.x), ute.rows_below(column.y));
    }
};

// What says which keys are stored at the places of a warp.
struct KeyMap {
    const ChunkTable& keys;
    unsigned key_num;  // stored at all: places behind are padding

    // Returns the key at a place that lies in this entry.
    __device__ unsigned key_in(unsigned entry, unsigned place) const
    {
        int2 own = keys.entries[entry];
        if (keys.group == 1) return (unsigned)own.x + (place - (unsigned)own.y);
        unsigned first = keys.first_of(entry), end = keys.end_of(entry);
        if (keys.stored) {
            unsigned lo[1] = {first + 1}, hi[1] = {end}, key[1] = {place};
            upper_bounds(Befores{keys.stored}, lo, hi, key);
            own = keys.stored[lo[0] - 1];
            return (unsigned)own.x + (place - (unsigned)own.y);
        }
        unsigned rest = place - (unsigned)own.y;
        for (unsigned i = first; i < end; ++i) {
            Chunk chunk = keys.chunks[i];
            if (rest < chunk.length) return (unsigned)chunk.start + rest;
            rest -= chunk.length;
        }
        return NO_KEY;
    }

    // Finds the keys at a pair of places, the warp's from its first one on; NO_KEY where none is.
    __device__ void warp_find(unsigned place, unsigned lead, unsigned (&key)[2]) const
    {
        // Entries of all of the warp's places: of the first, 0 in front of a half pair, to the last.
        unsigned warp_first = warp_uniform(max(place + lead, lead) - lead);
        unsigned warp_last = __shfl_sync(FULL_MASK, place, WARP_THREADS - 1) + 1;
        Befores befores = {keys.entries};
        unsigned from = warp_upper_bound(befores, 0, keys.num, warp_first);
        unsigned to = warp_upper_bound(befores, from, keys.num, warp_last);
        unsigned lo[2] = {from, from}, hi[2] = {to, to}, at[2] = {place, place + 1};
        upper_bounds(befores, lo, hi, at);
        for (unsigned i = 0; i < 2; ++i) {
            key[i] = NO_KEY;
            if (at[i] < key_num && lo[i] > 0) key[i] = key_in(lo[i] - 1, at[i]);
        }
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void shard_columns(
    const int2* columns,     // (slices, column_num) of (LTS, UTE)
    unsigned column_num,     // in [0, INT32_MAX]
    const void* row_chunks,  // (row_chunk_num, 2) of int32, or of int64
    unsigned row_stride,     // 1 for int32, 2 for int64
    unsigned row_chunk_num,
    const int2* row_sums,    // (row_chunk_num + 1,) of chunk_sums, or null
    const void* key_chunks,  // (key_chunk_num, 2)
    unsigned key_stride,     // 1 or 2; 0: no chunks, all keys in their order
    unsigned key_chunk_num,
    const int2* key_sums,    // (key_chunk_num + 1,) of chunk_sums, or null
    int2* shard,             // (slices, key_num)
    unsigned key_num,        // in [1, INT32_MAX]; column_num if key_stride is 0
    unsigned blocks_a_slice,
    unsigned steps)          // pairs a thread
{
    __shared__ int2 row_entries[ENTRIES + 1], key_entries[ENTRIES + 1];
    __shared__ unsigned warp_sums[WARPS];
    bool has_keys = key_stride != 0;
    ShardTile tile(columns, column_num, shard, key_num, blocks_a_slice, steps);
    ChunkTable rows(row_entries, {row_chunks, row_stride, row_chunk_num}, row_sums);
    ChunkTable keys(key_entries, {key_chunks, key_stride, key_chunk_num}, key_sums);
    int2 pair[2] = {}, next[2] = {};
    if (!has_keys) tile.load(tile.place(0), pair);  // on the way while the table is made
    if (row_sums || key_sums) wait_for_launch_before();
    unsigned half = has_keys ? WARPS / 2 : WARPS;  // of the warps fill the one, the others the other
    bool fills_keys = warp_index() >= half;
    Chunks chunks = {fills_keys ? key_chunks : row_chunks, fills_keys ? key_stride : row_stride,
                     fills_keys ? key_chunk_num : row_chunk_num};
    ChunkTable filled(fills_keys ? key_entries : row_entries, chunks, fills_keys ? key_sums : row_sums);
    block_fill(filled, fills_keys ? Fillers{half, WARPS} : Fillers{0, half}, warp_sums);

    int row_num = (int)rows.total();
    KeyMap key_map = {keys, has_keys ? min(keys.total(), key_num) : 0};
    // Loads the columns at a place; returns which of the two are no key's.
    auto load = [&](unsigned place, int2 (&loaded)[2]) {
        if (!has_keys) {
            tile.load(place, loaded);
            return 0u;
        }
        unsigned key[2], missing = 0;
        key_map.warp_find(place, tile.lead, key);
        for (unsigned i = 0; i < 2; ++i) {
            if (key[i] < column_num) loaded[i] = tile.columns[key[i]];
            else missing |= 1u << i;
        }
        return missing;
    };
    unsigned missing = 0;
    if (has_keys) missing = load(tile.place(0), pair);
    RowMap row_map = {rows};
#pragma unroll 1
    for (unsigned step = 0; step < steps; ++step) {
        unsigned missing_next = 0;
        if (step + 1 < steps) missing_next = load(tile.place(step + 1), next);
        int2 local[2];
        for (unsigned i = 0; i < 2; ++i) {
            local[i] = make_int2(row_num, row_num);
            if (!(missing >> i & 1)) local[i] = row_map.bounds(pair[i]);
            pair[i] = next[i];
        }
        store_pair(tile.shard, tile.place(step), key_num, local[0], local[1]);
        missing = missing_next;
    }
}

// Writes what lies before each of the chunks that the block has, ENTRIES in a row.
__device__ void block_write_sums(
    const Chunks& chunks, int2* sums, unsigned block, unsigned (&warp_sums)[WARPS + 1])
{
    unsigned first = block * ENTRIES, lane = threadIdx.x % WARP_THREADS, warp = warp_index();
    unsigned before_block = 0;
    for (unsigned at = threadIdx.x; at < first; at += BLOCK_THREADS) before_block += chunks[at].length;
    if (threadIdx.x == 0) warp_sums[WARPS] = 0;
    __syncthreads();
    before_block = warp_running_sum_of(before_block);
    if (lane == WARP_THREADS - 1) atomicAdd(&warp_sums[WARPS], before_block);

    constexpr unsigned SHARE = ENTRIES / BLOCK_THREADS;
    static_assert(SHARE == LOADS_AHEAD, "a thread's chunks are loaded at once");
    unsigned own = first + threadIdx.x * SHARE, sum = 0;
    Chunk chunk[SHARE];
    chunks.load(own, chunks.num, chunk);
    for (unsigned i = 0; i < SHARE; ++i) sum += chunk[i].length;
    unsigned before = warp_running_sum_of(sum);
    if (lane == WARP_THREADS - 1) warp_sums[warp] = before;
    before -= sum;
    __syncthreads();
    before += warp_sums[WARPS];
    for (unsigned w = 0; w < warp; ++w) before += warp_sums[w];
    for (unsigned i = 0; i < SHARE; ++i) {
        if (own + i < chunks.num) sums[own + i] = make_int2(chunk[i].start, (int)before);
        before += chunk[i].length;
        if (own + i + 1 == chunks.num) sums[chunks.num] = make_int2(INT32_MAX_VALUE, (int)before);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void chunk_sums(
    const void* row_chunks,  // (row_chunk_num, 2) of int32, or of int64
    unsigned row_stride,     // 1 for int32, 2 for int64
    unsigned row_chunk_num,
    int2* row_sums,          // (row_chunk_num + 1,) of (start, tokens before)
    unsigned row_blocks,     // blocks of the rows, ENTRIES chunks each; the others are of the keys
    const void* key_chunks,  // (key_chunk_num, 2)
    unsigned key_stride,
    unsigned key_chunk_num,
    int2* key_sums)          // (key_chunk_num + 1,)
{
    __shared__ unsigned warp_sums[WARPS + 1];
    let_next_launch_begin();
    if (blockIdx.x < row_blocks) {
        Chunks rows = {row_chunks, row_stride, row_chunk_num};
        block_write_sums(rows, row_sums, blockIdx.x, warp_sums);
    } else {
        Chunks keys = {key_chunks, key_stride, key_chunk_num};
        block_write_sums(keys, key_sums, blockIdx.x - row_blocks, warp_sums);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void needed_keys(
    const int2* columns,      // (slices, column_num) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned block_k,         // keys of a block, in [1, INT32_MAX]
    unsigned blocks_a_slice,  // ceil(column_num / block_k)
    unsigned warps_a_block,   // of keys: 1, or all of a block of threads
    unsigned needed_num,      // blocks of keys of all slices
    int* needed)              // (slices, blocks_a_slice)
{
    __shared__ int of_block;
    bool is_alone = warps_a_block == 1;
    unsigned warp = warp_index(), block = is_alone ? blockIdx.x * WARPS + warp : blockIdx.x;
    if (block >= needed_num) return;
    const int2* own = columns + (unsigned long long)(block / blocks_a_slice) * column_num;
    unsigned first = block % blocks_a_slice * block_k, length = min(block_k, column_num - first);
    unsigned thread = is_alone ? threadIdx.x % WARP_THREADS : threadIdx.x;
    unsigned threads = warps_a_block * WARP_THREADS, count = 0;
#pragma unroll 4
    for (unsigned at = thread; at < length; at += threads) {
        int2 bounds = own[first + at];
        count += bounds.y < bounds.x;
    }
    count = warp_running_sum_of(count);
    bool is_last = threadIdx.x % WARP_THREADS == WARP_THREADS - 1;
    if (is_alone) {
        if (is_last) needed[block] = (int)count;
        return;
    }
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    if (is_last) atomicAdd(&of_block, (int)count);
    __syncthreads();
    if (threadIdx.x == 0) needed[block] = of_block;
}

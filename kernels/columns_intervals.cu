// Intervals of keys per row in, [LTS, UTE] per key column out: the rows are scanned to staircases
// (staircase.cuh), and the columns are read off as the staircases' inverse.
//
//   row_staircases          a block scans one group of row tiles; reads 8 * Q, writes 8 * Q bytes
//   columns_of_staircases   a block writes some tiles of columns; reads 8 * Q, writes 8 * N bytes
//   columns_of_few_rows     both at once where the staircases fit in shared memory: every block
//                           scans all rows for itself; writes 8 * N bytes
//   excess_of_rows          behind row_staircases too: how many (row, key) pairs the columns show
//                           beyond the intervals; a block counts one group; reads 16 * Q bytes
//
// No block waits for another. Values are clipped to their sequence's keys before they are used, and
// no address depends on one, so that any bits whatever in the arrays give some columns.

#include "columns.cuh"
#include "staircase.cuh"

#ifndef NEAR_TILES
#error "NEAR_TILES: row tiles that a block reads whole for a tile of columns rather than searches"
#endif
#ifndef FEW_TILES_SHIFT
#error "FEW_TILES_SHIFT: 2**this row tiles have staircases that fit in a block's shared memory"
#endif

#define FEW_TILES (1 << FEW_TILES_SHIFT)
#define GROUPS (TILE / 2)  // most groups of row tiles: a block scans their edges like a tile

#define NO_ROW INT32_MAX_VALUE  // E and S of a row in no sequence: above every column
#define NO_END 0xffffffffu      // q_end of the rows in no sequence

// Programmatic dependent launch: the second launch begins while the first still runs, and waits for
// its end, and for what it wrote, where it first reads that. Elsewhere launches run one by one.
__device__ void let_next_launch_begin()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ void wait_for_launch_before()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// attn_mask_kv: row_num pairs (start, end) of int32 or int64, of which those of valid rows are read.
struct Intervals {
    const void* pairs;
    unsigned row_num;
    bool is_int64;
    bool is_aligned;  // to 16 bytes
};

__device__ Intervals intervals_of(const void* pairs, unsigned row_num, int is_int64)
{
    bool is_aligned = reinterpret_cast<unsigned long long>(pairs) % sizeof(int4) == 0;
    return {pairs, row_num, is_int64 != 0, is_aligned};
}

__device__ int saturate(long long key)
{
    return (int)min(max(key, 0LL), (long long)INT32_MAX_VALUE);
}

// Reads four rows' starts and ends as int32, saturated; rows from row_num on are 0.
__device__ void load_intervals(const Intervals& intervals, unsigned row, Four& start, Four& end)
{
    if (!intervals.is_int64 && intervals.is_aligned && row + PER_THREAD <= intervals.row_num) {
        const int4* two_rows = static_cast<const int4*>(intervals.pairs) + row / 2;
        int4 low = two_rows[0], high = two_rows[1];
        start = {{low.x, low.z, high.x, high.z}};
        end = {{low.y, low.w, high.y, high.w}};
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned long long at = 2 * ((unsigned long long)row + i);
        start.at[i] = end.at[i] = 0;
        if (row + i >= intervals.row_num) continue;
        if (intervals.is_int64) {
            start.at[i] = saturate(static_cast<const long long*>(intervals.pairs)[at]);
            end.at[i] = saturate(static_cast<const long long*>(intervals.pairs)[at + 1]);
        } else {
            start.at[i] = static_cast<const int*>(intervals.pairs)[at];
            end.at[i] = static_cast<const int*>(intervals.pairs)[at + 1];
        }
    }
}

// What its rows need to know of a sequence. Rows in no sequence have one that never ends, and whose
// keys lie behind every column.
struct Sequence {
    unsigned q_end;
    int kv_start, kv_end;
};

template <class AnyCuts>
__device__ Sequence load_sequence(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, unsigned b)
{
    if (b >= batch) return {NO_END, NO_ROW, NO_ROW};
    return {(unsigned)cuts_q[b + 1], cuts_k[b], cuts_k[b + 1]};
}

// Turns a row's start and end into S and E: clipped, in pack coordinates.
__device__ void to_pack_coordinates(const Sequence& own, int& start, int& end)
{
    int kv_len = (int)((unsigned)own.kv_end - (unsigned)own.kv_start);
    int s = min(max(start, 0), kv_len), e = min(max(end, 0), kv_len);
    start = s < e ? (int)((unsigned)own.kv_start + (unsigned)s) : own.kv_end;
    end = s < e ? (int)((unsigned)own.kv_start + (unsigned)e) : own.kv_start;
}

// The same for a thread's four rows. Rows behind last_row are like it. The range's sequences hold the
// warp's rows, and `own` is that of its row before; both are taken on to the next of its rows.
template <class AnyCuts>
__device__ void to_pack_coordinates(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, unsigned row, unsigned last_row,
    SequenceRange& range, Sequence& own, Four& start, Four& end)
{
    SequenceEnds<AnyCuts> q_ends = {cuts_q};
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned warp_first = min(row - PER_THREAD * lane, last_row);
    unsigned warp_last = min(warp_first + PER_THREAD * WARP_THREADS - 1, last_row);
    if (warp_last < own.q_end) {  // most warps go on in the sequence before
        for (int i = 0; i < PER_THREAD; ++i) to_pack_coordinates(own, start.at[i], end.at[i]);
        return;
    }
    SequenceRange here = warp_sequence_range(q_ends, range, (int)warp_first, (int)warp_last);
    own.q_end = 0;
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        if (row + i >= own.q_end) {
            here.lo = upper_bound(q_ends, here.lo, here.hi, (int)min(row + i, last_row));
            own = load_sequence(cuts_q, cuts_k, batch, here.lo);
        }
        to_pack_coordinates(own, start.at[i], end.at[i]);
    }
    range.lo = __shfl_sync(FULL_MASK, here.lo, WARP_THREADS - 1);
    own = load_sequence(cuts_q, cuts_k, batch, range.lo);
}

// The staircases of row_num rows in tiles, and 2**group_shift tiles in a group.
struct Staircases {
    int* ends;    // (row_num,), 16-byte aligned
    int* starts;  // (row_num,), 16-byte aligned
    unsigned row_num, group_shift;

    __device__ unsigned tile_num() const { return (row_num + TILE - 1) / TILE; }
    __device__ unsigned first_tile(unsigned group) const { return group << group_shift; }
    __device__ unsigned tile_end(unsigned group) const
    {
        return min((group + 1) << group_shift, tile_num());
    }
    __device__ unsigned first_row(unsigned tile) const { return tile * TILE; }
    __device__ unsigned last_row(unsigned tile) const { return min(tile * TILE + TILE, row_num) - 1; }
};

__device__ void store_four(int* staircase, unsigned row, unsigned row_num, const Four& v)
{
    if (row + PER_THREAD <= row_num) {
        *reinterpret_cast<int4*>(staircase + row) = make_int4(v.at[0], v.at[1], v.at[2], v.at[3]);
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i)
        if (row + i < row_num) staircase[row + i] = v.at[i];
}

// Scans the edges of a group's tiles across the group, a warp each way, WARP_THREADS tiles a step.
__device__ void link_tiles(const Staircases& stairs, unsigned first_tile, unsigned tile_end)
{
    unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
    if (warp == 0) {
        int so_far = -1;
        for (unsigned step = first_tile; step < tile_end; step += WARP_THREADS) {
            unsigned tile = step + lane;
            int* edge = stairs.ends + stairs.last_row(min(tile, tile_end - 1));
            int v = max(warp_running_max(*edge), so_far);
            if (tile < tile_end) *edge = v;
            so_far = __shfl_sync(FULL_MASK, v, WARP_THREADS - 1);
        }
    } else if (warp == 1) {
        int so_far = INT32_MAX_VALUE;
        for (unsigned end = tile_end; end > first_tile; end -= min(end - first_tile, WARP_THREADS)) {
            unsigned from_right = WARP_THREADS - lane;  // lane 31 has the last tile
            unsigned tile = max(end, first_tile + from_right) - from_right;
            int* edge = stairs.starts + stairs.first_row(tile);
            int v = min(warp_running_min_from_right(*edge), so_far);
            if (end >= first_tile + from_right) *edge = v;
            so_far = __shfl_sync(FULL_MASK, v, 0);
        }
    }
}

// Shared memory of a block that scans rows.
struct RowShared {
    Window window;
    WarpEdges max_edges[2], min_edges[2];  // by the tile's parity: one barrier a tile is enough
};

// Scans the tiles of a group one by one; start and end hold the first tile's intervals already.
// Returns in the block's last thread the group's maximum of E as x, in its first the minimum of S as y.
template <class AnyCuts>
__device__ int2 scan_tiles(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range,
    const Intervals& intervals, const Staircases& stairs, unsigned first_tile, unsigned tile_end,
    Four start, Four end, RowShared& shared)
{
    unsigned row = stairs.first_row(first_tile) + PER_THREAD * threadIdx.x;
    Sequence own = {};  // of the warp's last row; at first none, which ends before every row
    int2 edges = {-1, INT32_MAX_VALUE};
#pragma unroll 1
    for (unsigned tile = first_tile; tile < tile_end; ++tile, row += TILE) {
        Four next_start = {}, next_end = {};  // in flight while this tile is scanned
        if (tile + 1 < tile_end) load_intervals(intervals, row + TILE, next_start, next_end);
        to_pack_coordinates(cuts_q, cuts_k, batch, row, stairs.row_num - 1, range, own, start, end);
        scan_tile(end, start, shared.max_edges[tile % 2], shared.min_edges[tile % 2]);
        store_four(stairs.ends, row, stairs.row_num, end);
        store_four(stairs.starts, row, stairs.row_num, start);
        edges.x = max(edges.x, end.at[PER_THREAD - 1]);
        edges.y = min(edges.y, start.at[0]);
        start = next_start;
        end = next_end;
    }
    return edges;
}

// Scans a group of tiles to the staircases, with the cuts of its sequences in shared memory if they fit.
__device__ int2 scan_group(
    const Cuts& cuts_q, const Cuts& cuts_k, unsigned batch, const Intervals& intervals,
    const Staircases& stairs, unsigned group, RowShared& shared)
{
    unsigned first_tile = stairs.first_tile(group), tile_end = stairs.tile_end(group);
    unsigned first = stairs.first_row(first_tile), last = stairs.last_row(tile_end - 1);
    Four start, end;  // in flight while the sequences are searched
    load_intervals(intervals, first + PER_THREAD * threadIdx.x, start, end);
    SequenceRange range = block_sequence_range(cuts_q, batch, (int)first, (int)last);
    if (range.hi - range.lo > WINDOW_SEQUENCES)
        return scan_tiles(
            cuts_q, cuts_k, batch, range, intervals, stairs, first_tile, tile_end, start, end, shared);
    block_stage_cuts(cuts_q, cuts_k, range, batch, shared.window);
    StagedCuts q = {shared.window.q, range.lo}, k = {shared.window.k, range.lo};
    return scan_tiles(q, k, batch, range, intervals, stairs, first_tile, tile_end, start, end, shared);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void row_staircases(
    const int* cu_seqlens_q,   // (>= batch + 1,) words of stride q_stride
    const int* cu_seqlens_k,   // (batch + 1,) words of stride k_stride
    int q_stride,              // 1 for int32, 2 for int64
    int k_stride,
    unsigned batch,
    const void* attn_mask_kv,  // (row_num, 2)
    int is_int64,
    unsigned row_num,          // in [1, INT32_MAX]; may be above cu_seqlens_q[batch]
    unsigned group_shift,
    int* ends,                 // (row_num,)
    int* starts,               // (row_num,)
    int2* group_edges)         // (gridDim.x,), at most GROUPS
{
    __shared__ RowShared shared;
    let_next_launch_begin();
    Staircases stairs = {ends, starts, row_num, group_shift};
    int2 edges = scan_group(
        {cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch,
        intervals_of(attn_mask_kv, row_num, is_int64), stairs, blockIdx.x, shared);
    if (threadIdx.x == BLOCK_THREADS - 1) group_edges[blockIdx.x].x = edges.x;
    if (threadIdx.x == 0) group_edges[blockIdx.x].y = edges.y;
    if (group_shift > 0) {
        __syncthreads();
        link_tiles(stairs, stairs.first_tile(blockIdx.x), stairs.tile_end(blockIdx.x));
    }
}

// One of the two staircases, with what finds a column's step in it. ENDS is which: a tile's edge is
// its last row, of starts its first.
template <bool ENDS>
struct Staircase {
    const int* steps;        // (row_num,)
    const int* group_edges;  // (group_num,) scanned over the groups, in shared memory
    unsigned group_num;
    Staircases stored;

    // The edge of a tile, scanned across its group.
    __device__ int operator[](unsigned tile) const
    {
        return steps[ENDS ? stored.last_row(tile) : stored.first_row(tile)];
    }

    // Returns the tile in which the steps at or below the column end: those of the tiles before it
    // are, those of the tiles behind it are not. BY_WARP: the warp searches for one column together.
    template <bool BY_WARP>
    __device__ unsigned tile_of(int column) const
    {
        unsigned group = group_num > 1 ? search<BY_WARP>(group_edges, 0, group_num, column) : 0;
        group = ENDS ? min(group, group_num - 1) : max(group, 1u) - 1;
        // The last tile of ends, the first of starts is where it is unless an edge says otherwise.
        unsigned behind = ENDS ? 0 : 1;
        unsigned first = stored.first_tile(group) + behind;
        return search<BY_WARP>(*this, first, stored.tile_end(group) - 1 + behind, column) - behind;
    }

    // Returns how many rows' steps are at or below the column.
    __device__ unsigned count(int column) const
    {
        unsigned tile = tile_of<false>(column);
        return upper_bound(steps, stored.first_row(tile), stored.last_row(tile) + 1, column);
    }

    // Reads a thread's four steps of a tile, scanned across all tiles.
    __device__ Four load(unsigned tile) const
    {
        unsigned row = stored.first_row(tile) + PER_THREAD * threadIdx.x;
        Four v = {{NO_ROW, NO_ROW, NO_ROW, NO_ROW}};
        if (row + PER_THREAD <= stored.row_num) {
            int4 four = *reinterpret_cast<const int4*>(steps + row);
            v = {{four.x, four.y, four.z, four.w}};
        } else {
            for (unsigned i = 0; i < PER_THREAD; ++i)
                if (row + i < stored.row_num) v.at[i] = steps[row + i];
        }
        unsigned group = tile >> stored.group_shift;
        if (ENDS) {
            int before = group > 0 ? group_edges[group - 1] : -1;
            if (tile > stored.first_tile(group)) before = max(before, (*this)[tile - 1]);
            for (int& step : v.at) step = max(step, before);
        } else {
            int behind = group + 1 < group_num ? group_edges[group + 1] : NO_ROW;
            if (tile + 1 < stored.tile_end(group)) behind = min(behind, (*this)[tile + 1]);
            for (int& step : v.at) step = min(step, behind);
        }
        return v;
    }
};

// Columns column_first .. column_last of a tile, and the tiles of rows whose steps lie among them.
struct ColumnTile {
    int column_first, column_last;
    unsigned first_tile, last_tile;
    __device__ bool is_near() const { return last_tile - first_tile < NEAR_TILES; }
};

// Marks, at the column where each step lies, how many rows there are up to the step's last: the
// running maximum of the marks then counts the rows at or below each column.
template <bool ENDS>
__device__ void mark_steps(const Staircase<ENDS>& stairs, const ColumnTile& here, int* marks)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
#pragma unroll 1
    for (unsigned tile = here.first_tile; tile <= here.last_tile; ++tile) {
        Four step = stairs.load(tile);
        int rows = (int)(stairs.stored.first_row(tile) + PER_THREAD * threadIdx.x);
        int next = __shfl_down_sync(FULL_MASK, step.at[0], 1);
        if (lane == WARP_THREADS - 1) next = NO_ROW;
        if (step.at[0] > here.column_last) continue;  // and so are all steps behind
        for (int i = 0; i < PER_THREAD; ++i) {
            int after = i + 1 < PER_THREAD ? step.at[i + 1] : next;
            // Of the steps in front of the columns, only the last counts.
            if (step.at[i] != after && after > here.column_first && step.at[i] <= here.column_last)
                atomicMax(marks + (max(step.at[i], here.column_first) - here.column_first), rows + i + 1);
        }
    }
}

// Returns the rows at or below the thread's four columns by a search each, where the block's columns
// lie far apart in the rows.
template <bool ENDS>
__device__ Four count_by_search(const Staircase<ENDS>& stairs, const ColumnTile& here)
{
    Four count;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        int ahead = (int)(PER_THREAD * threadIdx.x) + i;
        int column = here.column_first + min(ahead, here.column_last - here.column_first);
        count.at[i] = (int)stairs.count(column);
    }
    return count;
}

__device__ void put_four(int* at, const Four& v)
{
    *reinterpret_cast<int4*>(at) = make_int4(v.at[0], v.at[1], v.at[2], v.at[3]);
}

// Returns a thread's marks, but no less than `least`, as the warp's running maximum.
__device__ Four warp_count(const int* marks, int least)
{
    int4 four = *reinterpret_cast<const int4*>(marks);
    Four v = {{max(four.x, least), max(four.y, least), max(four.z, least), max(four.w, least)}};
    warp_running_max(v);
    return v;
}

// Shared memory of a block that writes columns.
struct ColumnShared {
    __align__(16) int ute[TILE];  // first marks, then the bounds
    __align__(16) int lts[TILE];
    WarpEdges ute_edges, lts_edges;
    unsigned near[2][4];  // by the tile's parity: tiles of ends and starts, first and last
};

// The columns of a tile, from an aligned pair on; first is -1 in front of a half pair.
struct Span {
    int first, last;
};

__device__ Span span_of(unsigned tile, const int2* columns, unsigned column_num)
{
    unsigned first = tile * TILE - column_lead(columns);
    return {(int)first, (int)min(first + TILE - 1, column_num - 1)};
}

// Looks up the tiles of rows whose steps lie among the columns, a warp for each end of each staircase.
__device__ void find_near(
    const Staircase<true>& up, const Staircase<false>& low, Span span, unsigned (&near)[4])
{
#pragma unroll 1
    for (unsigned job = threadIdx.x / WARP_THREADS; job < 4; job += WARPS) {
        int column = job / 2 ? span.last : span.first;
        unsigned found = job % 2 ? low.tile_of<true>(column) : up.tile_of<true>(column);
        if (threadIdx.x % WARP_THREADS == 0) near[job] = found;
    }
}

// Writes the tiles tile .. tile_end - 1 of TILE columns each.
__device__ void write_columns(
    const Staircase<true>& up, const Staircase<false>& low, unsigned tile, unsigned tile_end,
    int2* columns, unsigned column_num, ColumnShared& shared)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned own = PER_THREAD * threadIdx.x;
    find_near(up, low, span_of(tile, columns, column_num), shared.near[tile % 2]);
#pragma unroll 1
    for (; tile < tile_end; ++tile) {
        Span span = span_of(tile, columns, column_num);
        put_four(shared.ute + own, {});
        put_four(shared.lts + own, {});
        __syncthreads();
        const unsigned (&near)[4] = shared.near[tile % 2];
        ColumnTile by_ends = {span.first, span.last, near[0], near[2]};
        ColumnTile by_starts = {span.first, span.last, near[1], near[3]};
        if (by_ends.is_near()) mark_steps(up, by_ends, shared.ute);
        if (by_starts.is_near()) mark_steps(low, by_starts, shared.lts);
        if (tile + 1 < tile_end)  // here, so that nobody waits for its loads
            find_near(up, low, span_of(tile + 1, columns, column_num), shared.near[(tile + 1) % 2]);
        __syncthreads();

        Four ute = warp_count(shared.ute + own, (int)(by_ends.first_tile * TILE));
        Four lts = warp_count(shared.lts + own, (int)(by_starts.first_tile * TILE));
        publish_max(ute, shared.ute_edges);
        publish_max(lts, shared.lts_edges);
        __syncthreads();
        fold_max_before(ute, shared.ute_edges);
        fold_max_before(lts, shared.lts_edges);
        if (!by_ends.is_near()) ute = count_by_search(up, by_ends);
        if (!by_starts.is_near()) lts = count_by_search(low, by_starts);
        for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);

        // A thread has four columns in a row; through shared memory the warp stores pairs side by side.
        put_four(shared.ute + own, ute);
        put_four(shared.lts + own, lts);
        __syncwarp();
        for (unsigned i = 0; i < PER_THREAD / 2; ++i) {
            unsigned at = own - PER_THREAD * lane + 2 * (lane + WARP_THREADS * i);
            int2 pair_ute = *reinterpret_cast<int2*>(shared.ute + at);
            int2 pair_lts = *reinterpret_cast<int2*>(shared.lts + at);
            store_pair(
                columns, (unsigned)span.first + at, column_num,
                make_int2(pair_lts.x, pair_ute.x), make_int2(pair_lts.y, pair_ute.y));
        }
        __syncwarp();
    }
}

// Scans the edges of all groups into shared memory. Ends with a barrier.
__device__ void scan_group_edges(
    const int2* group_edges, unsigned group_num, int (&group_ends)[GROUPS], int (&group_starts)[GROUPS],
    WarpEdges& max_edges, WarpEdges& min_edges)
{
    Four end, start;
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned group = PER_THREAD * threadIdx.x + i;
        int2 edges = group < group_num ? group_edges[group] : make_int2(NO_ROW, NO_ROW);
        end.at[i] = edges.x;
        start.at[i] = edges.y;
    }
    scan_tile(end, start, max_edges, min_edges);
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned group = PER_THREAD * threadIdx.x + i;
        if (group >= GROUPS) break;
        group_ends[group] = end.at[i];
        group_starts[group] = start.at[i];
    }
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_of_staircases(
    int* ends,                  // (row_num,) as row_staircases leaves them
    int* starts,                // (row_num,)
    const int2* group_edges,    // (group_num,)
    unsigned row_num,           // in [1, INT32_MAX]
    unsigned group_shift,
    unsigned group_num,         // in [1, GROUPS]
    int2* columns,              // (column_num,) of (LTS, UTE)
    unsigned column_num,        // in [1, INT32_MAX]
    unsigned tiles_per_block)   // of columns
{
    __shared__ ColumnShared shared;
    __shared__ int group_ends[GROUPS], group_starts[GROUPS];
    __shared__ WarpEdges max_edges, min_edges;
    wait_for_launch_before();
    scan_group_edges(group_edges, group_num, group_ends, group_starts, max_edges, min_edges);
    Staircases stored = {ends, starts, row_num, group_shift};
    Staircase<true> up = {ends, group_ends, group_num, stored};
    Staircase<false> low = {starts, group_starts, group_num, stored};
    unsigned column_tile_num = (column_num + column_lead(columns) + TILE - 1) / TILE;
    unsigned tile = blockIdx.x * tiles_per_block;
    unsigned tile_end = min(tile + tiles_per_block, column_tile_num);
    write_columns(up, low, tile, tile_end, columns, column_num, shared);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void columns_of_few_rows(
    const int* cu_seqlens_q,   // as for row_staircases
    const int* cu_seqlens_k,
    int q_stride,
    int k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,          // in [1, FEW_TILES * TILE]
    int2* columns,             // as for columns_of_staircases
    unsigned column_num)
{
    __shared__ __align__(16) int ends[FEW_TILES * TILE];
    __shared__ __align__(16) int starts[FEW_TILES * TILE];
    __shared__ union {
        RowShared rows;
        ColumnShared columns;
    } shared;
    __shared__ int2 edges;  // of the one group
    Staircases stored = {ends, starts, row_num, FEW_TILES_SHIFT};
    int2 found = scan_group(
        {cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch,
        intervals_of(attn_mask_kv, row_num, is_int64), stored, 0, shared.rows);
    if (threadIdx.x == BLOCK_THREADS - 1) edges.x = found.x;
    if (threadIdx.x == 0) edges.y = found.y;
    __syncthreads();
    if (row_num > TILE) {
        link_tiles(stored, 0, stored.tile_num());
        __syncthreads();
    }
    Staircase<true> up = {ends, &edges.x, 1, stored};
    Staircase<false> low = {starts, &edges.y, 1, stored};
    write_columns(up, low, blockIdx.x, blockIdx.x + 1, columns, column_num, shared.columns);
}

// What a block has found so far, in shared memory.
struct Excess {
    unsigned long long pairs;
    unsigned long long rows;  // how many there are from the first with excess on; 0 if none has
};

// Adds what the rows of a group's tiles are shown beyond their own keys.
//
//     row      0  1  2  3
//     S        0  0  2  1
//     E        2  4  3  4
//     starts   0  0  1  1
//     ends     2  4  4  4
//     shown    2  4  3  3        row 2 is shown the keys 1 to 3, of which only 2 is its own
//     own      2  4  1  3
//     excess   0  0  2  0
template <class AnyCuts>
__device__ void add_excess(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range,
    const Intervals& intervals, const Staircase<true>& up, const Staircase<false>& low, Excess& found)
{
    unsigned first_tile = up.stored.first_tile(blockIdx.x), tile_end = up.stored.tile_end(blockIdx.x);
    unsigned row_num = intervals.row_num;
    unsigned row = up.stored.first_row(first_tile) + PER_THREAD * threadIdx.x;
    unsigned long long pairs = 0, rows = 0;
    Sequence own = {};
#pragma unroll 1
    for (unsigned tile = first_tile; tile < tile_end; ++tile, row += TILE) {
        Four start, end;
        load_intervals(intervals, row, start, end);
        to_pack_coordinates(cuts_q, cuts_k, batch, row, row_num - 1, range, own, start, end);
        Four shown_end = up.load(tile), shown_start = low.load(tile);
        for (unsigned i = 0; i < PER_THREAD; ++i) {
            if (row + i >= row_num) continue;
            long long own_keys = max((long long)end.at[i] - start.at[i], 0LL);
            long long shown = max((long long)shown_end.at[i] - shown_start.at[i], 0LL);
            if (shown != own_keys && rows == 0) rows = row_num - (row + i);
            pairs += (unsigned long long)(shown - own_keys);
        }
    }
    if (rows != 0) {
        atomicAdd(&found.pairs, pairs);
        atomicMax(&found.rows, rows);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void excess_of_rows(
    const int* cu_seqlens_q,     // as for row_staircases, and its grid
    const int* cu_seqlens_k,
    int q_stride,
    int k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,
    unsigned group_shift,
    int* ends,                   // (row_num,) as row_staircases leaves them
    int* starts,                 // (row_num,)
    const int2* group_edges,     // (gridDim.x,)
    unsigned long long* pairs,   // (1,) 0 before, and left so where there is no excess
    unsigned long long* rows)    // (1,) 0 before: row_num - the first row concerned; or null
{
    __shared__ Window window;
    __shared__ int group_ends[GROUPS], group_starts[GROUPS];
    __shared__ WarpEdges max_edges, min_edges;
    __shared__ Excess found;
    if (threadIdx.x == 0) found = {0, 0};
    scan_group_edges(group_edges, gridDim.x, group_ends, group_starts, max_edges, min_edges);
    Staircases stored = {ends, starts, row_num, group_shift};
    Staircase<true> up = {ends, group_ends, gridDim.x, stored};
    Staircase<false> low = {starts, group_starts, gridDim.x, stored};
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);

    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    unsigned first = stored.first_row(stored.first_tile(blockIdx.x));
    unsigned last = stored.last_row(stored.tile_end(blockIdx.x) - 1);
    SequenceRange range = block_sequence_range(cuts_q, batch, (int)first, (int)last);
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        block_stage_cuts(cuts_q, cuts_k, range, batch, window);
        StagedCuts q = {window.q, range.lo}, k = {window.k, range.lo};
        add_excess(q, k, batch, range, intervals, up, low, found);
    } else {
        add_excess(cuts_q, cuts_k, batch, range, intervals, up, low, found);
    }
    __syncthreads();
    if (threadIdx.x == 0 && found.rows != 0) {
        atomicAdd(pairs, found.pairs);
        if (rows) atomicMax(rows, found.rows);
    }
}

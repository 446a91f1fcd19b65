// cu_seqlens of a batch that has padding: between batch rows' tokens, or between sequences' slots.
//
//   mask_bounds        from a padding mask: where each batch row's tokens begin and end. A block reads
//                      one part of one row, as bytes whatever its ints are; b * L ints are read once
//   cuts_of_bounds     where rows have more parts than one: a warp folds a row's and writes its cuts
//   cuts_of_slots      from lengths and slots: a thread a sequence
//
//     mask       0 1 1 0     front rows, front keys, tokens, tail keys, tail rows
//                rows        1           0           2       0          1
//                keys        0           1           2       1          0
//     cut after  rows        1           1           3       3          4
//                keys        0           1           3       4          4
//
//     a slot of 4 with 2 rows and 3 keys:  rows 2, 0, 2 and keys 3, 1, 0

#include "overlap.cuh"
#include "sequences.cuh"

constexpr unsigned PARTS = 5;           // sequences that a batch row becomes
constexpr unsigned SLOT_PARTS = 3;      // and a sequence in a slot
constexpr unsigned CHUNKS_AT_ONCE = 4;  // of 16 bytes, in flight a thread

// Where the tokens of a batch row, or of a part of one, are: 0, 0 if there are none.
struct Bounds {
    unsigned from_end;  // the row's length less the first token's place
    unsigned end;       // the place behind the last

    __device__ void add(unsigned row_length, unsigned first, unsigned last)
    {
        from_end = max(from_end, row_length - first);
        end = max(end, last + 1);
    }
};

// A batch row of a mask.
struct MaskRow {
    const unsigned char* bytes;
    unsigned length, item_shift;  // ints, each of 2**item_shift bytes

    __device__ unsigned place(unsigned long long byte) const { return (unsigned)(byte >> item_shift); }
};

// Adds 16 bytes, from `byte` on, of which those that are not 0 are of tokens.
__device__ void add_chunk(const MaskRow& row, unsigned long long byte, const int4& chunk, Bounds& bounds)
{
    const unsigned words[4] = {
        (unsigned)chunk.x, (unsigned)chunk.y, (unsigned)chunk.z, (unsigned)chunk.w};
    if ((words[0] | words[1] | words[2] | words[3]) == 0) return;
    unsigned first = 0, last = 0;
    for (unsigned i = 0; i < 4; ++i) {
        unsigned from_left = 3 - i;
        if (words[from_left] != 0) first = 4 * from_left + ((unsigned)__ffs((int)words[from_left]) - 1) / 8;
        if (words[i] != 0) last = 4 * i + (31 - (unsigned)__clz((int)words[i])) / 8;
    }
    bounds.add(row.length, row.place(byte + first), row.place(byte + last));
}

// Returns the bounds of this thread's share of the bytes [begin, end) of a row.
__device__ Bounds bounds_of_share(const MaskRow& row, unsigned long long begin, unsigned long long end)
{
    Bounds bounds = {0, 0};
    unsigned long long address = reinterpret_cast<unsigned long long>(row.bytes) + begin;
    unsigned long long lead = (0 - address) % sizeof(int4);  // bytes in front of an aligned chunk
    unsigned long long first_chunk = begin + lead < end ? begin + lead : end;
    unsigned long long chunk_num = (end - first_chunk) / sizeof(int4);
    unsigned long long chunks_end = first_chunk + chunk_num * sizeof(int4);
    const int4* chunks = reinterpret_cast<const int4*>(row.bytes + first_chunk);
#pragma unroll 1
    for (unsigned long long at = threadIdx.x; at < chunk_num; at += CHUNKS_AT_ONCE * BLOCK_THREADS) {
        int4 chunk[CHUNKS_AT_ONCE];
        for (unsigned i = 0; i < CHUNKS_AT_ONCE; ++i) {
            unsigned long long own = at + i * BLOCK_THREADS;
            chunk[i] = own < chunk_num ? chunks[own] : make_int4(0, 0, 0, 0);
        }
        for (unsigned i = 0; i < CHUNKS_AT_ONCE; ++i)
            add_chunk(row, first_chunk + (at + i * BLOCK_THREADS) * sizeof(int4), chunk[i], bounds);
    }
    // The bytes in front of the chunks and behind them, fewer than 16 each.
    unsigned long long front = begin + threadIdx.x, tail = chunks_end + threadIdx.x;
    if (front < first_chunk && row.bytes[front] != 0)
        bounds.add(row.length, row.place(front), row.place(front));
    if (threadIdx.x < sizeof(int4) && tail < end && row.bytes[tail] != 0)
        bounds.add(row.length, row.place(tail), row.place(tail));
    return bounds;
}

// The warp's bounds, in all lanes.
__device__ Bounds warp_fold(Bounds bounds)
{
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2) {
        bounds.from_end = max(bounds.from_end, __shfl_down_sync(FULL_MASK, bounds.from_end, distance));
        bounds.end = max(bounds.end, __shfl_down_sync(FULL_MASK, bounds.end, distance));
    }
    return {warp_uniform(bounds.from_end), warp_uniform(bounds.end)};
}

// Writes a batch row's cuts, one a lane. A row without tokens is front padding.
__device__ void warp_put_cuts(
    unsigned row, unsigned row_length, const Bounds& bounds, int* cu_seqlens_q, int* cu_seqlens_k)
{
    unsigned lane = threadIdx.x % WARP_THREADS, part = lane / 2;
    if (part >= PARTS) return;
    bool is_key = lane % 2 != 0;
    unsigned first = row_length - bounds.from_end, end = max(bounds.end, first);
    unsigned cut = first;                                  // behind the front rows, or keys
    if (part == 0 && is_key) cut = 0;
    if (part == 2 || (part == 3 && !is_key)) cut = end;    // behind the tokens
    if (part == 4 || (part == 3 && is_key)) cut = row_length;
    int* cuts = is_key ? cu_seqlens_k : cu_seqlens_q;
    cuts[(unsigned long long)row * PARTS + 1 + part] = (int)(row * row_length + cut);
}

__device__ void put_first_cuts(int* cu_seqlens_q, int* cu_seqlens_k)
{
    if (blockIdx.x == 0 && threadIdx.x == 0) cu_seqlens_q[0] = cu_seqlens_k[0] = 0;
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void mask_bounds(
    const unsigned char* mask,      // (batch, row_length) ints, 0 at padding
    unsigned item_shift,            // each of 2**item_shift bytes
    unsigned batch,                 // batch * row_length is at most INT32_MAX
    unsigned row_length,
    unsigned parts,                 // of a row, a block each; gridDim.x is max(batch * parts, 1)
    unsigned long long part_bytes,
    uint2* part_bounds,             // (batch, parts), if there are more parts than one
    int* cu_seqlens_q,              // (5 * batch + 1,), otherwise
    int* cu_seqlens_k)              // (5 * batch + 1,)
{
    __shared__ Bounds of_block;
    let_next_launch_begin();
    if (parts == 1) put_first_cuts(cu_seqlens_q, cu_seqlens_k);
    unsigned row = blockIdx.x / parts, part = blockIdx.x % parts;
    if (row >= batch) return;
    if (threadIdx.x == 0) of_block = {0, 0};
    __syncthreads();
    unsigned long long row_bytes = (unsigned long long)row_length << item_shift;
    unsigned long long begin = part * part_bytes;
    unsigned long long end = begin + part_bytes < row_bytes ? begin + part_bytes : row_bytes;
    MaskRow bytes = {mask + row * row_bytes, row_length, item_shift};
    Bounds own = warp_fold(bounds_of_share(bytes, begin < end ? begin : end, end));
    if (threadIdx.x % WARP_THREADS == 0 && own.end != 0) {
        atomicMax(&of_block.from_end, own.from_end);
        atomicMax(&of_block.end, own.end);
    }
    __syncthreads();
    if (threadIdx.x >= WARP_THREADS) return;
    if (parts == 1) warp_put_cuts(row, row_length, of_block, cu_seqlens_q, cu_seqlens_k);
    else if (threadIdx.x == 0) part_bounds[blockIdx.x] = make_uint2(of_block.from_end, of_block.end);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void cuts_of_bounds(
    const uint2* part_bounds,  // (batch, parts) as mask_bounds leaves them
    unsigned batch,            // at least 1
    unsigned row_length,
    unsigned parts,
    int* cu_seqlens_q,         // (5 * batch + 1,)
    int* cu_seqlens_k)         // (5 * batch + 1,)
{
    put_first_cuts(cu_seqlens_q, cu_seqlens_k);
    unsigned row = blockIdx.x * WARPS + warp_index();
    if (row >= batch) return;
    wait_for_launch_before();
    Bounds bounds = {0, 0};
#pragma unroll 4
    for (unsigned part = threadIdx.x % WARP_THREADS; part < parts; part += WARP_THREADS) {
        uint2 some = part_bounds[(unsigned long long)row * parts + part];
        bounds = {max(bounds.from_end, some.x), max(bounds.end, some.y)};
    }
    warp_put_cuts(row, row_length, warp_fold(bounds), cu_seqlens_q, cu_seqlens_k);
}

// Returns where what sequence b's slot holds ends, as x, and the slot itself, as y.
__device__ int2 ends_in_slot(const Cuts& lengths, const Cuts& slots, unsigned b)
{
    long long slot = (int)slots[b], slot_end = (int)slots[b + 1];
    long long length = (long long)(int)lengths[b + 1] - (int)lengths[b];
    return make_int2((int)min(slot + max(length, 0LL), slot_end), (int)slot_end);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void cuts_of_slots(
    const unsigned* cu_seqlens_q,         // (batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_q_padded,  // and so on
    const unsigned* cu_seqlens_k,
    const unsigned* cu_seqlens_k_padded,
    unsigned q_stride,                    // 1 for int32, 2 for int64
    unsigned q_padded_stride,
    unsigned k_stride,
    unsigned k_padded_stride,
    unsigned batch,
    int* rows,                            // (3 * batch + 1,)
    int* keys)                            // (3 * batch + 1,)
{
    put_first_cuts(rows, keys);
    unsigned sequence = blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (sequence >= batch) return;
    Cuts q = {cu_seqlens_q, q_stride}, q_slots = {cu_seqlens_q_padded, q_padded_stride};
    Cuts k = {cu_seqlens_k, k_stride}, k_slots = {cu_seqlens_k_padded, k_padded_stride};
    int2 row_ends = ends_in_slot(q, q_slots, sequence), key_ends = ends_in_slot(k, k_slots, sequence);
    unsigned long long at = (unsigned long long)sequence * SLOT_PARTS + 1;
    rows[at] = rows[at + 1] = row_ends.x;
    rows[at + 2] = row_ends.y;
    keys[at] = key_ends.x;
    keys[at + 1] = keys[at + 2] = key_ends.y;
}

// excess_of_rows: how many (row, key) pairs the columns of intervals show beyond them.
//
// The columns show a row the keys from starts to ends, its steps of the two staircases (staircase.cuh):
// from the least S of the row and those behind it, to the greatest E of the row and those before it.
//
//     row      0  1  2  3
//     S        0  0  2  1
//     E        2  4  3  4
//     starts   0  0  1  1
//     ends     2  4  4  4
//     shown    2  4  3  3        row 2 is shown the keys 1 to 3, of which only 2 is its own
//     own      2  4  1  3
//     excess   0  0  2  0
//
// Launched behind row_staircases, on as many blocks. A block counts for one group. Reads 16 * Q bytes.

#include "staircase.cuh"

// What a block has found so far, in shared memory.
struct Excess {
    unsigned long long pairs;
    unsigned long long rows;  // from the first row with excess to the last of all; 0 if none has excess
};

// Adds to `found` what the rows of the block's group are shown beyond their own keys.
__device__ void block_add_excess(
    const Pack& pack, const Intervals& intervals, const Staircase<true>& end_stairs,
    const Staircase<false>& start_stairs, Excess& found)
{
    unsigned first_tile = end_stairs.stored.first_tile(blockIdx.x);
    unsigned tile_end = end_stairs.stored.tile_end(blockIdx.x);
    unsigned row_num = intervals.row_num;
    unsigned row = end_stairs.stored.first_row(first_tile) + PER_THREAD * threadIdx.x;
    unsigned long long pairs = 0, rows = 0;
    Span span = {end_stairs.stored.first_row(first_tile), end_stairs.stored.last_row(tile_end - 1)};
    RowWarp warp(pack);
    warp.window.range = block_narrow_sequences(warp.window.source, span);
#pragma unroll 1
    for (unsigned tile = first_tile; tile < tile_end; ++tile, row += TILE) {
        Four start, end;
        load_intervals(intervals, row, start, end);
        warp.warp_to_pack_coordinates(warp_uniform(row), {0, row_num - 1}, start, end);
        Four shown_end = end_stairs.load(tile), shown_start = start_stairs.load(tile);
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
    const unsigned* cu_seqlens_q,  // all as for row_staircases, and its grid
    const unsigned* cu_seqlens_k,
    unsigned q_stride,
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,
    unsigned group_shift,
    int* ends,                     // (row_num,) as row_staircases leaves them
    int* starts,                   // (row_num,)
    const int2* group_edges,       // (gridDim.x,)
    unsigned long long* pairs,     // (1,) 0 before, and left so where there is no excess
    unsigned long long* rows)      // (1,) 0 before: row_num - the first row concerned; or null
{
    __shared__ int group_ends[GROUPS], group_starts[GROUPS];
    __shared__ WarpEdges max_edges, min_edges;
    __shared__ Excess found;
    if (threadIdx.x == 0) found = {0, 0};
    block_scan_group_edges(group_edges, gridDim.x, group_ends, group_starts, max_edges, min_edges);
    Staircases stored = {ends, starts, row_num, group_shift};
    Staircase<true> end_stairs = {ends, group_ends, gridDim.x, stored};
    Staircase<false> start_stairs = {starts, group_starts, gridDim.x, stored};
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    block_add_excess(pack, intervals, end_stairs, start_stairs, found);
    __syncthreads();
    if (threadIdx.x == 0 && found.rows != 0) {
        atomicAdd(pairs, found.pairs);
        if (rows) atomicMax(rows, found.rows);
    }
}

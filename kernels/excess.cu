// excess_of_rows: how many (row, key) pairs two columns show beyond the rows' intervals.
//
// Behind row_staircases, whose staircases say what each row is shown: the keys
// [starts(r), ends(r)), of which [S(r), E(r)) are its own.
//
//     row      0  1  2  3
//     S        0  0  2  1
//     E        2  4  3  4
//     starts   0  0  1  1        running minimum from the right
//     ends     2  4  4  4        running maximum
//     shown    2  4  3  3        row 2 is shown the keys 1 to 3, of which only 2 is its own
//     own      2  4  1  3
//     excess   0  0  2  0
//
// A block adds up the tiles of one group of row_staircases. Precondition: the results are 0. They
// are written where there is any excess, which for most callers is nowhere.
// Reads 16 * Q bytes for int32 intervals, and each block the edges of all groups.

#include "intervals.cuh"

// What a block has found so far, in shared memory.
struct Excess {
    unsigned long long pairs;
    unsigned long long rows;  // how many there are from the first with excess on; 0 if none has
};

// Returns the maximum of E over the groups before the block's, and the minimum of S over those
// behind it. Ends with a barrier.
__device__ int2 edges_around(const int2* group_edges, int2& edges)
{
    if (threadIdx.x == 0) edges = make_int2(-1, INT32_MAX_VALUE);
    __syncthreads();
    int before = -1, after = INT32_MAX_VALUE;
    for (unsigned group = threadIdx.x; group < gridDim.x; group += BLOCK_THREADS) {
        int2 edge = group_edges[group];
        if (group < blockIdx.x) before = max(before, edge.x);
        if (group > blockIdx.x) after = min(after, edge.y);
    }
    before = warp_running_max(before);
    after = warp_running_min_from_right(after);
    unsigned lane = threadIdx.x % WARP_THREADS;
    if (lane == WARP_THREADS - 1) atomicMax(&edges.x, before);
    if (lane == 0) atomicMin(&edges.y, after);
    __syncthreads();
    return edges;
}

// Adds what the rows of the group's tiles are shown too much.
template <class AnyCuts>
__device__ void add_tiles(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range,
    const Intervals& intervals, const Staircases& stairs, unsigned first_tile, unsigned tile_end,
    int2 around, Excess& found)
{
    unsigned long long pairs = 0, rows = 0;
    for (unsigned tile = first_tile; tile < tile_end; ++tile) {
        unsigned row = stairs.first_row(tile) + PER_THREAD * threadIdx.x;
        Four s, e;
        load_intervals(intervals, row, stairs.row_num, s, e);
        to_pack_coordinates(cuts_q, cuts_k, batch, range, row, stairs.row_num, s, e);
        // A stored tile is scanned by itself; the edges of the tiles beside it, across the group.
        int before = around.x, after = around.y;
        if (tile > first_tile) before = max(before, stairs.ends[stairs.last_row(tile - 1)]);
        if (tile + 1 < tile_end) after = min(after, stairs.starts[stairs.first_row(tile + 1)]);
        for (unsigned i = 0; i < PER_THREAD && row + i < stairs.row_num; ++i) {
            long long end = max(stairs.ends[row + i], before);
            long long start = min(stairs.starts[row + i], after);
            long long own = max((long long)e.at[i] - s.at[i], 0LL);
            unsigned long long excess = max(end - start, 0LL) - own;
            if (excess != 0 && rows == 0) rows = stairs.row_num - (row + i);
            pairs += excess;
        }
    }
    if (pairs != 0) {
        atomicAdd(&found.pairs, pairs);
        atomicMax(&found.rows, rows);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void excess_of_rows(
    const int* cu_seqlens_q,      // (>= batch + 1,) words of stride q_stride
    const int* cu_seqlens_k,      // (batch + 1,) words of stride k_stride
    int q_stride,                 // 1 for int32, 2 for int64
    int k_stride,
    unsigned batch,
    const void* attn_mask_kv,     // (row_num, 2)
    int is_int64,
    unsigned row_num,             // in [1, INT32_MAX]
    unsigned tiles_per_group,
    int* ends,                    // (row_num,)
    int* starts,                  // (row_num,)
    const int2* group_edges,      // (gridDim.x,)
    unsigned long long* pairs,    // (1,) 0 before
    unsigned long long* rows)     // (1,) 0 before: row_num - the first row concerned, 0 if none is;
                                  // or null
{
    __shared__ int staged_q[WINDOW_SEQUENCES + 2];
    __shared__ int staged_k[WINDOW_SEQUENCES + 2];
    __shared__ int2 edges;
    __shared__ Excess found;
    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    Staircases stairs = {ends, starts, row_num, tiles_per_group};
    bool is_aligned = reinterpret_cast<unsigned long long>(attn_mask_kv) % sizeof(int4) == 0;
    Intervals intervals = {attn_mask_kv, is_int64, is_aligned};

    if (threadIdx.x == 0) found = {0, 0};
    int2 around = edges_around(group_edges, edges);
    unsigned first_tile = blockIdx.x * tiles_per_group;
    unsigned tile_end = min(first_tile + tiles_per_group, stairs.tile_num());
    unsigned first = stairs.first_row(first_tile), last = stairs.last_row(tile_end - 1);
    SequenceRange range = block_sequence_range(cuts_q, batch, (int)first, (int)last);
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        stage_cuts(cuts_q, cuts_k, range, batch, staged_q, staged_k);
        StagedCuts q = {staged_q, range.lo};
        StagedCuts k = {staged_k, range.lo};
        add_tiles(q, k, batch, range, intervals, stairs, first_tile, tile_end, around, found);
    } else {
        add_tiles(cuts_q, cuts_k, batch, range, intervals, stairs, first_tile, tile_end, around, found);
    }
    __syncthreads();
    if (threadIdx.x == 0 && found.pairs != 0) {
        atomicAdd(pairs, found.pairs);
        if (rows) atomicMax(rows, found.rows);
    }
}

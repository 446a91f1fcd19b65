// The rows' two staircases, and how they are stored.
//
// Row r of the pack ends its keys at E(r) and starts them at S(r), in pack coordinates. The
// staircases ends(r) = max(E(0..r)) and starts(r) = min(S(r..)) never decrease, over the whole pack,
// and a column's bounds count their steps: UTE(c) = rows with ends <= c, LTS(c) = rows with starts <= c.
//
//     row      0  1  2  3  4          column     0  1  2  3  4
//     E        2  1  3  5  5
//     ends     2  2  3  5  5    ->    UTE        0  0  2  3  3
//     S        0  0  1  0  3
//     starts   0  0  0  0  3    ->    LTS        4  4  4  5  5
//
// They are stored tile by tile, each tile of TILE rows scanned by itself, so that a block writes its
// tiles without waiting for another. What lies between tiles is kept where a search looks for it:
//   - ends of a tile's last row: the maximum over its group's tiles up to this one,
//   - starts of a tile's first row: the minimum over its group's tiles from this one on,
//   - group_edges[g] = (maximum of E, minimum of S) over the group; at most TILE groups, so that a
//     block can scan them all at once.

#include "search.cuh"

#define PER_THREAD 4
#define TILE (BLOCK_THREADS * PER_THREAD)

struct Four {
    int at[PER_THREAD];
};

// The stored staircases of row_num rows in tiles, and tiles in groups.
struct Staircases {
    int* ends;    // (row_num,), 16-byte aligned
    int* starts;  // (row_num,), 16-byte aligned
    unsigned row_num;
    unsigned tiles_per_group;

    __device__ unsigned tile_num() const { return (row_num + TILE - 1) / TILE; }
    __device__ unsigned first_row(unsigned tile) const { return tile * TILE; }
    __device__ unsigned last_row(unsigned tile) const { return min(tile * TILE + TILE, row_num) - 1; }
};

// Running maximum of v over the warp's lanes up to this one.
__device__ int warp_running_max(int v)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
        int other = __shfl_up_sync(FULL_MASK, v, distance);
        if (lane >= distance) v = max(v, other);
    }
    return v;
}

// Running minimum of v over the warp's lanes from this one on.
__device__ int warp_running_min_from_right(int v)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
        int other = __shfl_down_sync(FULL_MASK, v, distance);
        if (lane + distance < WARP_THREADS) v = min(v, other);
    }
    return v;
}

// Replaces the block's TILE values, four consecutive ones a thread, by their running maximum.
// warp_max is for this call alone until the next barrier but one.
__device__ void block_running_max(Four& v, int (&warp_max)[WARPS])
{
    unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
    for (int i = 1; i < PER_THREAD; ++i) v.at[i] = max(v.at[i], v.at[i - 1]);
    int through_lane = warp_running_max(v.at[PER_THREAD - 1]);
    int before = __shfl_up_sync(FULL_MASK, through_lane, 1);
    if (lane == 0) before = -1;
    if (lane == WARP_THREADS - 1) warp_max[warp] = through_lane;
    __syncthreads();
    for (unsigned w = 0; w < WARPS; ++w)
        if (w < warp) before = max(before, warp_max[w]);
    for (int i = 0; i < PER_THREAD; ++i) v.at[i] = max(v.at[i], before);
}

// The same for the running minimum from the right.
__device__ void block_running_min_from_right(Four& v, int (&warp_min)[WARPS])
{
    unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
    for (int i = PER_THREAD - 2; i >= 0; --i) v.at[i] = min(v.at[i], v.at[i + 1]);
    int from_lane = warp_running_min_from_right(v.at[0]);
    int after = __shfl_down_sync(FULL_MASK, from_lane, 1);
    if (lane == WARP_THREADS - 1) after = INT32_MAX_VALUE;
    if (lane == 0) warp_min[warp] = from_lane;
    __syncthreads();
    for (unsigned w = 0; w < WARPS; ++w)
        if (w > warp) after = min(after, warp_min[w]);
    for (int i = 0; i < PER_THREAD; ++i) v.at[i] = min(v.at[i], after);
}

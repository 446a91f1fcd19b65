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
//   - group_edges[g] = (maximum of E, minimum of S) over the group; at most GROUPS, so that a block
//     can scan them all at once.

#include "search.cuh"

#define PER_THREAD 4
#define TILE (BLOCK_THREADS * PER_THREAD)

struct Four {
    int at[PER_THREAD];
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

// The same over the warp's values, PER_THREAD consecutive ones a lane.
__device__ void warp_running_max(Four& v)
{
    for (int i = 1; i < PER_THREAD; ++i) v.at[i] = max(v.at[i], v.at[i - 1]);
    int before = __shfl_up_sync(FULL_MASK, warp_running_max(v.at[PER_THREAD - 1]), 1);
    if (threadIdx.x % WARP_THREADS == 0) before = v.at[0];
    for (int& step : v.at) step = max(step, before);
}

__device__ void warp_running_min_from_right(Four& v)
{
    for (int i = PER_THREAD - 2; i >= 0; --i) v.at[i] = min(v.at[i], v.at[i + 1]);
    int behind = __shfl_down_sync(FULL_MASK, warp_running_min_from_right(v.at[0]), 1);
    if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) behind = v.at[PER_THREAD - 1];
    for (int& step : v.at) step = min(step, behind);
}

// The warps' own maxima (or minima) of a block, through which a warp's scan becomes the block's.
struct WarpEdges {
    int at[WARPS];
};

__device__ void publish_max(const Four& v, WarpEdges& edges)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    if (lane == WARP_THREADS - 1) edges.at[threadIdx.x / WARP_THREADS] = v.at[PER_THREAD - 1];
}

__device__ void publish_min(const Four& v, WarpEdges& edges)
{
    if (threadIdx.x % WARP_THREADS == 0) edges.at[threadIdx.x / WARP_THREADS] = v.at[0];
}

// After a barrier: folds the maxima of the warps before into the warp's running maximum.
__device__ void fold_max_before(Four& v, const WarpEdges& edges)
{
    int before = v.at[0];
    for (unsigned warp = 0; warp < WARPS; ++warp)
        if (warp < threadIdx.x / WARP_THREADS) before = max(before, edges.at[warp]);
    for (int& step : v.at) step = max(step, before);
}

// After a barrier: folds the minima of the warps behind into the warp's running minimum.
__device__ void fold_min_behind(Four& v, const WarpEdges& edges)
{
    int behind = v.at[PER_THREAD - 1];
    for (unsigned warp = 0; warp < WARPS; ++warp)
        if (warp > threadIdx.x / WARP_THREADS) behind = min(behind, edges.at[warp]);
    for (int& step : v.at) step = min(step, behind);
}

// Scans a tile: the running maximum of its ends, the running minimum from the right of its starts.
// The edges are the call's own until the next barrier but one.
__device__ void scan_tile(Four& end, Four& start, WarpEdges& max_edges, WarpEdges& min_edges)
{
    warp_running_max(end);
    warp_running_min_from_right(start);
    publish_max(end, max_edges);
    publish_min(start, min_edges);
    __syncthreads();
    fold_max_before(end, max_edges);
    fold_min_behind(start, min_edges);
}

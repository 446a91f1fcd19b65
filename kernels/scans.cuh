// Running maxima and minima of rows: of a warp, of a block, and of groups of rows, one a block.

#include "rows.cuh"

constexpr int GROUPS = TILE / 2;  // at most: a block scans their edges like a tile

// Returns the maximum of v over the lanes up to this one. Where there is no lane at a distance, the
// shuffle returns the value of the lane itself, so that no test is needed. Without the tests, and with
// ColumnTile::place, 8,192 random intervals took 6.5 us rather than 8.3.
__device__ int warp_running_max(int v)
{
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2)
        v = max(v, __shfl_up_sync(FULL_MASK, v, distance));
    return v;
}

// Returns the minimum of v over the lanes from this one on.
__device__ int warp_running_min_from_right(int v)
{
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2)
        v = min(v, __shfl_down_sync(FULL_MASK, v, distance));
    return v;
}

// Returns the maximum of v over all lanes, to each, and the minimum.
__device__ int warp_max(int v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_MASK, v);
#else
    return __shfl_sync(FULL_MASK, warp_running_max(v), WARP_THREADS - 1);
#endif
}

__device__ int warp_min(int v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_min_sync(FULL_MASK, v);
#else
    return __shfl_sync(FULL_MASK, warp_running_min_from_right(v), 0);
#endif
}

// The running maximum and minimum of PER_THREAD values a lane, in a row.
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

// The maximum (or minimum) of each warp of a block. With those of the other warps, a warp's scan becomes
// the block's.
struct WarpEdges {
    int at[WARPS];
};

// Writes the warp's maximum, which its running maximum ends with.
__device__ void publish_max(const Four& v, WarpEdges& edges)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    if (lane == WARP_THREADS - 1) edges.at[threadIdx.x / WARP_THREADS] = v.at[PER_THREAD - 1];
}

// Writes the warp's minimum, which its running minimum from the right begins with.
__device__ void publish_min(const Four& v, WarpEdges& edges)
{
    if (threadIdx.x % WARP_THREADS == 0) edges.at[threadIdx.x / WARP_THREADS] = v.at[0];
}

// Behind a barrier: raises the warp's running maximum to the maxima of the warps before it.
__device__ void fold_max_before(Four& v, const WarpEdges& edges)
{
    int before = v.at[0];
    for (unsigned warp = 0; warp < WARPS; ++warp)
        if (warp < threadIdx.x / WARP_THREADS) before = max(before, edges.at[warp]);
    for (int& step : v.at) step = max(step, before);
}

// Behind a barrier: lowers the warp's running minimum to the minima of the warps behind it.
__device__ void fold_min_behind(Four& v, const WarpEdges& edges)
{
    int behind = v.at[PER_THREAD - 1];
    for (unsigned warp = 0; warp < WARPS; ++warp)
        if (warp > threadIdx.x / WARP_THREADS) behind = min(behind, edges.at[warp]);
    for (int& step : v.at) step = min(step, behind);
}

// Behind a barrier: returns the maximum over the warps before this one, or -1.
__device__ int warp_max_before(const WarpEdges& edges)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    return warp_max(lane < warp_index() ? edges.at[lane] : -1);
}

// Behind a barrier: returns the minimum over the warps behind this one, or NO_ROW.
__device__ int warp_min_behind(const WarpEdges& edges)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    return warp_min(lane > warp_index() && lane < WARPS ? edges.at[lane] : NO_ROW);
}

// Scans a tile: ends become their running maximum, starts their running minimum from the right. The
// edges must not be written before the next barrier: other warps still read them.
__device__ void block_scan_tile(Four& end, Four& start, WarpEdges& max_edges, WarpEdges& min_edges)
{
    warp_running_max(end);
    warp_running_min_from_right(start);
    publish_max(end, max_edges);
    publish_min(start, min_edges);
    __syncthreads();
    fold_max_before(end, max_edges);
    fold_min_behind(start, min_edges);
}

// Scans the edges of all groups into shared memory. Ends with a barrier.
__device__ void block_scan_group_edges(
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
    block_scan_tile(end, start, max_edges, min_edges);
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned group = PER_THREAD * threadIdx.x + i;
        if (group >= GROUPS) break;
        group_ends[group] = end.at[i];
        group_starts[group] = start.at[i];
    }
    __syncthreads();
}

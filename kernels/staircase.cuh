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

#include "rows.cuh"

#define GROUPS (TILE / 2)  // most groups of row tiles: a block scans their edges like a tile

// Running maximum of v over the warp's lanes up to this one. Where there is no lane at a distance, a
// shuffle returns the lane's own value.
__device__ int warp_running_max(int v)
{
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2)
        v = max(v, __shfl_up_sync(FULL_MASK, v, distance));
    return v;
}

// Running minimum of v over the warp's lanes from this one on.
__device__ int warp_running_min_from_right(int v)
{
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2)
        v = min(v, __shfl_down_sync(FULL_MASK, v, distance));
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

// One of the two staircases, with what finds a column's step in it. ENDS is which: a tile's edge is
// its last row, of starts its first.
template <bool ENDS>
struct Staircase {
    static constexpr unsigned BEHIND = ENDS ? 0 : 1;

    const int* steps;        // (row_num,)
    const int* group_edges;  // (group_num,) scanned over the groups, in shared memory
    unsigned group_num;
    Staircases stored;

    // The edge of a tile, scanned across its group.
    __device__ int operator[](unsigned tile) const
    {
        return steps[ENDS ? stored.last_row(tile) : stored.first_row(tile)];
    }

    // The search for a column's step goes by groups, then tiles, then rows, each a range [lo, hi]. A
    // staircase of one group needs no search for it.
    __device__ void all_groups(unsigned& lo, unsigned& hi) const
    {
        lo = 0;
        hi = group_num > 1 ? group_num : 0;
    }

    // From the group that was found to its tiles. The last tile of ends, the first of starts is where
    // the step is unless an edge says otherwise.
    __device__ void tiles_of_group(unsigned& lo, unsigned& hi) const
    {
        unsigned group = ENDS ? min(lo, group_num - 1) : max(lo, 1u) - 1;
        lo = stored.first_tile(group) + BEHIND;
        hi = stored.tile_end(group) - 1 + BEHIND;
    }

    // From the tile that was found to its rows.
    __device__ void rows_of_tile(unsigned& lo, unsigned& hi) const
    {
        unsigned tile = lo - BEHIND;
        lo = stored.first_row(tile);
        hi = stored.last_row(tile) + 1;
    }

    // Returns the tile in which the steps at or below the column end: those of the tiles before it
    // are, those of the tiles behind it are not. A whole warp for one column.
    __device__ unsigned tile_of(int column) const
    {
        unsigned lo, hi;
        all_groups(lo, hi);
        lo = warp_upper_bound(group_edges, lo, hi, column);
        tiles_of_group(lo, hi);
        return warp_upper_bound(*this, lo, hi, column) - BEHIND;
    }

    // Returns how many rows' steps are at or below each column. One thread.
    __device__ Four count(const int (&column)[PER_THREAD]) const
    {
        unsigned lo[PER_THREAD], hi[PER_THREAD];
        for (int i = 0; i < PER_THREAD; ++i) all_groups(lo[i], hi[i]);
        upper_bounds(group_edges, lo, hi, column);
        for (int i = 0; i < PER_THREAD; ++i) tiles_of_group(lo[i], hi[i]);
        upper_bounds(*this, lo, hi, column);
        for (int i = 0; i < PER_THREAD; ++i) rows_of_tile(lo[i], hi[i]);
        upper_bounds(steps, lo, hi, column);
        return {{(int)lo[0], (int)lo[1], (int)lo[2], (int)lo[3]}};
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

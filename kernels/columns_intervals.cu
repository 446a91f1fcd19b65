// Intervals of keys per row in, [LTS, UTE] per key column out, in two launches: the rows are scanned
// to staircases (staircase.cuh), and the columns are read off as the staircases' inverse.
//
//   row_staircases          a block scans one group of row tiles; reads 8 * Q, writes 8 * Q bytes
//   columns_of_staircases   a block writes one tile of columns;   reads 8 * Q, writes 8 * N bytes
//
// No block waits for another. Values are clipped to their sequence's keys before they are used, and
// no address depends on one, so that any bits whatever in the arrays give some columns.

#include "columns.cuh"
#include "intervals.cuh"
#include "staircase.cuh"

#ifndef NEAR_TILES
#error "NEAR_TILES: row tiles that a block of columns reads whole rather than searches"
#endif

__device__ void store_four(int* staircase, unsigned row, unsigned row_num, const Four& v)
{
    if (row + PER_THREAD <= row_num) {
        *reinterpret_cast<int4*>(staircase + row) = make_int4(v.at[0], v.at[1], v.at[2], v.at[3]);
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i)
        if (row + i < row_num) staircase[row + i] = v.at[i];
}

// Scans the edges of the group's tiles across the group, a warp each way, 32 tiles a step.
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

// Scans the tiles of a group one by one; start and end hold the first tile's intervals already.
// Returns in its first thread the group's minimum of S as y, in its last the maximum of E as x.
template <class AnyCuts>
__device__ int2 scan_tiles(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range,
    const Intervals& intervals, const Staircases& stairs, unsigned first_tile, unsigned tile_end,
    Four start, Four end, int (&warp_max)[2][WARPS], int (&warp_min)[2][WARPS])
{
    int2 edges = {-1, INT32_MAX_VALUE};
    for (unsigned tile = first_tile; tile < tile_end; ++tile) {
        unsigned row = stairs.first_row(tile) + PER_THREAD * threadIdx.x;
        Four next_start = {}, next_end = {};  // in flight while this tile is scanned
        if (tile + 1 < tile_end)
            load_intervals(intervals, row + TILE, stairs.row_num, next_start, next_end);
        to_pack_coordinates(cuts_q, cuts_k, batch, range, row, stairs.row_num, start, end);
        block_running_max(end, warp_max[tile % 2]);
        block_running_min_from_right(start, warp_min[tile % 2]);
        store_four(stairs.ends, row, stairs.row_num, end);
        store_four(stairs.starts, row, stairs.row_num, start);
        edges.x = max(edges.x, end.at[PER_THREAD - 1]);
        edges.y = min(edges.y, start.at[0]);
        start = next_start;
        end = next_end;
    }
    return edges;
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
    unsigned tiles_per_group,
    int* ends,                 // (row_num,)
    int* starts,               // (row_num,)
    int2* group_edges)         // (gridDim.x,), at most TILE
{
    __shared__ int staged_q[WINDOW_SEQUENCES + 2];
    __shared__ int staged_k[WINDOW_SEQUENCES + 2];
    __shared__ int warp_max[2][WARPS];  // by the tile's parity: one barrier a scan is enough
    __shared__ int warp_min[2][WARPS];
    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    Staircases stairs = {ends, starts, row_num, tiles_per_group};
    bool is_aligned = reinterpret_cast<unsigned long long>(attn_mask_kv) % sizeof(int4) == 0;
    Intervals intervals = {attn_mask_kv, is_int64, is_aligned};

    unsigned first_tile = blockIdx.x * tiles_per_group;
    unsigned tile_end = min(first_tile + tiles_per_group, stairs.tile_num());
    unsigned first = stairs.first_row(first_tile), last = stairs.last_row(tile_end - 1);
    Four start = {}, end = {};
    load_intervals(intervals, first + PER_THREAD * threadIdx.x, row_num, start, end);

    SequenceRange range = block_sequence_range(cuts_q, batch, (int)first, (int)last);
    int2 edges;
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        stage_cuts(cuts_q, cuts_k, range, batch, staged_q, staged_k);
        StagedCuts q = {staged_q, range.lo};
        StagedCuts k = {staged_k, range.lo};
        edges = scan_tiles(
            q, k, batch, range, intervals, stairs, first_tile, tile_end, start, end, warp_max, warp_min);
    } else {
        edges = scan_tiles(
            cuts_q, cuts_k, batch, range, intervals, stairs, first_tile, tile_end, start, end, warp_max,
            warp_min);
    }
    if (threadIdx.x == BLOCK_THREADS - 1) group_edges[blockIdx.x].x = edges.x;
    if (threadIdx.x == 0) group_edges[blockIdx.x].y = edges.y;
    if (tiles_per_group > 1) {
        __syncthreads();
        link_tiles(stairs, first_tile, tile_end);
    }
}

// One of the two staircases, with what finds a column's step in it.
struct Staircase {
    const int* steps;        // (row_num,) in global memory
    const int* group_edges;  // (group_num,) scanned, in shared memory
    bool is_ends;            // a tile's edge is its last row; of starts, its first
    unsigned group_num;
    Staircases stored;

    // The edge of a tile, scanned across its group.
    __device__ int operator[](unsigned tile) const
    {
        return steps[is_ends ? stored.last_row(tile) : stored.first_row(tile)];
    }

    // Returns the tile in which the steps at or below the column end: those of the tiles before it
    // are, those of the tiles behind it are not.
    __device__ unsigned tile_of(int column) const
    {
        unsigned group = upper_bound(group_edges, 0, group_num, column);
        group = is_ends ? min(group, group_num - 1) : max(group, 1u) - 1;
        unsigned first = group * stored.tiles_per_group;
        unsigned end = min(first + stored.tiles_per_group, stored.tile_num());
        return is_ends ? upper_bound(*this, first, end - 1, column)
                       : upper_bound(*this, first + 1, end, column) - 1;
    }

    // Returns how many rows' steps are at or below the column.
    __device__ unsigned count(int column) const
    {
        unsigned tile = tile_of(column);
        return upper_bound(steps, stored.first_row(tile), stored.last_row(tile) + 1, column);
    }

    // Reads a thread's four rows of a tile, scanned across the tiles first_tile .. last_tile.
    __device__ Four load(unsigned tile, unsigned first_tile, unsigned last_tile) const
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
        for (unsigned other = first_tile; is_ends && other < tile; ++other)
            for (int& step : v.at) step = max(step, (*this)[other]);
        for (unsigned other = tile + 1; !is_ends && other <= last_tile; ++other)
            for (int& step : v.at) step = min(step, (*this)[other]);
        return v;
    }
};

// Counts the rows at or below each of the block's TILE columns, four consecutive ones a thread, by
// marking where each of the near tiles' steps lies: the last row of a step marks the step's column
// with the rows up to it, and the running maximum of the marks is the count.
__device__ Four count_by_marks(
    const Staircase& stairs, unsigned first_tile, unsigned last_tile, int column_first,
    int column_last, int (&marks)[TILE], int (&warp_max)[WARPS])
{
    Four count;
    for (unsigned i = 0; i < PER_THREAD; ++i)
        marks[PER_THREAD * threadIdx.x + i] = (int)stairs.stored.first_row(first_tile);
    __syncthreads();
    for (unsigned tile = first_tile; tile <= last_tile; ++tile) {
        Four step = stairs.load(tile, first_tile, last_tile);
        int rows = (int)(stairs.stored.first_row(tile) + PER_THREAD * threadIdx.x);
        int next = __shfl_down_sync(FULL_MASK, step.at[0], 1);
        if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) next = NO_ROW;
        for (int i = 0; i < PER_THREAD; ++i) {
            int after = i + 1 < PER_THREAD ? step.at[i + 1] : next;
            if (step.at[i] != after && step.at[i] <= column_last)
                atomicMax(&marks[max(step.at[i], column_first) - column_first], rows + i + 1);
        }
    }
    __syncthreads();
    for (unsigned i = 0; i < PER_THREAD; ++i) count.at[i] = marks[PER_THREAD * threadIdx.x + i];
    block_running_max(count, warp_max);
    return count;
}

// The same by a search a column, for a tile whose columns lie far apart in the rows.
__device__ Four count_by_search(const Staircase& stairs, int column_first, int column_last)
{
    Four count;
    for (int i = 0; i < PER_THREAD; ++i) {
        int ahead = (int)(PER_THREAD * threadIdx.x) + i;
        count.at[i] = (int)stairs.count(column_first + min(ahead, column_last - column_first));
    }
    return count;
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void columns_of_staircases(
    int* ends,                  // (row_num,) as row_staircases leaves them
    int* starts,                // (row_num,)
    const int2* group_edges,    // (group_num,)
    unsigned row_num,           // in [1, INT32_MAX]
    unsigned tiles_per_group,
    unsigned group_num,         // in [1, TILE]
    int2* columns,              // (column_num,) of (LTS, UTE)
    unsigned column_num)        // in [1, INT32_MAX]
{
    __shared__ __align__(16) int group_ends[TILE];
    __shared__ __align__(16) int group_starts[TILE];
    __shared__ __align__(16) int marks_ute[TILE];
    __shared__ __align__(16) int marks_lts[TILE];
    __shared__ int warp_max[3][WARPS];
    __shared__ int warp_min[WARPS];

    Four max_e, min_s;
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned group = PER_THREAD * threadIdx.x + i;
        int2 edges = group < group_num ? group_edges[group] : make_int2(NO_ROW, NO_ROW);
        max_e.at[i] = edges.x;
        min_s.at[i] = edges.y;
    }
    block_running_max(max_e, warp_max[0]);
    block_running_min_from_right(min_s, warp_min);
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        group_ends[PER_THREAD * threadIdx.x + i] = max_e.at[i];
        group_starts[PER_THREAD * threadIdx.x + i] = min_s.at[i];
    }
    __syncthreads();

    // The block's columns, from an aligned pair on; column_first is -1 in front of a half pair.
    int column_first = (int)(blockIdx.x * TILE) - (int)column_lead(columns);
    int column_last = (int)min((unsigned)column_first + TILE - 1, column_num - 1);
    Staircases stored = {ends, starts, row_num, tiles_per_group};
    Staircase up = {ends, group_ends, true, group_num, stored};
    Staircase low = {starts, group_starts, false, group_num, stored};

    // Lanes 0 to 3 of every warp look up the tiles of both staircases at both ends of the columns.
    unsigned lane = threadIdx.x % WARP_THREADS;
    bool is_up = lane % 2 == 0;
    Staircase mine = {is_up ? ends : starts, is_up ? group_ends : group_starts, is_up, group_num, stored};
    unsigned tile = mine.tile_of(lane / 2 % 2 ? column_last : column_first);
    unsigned up_first = __shfl_sync(FULL_MASK, tile, 0), up_last = __shfl_sync(FULL_MASK, tile, 2);
    unsigned low_first = __shfl_sync(FULL_MASK, tile, 1), low_last = __shfl_sync(FULL_MASK, tile, 3);

    Four ute = up_last - up_first < NEAR_TILES
        ? count_by_marks(up, up_first, up_last, column_first, column_last, marks_ute, warp_max[1])
        : count_by_search(up, column_first, column_last);
    Four lts = low_last - low_first < NEAR_TILES
        ? count_by_marks(low, low_first, low_last, column_first, column_last, marks_lts, warp_max[2])
        : count_by_search(low, column_first, column_last);

    // A thread has four columns in a row; through shared memory the warp stores pairs side by side.
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        marks_ute[PER_THREAD * threadIdx.x + i] = ute.at[i];
        marks_lts[PER_THREAD * threadIdx.x + i] = max(lts.at[i], ute.at[i]);
    }
    __syncwarp();
    unsigned warp_first = (threadIdx.x - lane) * PER_THREAD;
    for (unsigned pair = lane; pair < WARP_THREADS * PER_THREAD / 2; pair += WARP_THREADS) {
        unsigned at = warp_first + 2 * pair;
        int2 a = make_int2(marks_lts[at], marks_ute[at]);
        int2 b = make_int2(marks_lts[at + 1], marks_ute[at + 1]);
        store_pair(columns, (unsigned)column_first + at, column_num, a, b);
    }
}

// Intervals of keys per row in, [LTS, UTE] per key column out. The rows are scanned to two staircases,
// and the bounds of a column count their steps (both drawn in staircase.cuh).
//
//   row_staircases          a block scans one group of row tiles; reads 8 * Q, writes 8 * Q bytes
//   columns_of_staircases   a block writes some tiles of columns; reads 8 * Q, writes 8 * N bytes
//
// For rows that are neither few (columns_few_rows.cu) nor many (columns_many_rows.cu).
//
// The steps of a staircase are counted for a tile of columns at once, by marks:
//
//     ends     2  2  3  5  5        rows 0 to 4, as in staircase.cuh
//     column   0  1  2  3  4        one tile
//     marks    0  0  2  3  0        at each step: how many rows have their end at or before it
//     UTE      0  0  2  3  3        the running maximum of the marks
//
// Blocks need no other block of their launch. Intervals are clipped to the keys of their sequence before
// they are used, and no address depends on one. So any bits in the arrays give some columns.

#include "columns.cuh"
#include "overlap.cuh"
#include "staircase.cuh"

#ifndef NEAR_TILES
#error "NEAR_TILES: row tiles with steps that a block reads for a tile of columns rather than searches"
#endif
static_assert(NEAR_TILES <= WARP_THREADS, "each has a bit");

// Writes the steps of four rows from `row` on, those below row_num.
__device__ void store_four(int* staircase, unsigned row, unsigned row_num, const Four& v)
{
    if (row + PER_THREAD <= row_num) {
        put_four(staircase + row, v);
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i)
        if (row + i < row_num) staircase[row + i] = v.at[i];
}

// Scans the edges of a group's tiles across the group, WARP_THREADS tiles a step: warp 0 those of ends,
// forward, and warp 1 those of starts, backward.
__device__ void block_link_tiles(const Staircases& stairs, unsigned first_tile, unsigned tile_end)
{
    unsigned lane = threadIdx.x % WARP_THREADS, warp = warp_index();
    if (warp == 0) {
        int so_far = -1;  // of the steps before
        for (unsigned step = first_tile; step < tile_end; step += WARP_THREADS) {
            unsigned tile = step + lane;
            int* edge = tile < tile_end ? stairs.ends + stairs.last_row(tile) : nullptr;
            int v = max(warp_running_max(edge ? *edge : -1), so_far);
            if (edge) *edge = v;
            so_far = __shfl_sync(FULL_MASK, v, WARP_THREADS - 1);
        }
    } else if (warp == 1) {
        int so_far = INT32_MAX_VALUE;
        for (unsigned end = tile_end; end > first_tile; end -= min(end - first_tile, WARP_THREADS)) {
            unsigned from_right = WARP_THREADS - lane;  // lane 31 has the last tile
            bool exists = end >= first_tile + from_right;
            int* edge = exists ? stairs.starts + stairs.first_row(end - from_right) : nullptr;
            int v = min(warp_running_min_from_right(edge ? *edge : INT32_MAX_VALUE), so_far);
            if (edge) *edge = v;
            so_far = __shfl_sync(FULL_MASK, v, 0);
        }
    }
}

// Shared memory of a block that scans rows. Tiles with even and odd numbers take turns, so that one
// barrier a tile is enough.
struct RowShared {
    WarpEdges max_edges[2], min_edges[2];  // [tile % 2]
};

// Writes the staircases of a group, tile by tile. Returns in the block's last thread the group's maximum
// of E as x, and in its first thread the group's minimum of S as y.
__device__ int2 block_scan_group(
    const Pack& pack, const Intervals& intervals, const Staircases& stairs, unsigned group,
    RowShared& shared)
{
    unsigned tile_end = stairs.tile_end(group);
    unsigned row = stairs.first_row(stairs.first_tile(group)) + PER_THREAD * threadIdx.x;
    Span rows = {stairs.first_row(stairs.first_tile(group)), stairs.last_row(tile_end - 1)};
    Four start, end;  // loaded while the sequences are searched
    load_intervals(intervals, row, start, end);
    RowWarp warp(pack);
    warp.window.range = block_narrow_sequences(warp.window.source, rows);
    int2 edges = {-1, INT32_MAX_VALUE};
#pragma unroll 1
    for (unsigned tile = stairs.first_tile(group); tile < tile_end; ++tile, row += TILE) {
        Four next_start = {}, next_end = {};  // loaded while this tile is scanned
        if (tile + 1 < tile_end) load_intervals(intervals, row + TILE, next_start, next_end);
        warp.warp_to_pack_coordinates(warp_uniform(row), {0, stairs.row_num - 1}, start, end);
        block_scan_tile(end, start, shared.max_edges[tile % 2], shared.min_edges[tile % 2]);
        store_four(stairs.ends, row, stairs.row_num, end);
        store_four(stairs.starts, row, stairs.row_num, start);
        edges.x = max(edges.x, end.at[PER_THREAD - 1]);
        edges.y = min(edges.y, start.at[0]);
        start = next_start;
        end = next_end;
    }
    return edges;
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void row_staircases(
    const unsigned* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    unsigned q_stride,             // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,      // (row_num, 2)
    int is_int64,
    unsigned row_num,              // in [1, INT32_MAX]; may be above cu_seqlens_q[batch]
    unsigned group_shift,
    int* ends,                     // (row_num,)
    int* starts,                   // (row_num,)
    int2* group_edges)             // (gridDim.x,), at most GROUPS
{
    __shared__ RowShared shared;
    let_next_launch_begin();
    Staircases stairs = {ends, starts, row_num, group_shift};
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    int2 edges = block_scan_group(pack, intervals, stairs, blockIdx.x, shared);
    if (threadIdx.x == BLOCK_THREADS - 1) group_edges[blockIdx.x].x = edges.x;
    if (threadIdx.x == 0) group_edges[blockIdx.x].y = edges.y;
    if (group_shift > 0) {
        __syncthreads();
        block_link_tiles(stairs, stairs.first_tile(blockIdx.x), stairs.tile_end(blockIdx.x));
    }
}

// Columns column_first .. column_last of a tile, and the row tiles that have steps among them, by one of
// the staircases.
struct ColumnTile {
    int column_first, column_last;
    unsigned first_tile, last_tile;
    unsigned steep;  // those that the block reads, a bit each from the first on
    bool are_few;    // they are so few that it reads them

    // Chooses the row tiles to read. Of three to 32, of groups of one tile, those are left out that have one
    // step for all of their rows. The rows of a long sequence mostly start at its first key: then only the
    // row tiles in which it begins and ends have more steps. 131,072 rows in 64 sequences, cut anywhere,
    // took 6.0 us rather than 7.3.
    template <bool ENDS>
    __device__ void warp_choose_tiles(const Staircase<ENDS>& stairs)
    {
        unsigned beyond_first = last_tile - first_tile;
        steep = beyond_first < WARP_THREADS ? (2u << beyond_first) - 1 : 0;
        are_few = beyond_first < NEAR_TILES;
        if (beyond_first < 2 || beyond_first >= WARP_THREADS || stairs.stored.group_shift > 0) return;
        unsigned lane = threadIdx.x % WARP_THREADS;
        bool is_steep = lane <= beyond_first && !stairs.is_level(first_tile + lane);
        steep = warp_uniform(__ballot_sync(FULL_MASK, is_steep));
        are_few = __popc(steep) <= NEAR_TILES;
    }

    // Returns where a step is among the columns: 0 for a step in front of them, their number for a step
    // behind them. Then no step needs a test whether it is among them (see warp_running_max).
    __device__ int place(int step) const
    {
        return min(max(step, column_first), column_last + 1) - column_first;
    }
};

// Marks the steps of a row tile.
template <bool ENDS>
__device__ void block_mark_tile(
    const Staircase<ENDS>& stairs, unsigned tile, const ColumnTile& columns, int* marks)
{
    Four step = stairs.load(tile);
    int rows = (int)(stairs.stored.first_row(tile) + PER_THREAD * threadIdx.x);
    int next = __shfl_down_sync(FULL_MASK, step.at[0], 1);
    if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) next = NO_ROW;
    if (next <= columns.column_first || step.at[0] > columns.column_last) return;
    int at = columns.place(step.at[0]);
    for (int i = 0; i < PER_THREAD; ++i) {
        int next_at = columns.place(i + 1 < PER_THREAD ? step.at[i + 1] : next);
        // Of rows with one place, the last has the highest count: only its mark is needed.
        if (at < next_at) atomicMax(marks + at, rows + i + 1);
        at = next_at;
    }
}

// Marks at the place of each step how many rows have their step at or below it. The running maximum of
// the marks is then the count for each column. Of a row tile that is not read its edge is the step.
template <bool ENDS>
__device__ void block_mark_steps(const Staircase<ENDS>& stairs, const ColumnTile& columns, int* marks)
{
    unsigned beyond_first = columns.last_tile - columns.first_tile;
    if (threadIdx.x <= beyond_first && !(columns.steep >> threadIdx.x & 1)) {
        unsigned tile = columns.first_tile + threadIdx.x;
        // At or before the last column: else the search for that one had ended at the tile beside it.
        int at = columns.place(stairs.group_edges[tile]);
        atomicMax(marks + at, (int)stairs.stored.last_row(tile) + 1);
    }
#pragma unroll 1
    for (unsigned steep = columns.steep; steep != 0; steep &= steep - 1)
        block_mark_tile(stairs, columns.first_tile + (unsigned)__ffs((int)steep) - 1, columns, marks);
}

// Returns how many rows have their step at or below each of the thread's four columns. A search for each
// column, for a block whose columns have steps in many row tiles.
template <bool ENDS>
__device__ Four count_by_search(const Staircase<ENDS>& stairs, const ColumnTile& columns)
{
    int column[PER_THREAD];
    for (int i = 0; i < PER_THREAD; ++i) {
        int ahead = (int)(PER_THREAD * threadIdx.x) + i;
        column[i] = columns.column_first + min(ahead, columns.column_last - columns.column_first);
    }
    return stairs.count(column);
}

// Returns the running maximum of the warp's marks, four a lane from `marks` on, and of `least`.
__device__ Four warp_count_rows(const int* marks, int least)
{
    Four v = get_four(marks);
    v = {{max(v.at[0], least), max(v.at[1], least), max(v.at[2], least), max(v.at[3], least)}};
    warp_running_max(v);
    return v;
}

// The row tiles that have steps among the columns of a tile: the first and the last of each staircase.
// Of the numbers of the four, `/ 2` tells the last from the first, and `% 2` starts from ends.
struct NearTiles {
    enum Which { FIRST_OF_ENDS, FIRST_OF_STARTS, LAST_OF_ENDS, LAST_OF_STARTS, NUM };
    unsigned at[NUM];
};

// Shared memory of a block that writes columns.
struct ColumnShared {
    __align__(16) int ute[TILE];  // first marks, then the bounds
    __align__(16) int lts[TILE];
    WarpEdges ute_edges, lts_edges;
    NearTiles near_tiles[2];  // [tile % 2]: the next tile's are found while this one's are read
};

// The columns of a tile, first .. last, from an aligned pair on. first is -1 in front of a half pair.
struct ColumnSpan {
    int first, last;
};

__device__ ColumnSpan span_of(unsigned tile, const int2* columns, unsigned column_num)
{
    unsigned first = tile * TILE - column_lead(columns);
    return {(int)first, (int)min(first + TILE - 1, column_num - 1)};
}

// Finds the near tiles of the columns, a warp for each of the four.
__device__ void block_find_near(
    const Staircase<true>& end_stairs, const Staircase<false>& start_stairs, ColumnSpan span,
    NearTiles& near_tiles)
{
#pragma unroll 1
    for (unsigned which = warp_index(); which < NearTiles::NUM; which += WARPS) {
        int column = which / 2 ? span.last : span.first;
        unsigned found = which % 2 ? start_stairs.warp_tile_of(column) : end_stairs.warp_tile_of(column);
        if (threadIdx.x % WARP_THREADS == 0) near_tiles.at[which] = found;
    }
}

// Stores the columns of the warp, which each thread has four of as (lts, ute). `first` is the tile's
// first column. Through shared memory a lane gets pairs beside those of the next lane, so that each
// store of the warp writes bytes in a row.
__device__ void warp_store_columns(
    const Four& lts, const Four& ute, unsigned lane, int2* columns, unsigned first, unsigned column_num,
    ColumnShared& shared)
{
    unsigned thread_first = PER_THREAD * threadIdx.x;
    put_four(shared.ute + thread_first, ute);
    put_four(shared.lts + thread_first, lts);
    __syncwarp();
    for (unsigned i = 0; i < PER_THREAD / 2; ++i) {
        unsigned at = thread_first - PER_THREAD * lane + 2 * (lane + WARP_THREADS * i);
        int2 pair_ute = *reinterpret_cast<int2*>(shared.ute + at);
        int2 pair_lts = *reinterpret_cast<int2*>(shared.lts + at);
        store_pair(
            columns, first + at, column_num,
            make_int2(pair_lts.x, pair_ute.x), make_int2(pair_lts.y, pair_ute.y));
    }
    __syncwarp();
}

// Turns the tile's marks into the threads' bounds, (lts, ute). LTS is no less than UTE.
__device__ void block_count_rows(
    const Staircase<true>& end_stairs, const Staircase<false>& start_stairs, const ColumnTile& by_ends,
    const ColumnTile& by_starts, Four& lts, Four& ute, ColumnShared& shared)
{
    unsigned thread_first = PER_THREAD * threadIdx.x;
    ute = warp_count_rows(shared.ute + thread_first, (int)(by_ends.first_tile * TILE));
    lts = warp_count_rows(shared.lts + thread_first, (int)(by_starts.first_tile * TILE));
    publish_max(ute, shared.ute_edges);
    publish_max(lts, shared.lts_edges);
    __syncthreads();
    fold_max_before(ute, shared.ute_edges);
    fold_max_before(lts, shared.lts_edges);
    if (!by_ends.are_few) ute = count_by_search(end_stairs, by_ends);
    if (!by_starts.are_few) lts = count_by_search(start_stairs, by_starts);
    for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);
}

// Writes the tiles tile .. tile_end - 1 of TILE columns each.
__device__ void block_write_columns(
    const Staircase<true>& end_stairs, const Staircase<false>& start_stairs, unsigned tile,
    unsigned tile_end, int2* columns, unsigned column_num, ColumnShared& shared)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned thread_first = PER_THREAD * threadIdx.x;
    ColumnSpan first_span = span_of(tile, columns, column_num);
    block_find_near(end_stairs, start_stairs, first_span, shared.near_tiles[tile % 2]);
#pragma unroll 1
    for (; tile < tile_end; ++tile) {
        ColumnSpan span = span_of(tile, columns, column_num);
        put_four(shared.ute + thread_first, {});
        put_four(shared.lts + thread_first, {});
        __syncthreads();
        const unsigned (&near)[NearTiles::NUM] = shared.near_tiles[tile % 2].at;
        ColumnTile by_ends = {
            span.first, span.last, warp_uniform(near[NearTiles::FIRST_OF_ENDS]),
            warp_uniform(near[NearTiles::LAST_OF_ENDS]), 0, false};
        ColumnTile by_starts = {
            span.first, span.last, warp_uniform(near[NearTiles::FIRST_OF_STARTS]),
            warp_uniform(near[NearTiles::LAST_OF_STARTS]), 0, false};
        by_ends.warp_choose_tiles(end_stairs);
        by_starts.warp_choose_tiles(start_stairs);
        if (by_ends.are_few) block_mark_steps(end_stairs, by_ends, shared.ute);
        if (by_starts.are_few) block_mark_steps(start_stairs, by_starts, shared.lts);
        // The next tile's near tiles are found now, so that it need not wait for their loads: 16 M rows
        // and columns took 167 us rather than 178.
        if (tile + 1 < tile_end) {
            ColumnSpan next = span_of(tile + 1, columns, column_num);
            block_find_near(end_stairs, start_stairs, next, shared.near_tiles[(tile + 1) % 2]);
        }
        __syncthreads();
        Four lts, ute;
        block_count_rows(end_stairs, start_stairs, by_ends, by_starts, lts, ute, shared);
        warp_store_columns(lts, ute, lane, columns, (unsigned)span.first, column_num, shared);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_of_staircases(
    int* ends,                 // (row_num,) as row_staircases leaves them
    int* starts,               // (row_num,)
    const int2* group_edges,   // (group_num,)
    unsigned row_num,          // in [1, INT32_MAX]
    unsigned group_shift,
    unsigned group_num,        // in [1, GROUPS]
    int2* columns,             // (column_num,) of (LTS, UTE)
    unsigned column_num,       // in [1, INT32_MAX]
    unsigned tiles_per_block)  // of columns
{
    __shared__ ColumnShared shared;
    __shared__ int group_ends[GROUPS], group_starts[GROUPS];
    __shared__ WarpEdges max_edges, min_edges;
    wait_for_launch_before();
    block_scan_group_edges(group_edges, group_num, group_ends, group_starts, max_edges, min_edges);
    Staircases stored = {ends, starts, row_num, group_shift};
    Staircase<true> end_stairs = {ends, group_ends, group_num, stored};
    Staircase<false> start_stairs = {starts, group_starts, group_num, stored};
    unsigned column_tile_num = (column_num + column_lead(columns) + TILE - 1) / TILE;
    unsigned tile = blockIdx.x * tiles_per_block;
    unsigned tile_end = min(tile + tiles_per_block, column_tile_num);
    block_write_columns(end_stairs, start_stairs, tile, tile_end, columns, column_num, shared);
}

// Intervals of keys per row in, [LTS, UTE] per key column out: the rows are scanned to staircases
// (staircase.cuh), and the columns are read off as the staircases' inverse.
//
//   row_staircases          a block scans one group of row tiles; reads 8 * Q, writes 8 * Q bytes
//   columns_of_staircases   a block writes some tiles of columns; reads 8 * Q, writes 8 * N bytes
//   columns_of_few_rows     both at once where the staircases fit in shared memory: every block
//                           scans all rows for itself; writes 8 * N bytes
//
// No block waits for another. Values are clipped to their sequence's keys before they are used, and
// no address depends on one, so that any bits whatever in the arrays give some columns.

#include "columns.cuh"
#include "overlap.cuh"
#include "staircase.cuh"

#ifndef NEAR_TILES
#error "NEAR_TILES: row tiles that a block reads whole for a tile of columns rather than searches"
#endif
#ifndef FEW_TILES_SHIFT
#error "FEW_TILES_SHIFT: 2**this row tiles have staircases that fit in a block's shared memory"
#endif

#define FEW_TILES (1 << FEW_TILES_SHIFT)

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
    unsigned lane = threadIdx.x % WARP_THREADS, warp = warp_index();
    if (warp == 0) {
        int so_far = -1;
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

// Shared memory of a block that scans rows.
struct RowShared {
    WarpEdges max_edges[2], min_edges[2];  // by the tile's parity: one barrier a tile is enough
};

// Scans a group of tiles, one by one, to the staircases. Returns in the block's last thread the
// group's maximum of E as x, in its first the minimum of S as y.
__device__ int2 scan_group(
    const Pack& pack, const Intervals& intervals, const Staircases& stairs, unsigned group,
    RowShared& shared)
{
    unsigned tile_end = stairs.tile_end(group);
    unsigned row = stairs.first_row(stairs.first_tile(group)) + PER_THREAD * threadIdx.x;
    Span rows = {stairs.first_row(stairs.first_tile(group)), stairs.last_row(tile_end - 1)};
    Four start, end;  // in flight while the sequences are searched
    load_intervals(intervals, row, start, end);
    RowWarp warp(pack, stairs.row_num, rows);
    int2 edges = {-1, INT32_MAX_VALUE};
#pragma unroll 1
    for (unsigned tile = stairs.first_tile(group); tile < tile_end; ++tile, row += TILE) {
        Four next_start = {}, next_end = {};  // in flight while this tile is scanned
        if (tile + 1 < tile_end) load_intervals(intervals, row + TILE, next_start, next_end);
        warp.to_pack_coordinates(row, start, end);
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
    int2 edges = scan_group(pack, intervals, stairs, blockIdx.x, shared);
    if (threadIdx.x == BLOCK_THREADS - 1) group_edges[blockIdx.x].x = edges.x;
    if (threadIdx.x == 0) group_edges[blockIdx.x].y = edges.y;
    if (group_shift > 0) {
        __syncthreads();
        link_tiles(stairs, stairs.first_tile(blockIdx.x), stairs.tile_end(blockIdx.x));
    }
}

// Columns column_first .. column_last of a tile, and the tiles of rows whose steps lie among them.
struct ColumnTile {
    int column_first, column_last;
    unsigned first_tile, last_tile;
    __device__ bool is_near() const { return last_tile - first_tile < NEAR_TILES; }

    // Where a step lies among the columns: at the first of them if in front of it, behind the last if
    // behind it.
    __device__ int place(int step) const
    {
        return min(max(step, column_first), column_last + 1) - column_first;
    }
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
        if (next <= here.column_first || step.at[0] > here.column_last) continue;
        int at = here.place(step.at[0]);
        for (int i = 0; i < PER_THREAD; ++i) {
            int next_at = here.place(i + 1 < PER_THREAD ? step.at[i + 1] : next);
            if (at < next_at) atomicMax(marks + at, rows + i + 1);
            at = next_at;
        }
    }
}

// Returns the rows at or below the thread's four columns by searches, where the block's columns lie
// far apart in the rows.
template <bool ENDS>
__device__ Four count_by_search(const Staircase<ENDS>& stairs, const ColumnTile& here)
{
    int column[PER_THREAD];
    for (int i = 0; i < PER_THREAD; ++i) {
        int ahead = (int)(PER_THREAD * threadIdx.x) + i;
        column[i] = here.column_first + min(ahead, here.column_last - here.column_first);
    }
    return stairs.count(column);
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
struct ColumnSpan {
    int first, last;
};

__device__ ColumnSpan span_of(unsigned tile, const int2* columns, unsigned column_num)
{
    unsigned first = tile * TILE - column_lead(columns);
    return {(int)first, (int)min(first + TILE - 1, column_num - 1)};
}

// Looks up the tiles of rows whose steps lie among the columns, a warp for each end of each staircase.
// Few tiles are near as they are, and need no search.
__device__ void find_near(
    const Staircase<true>& up, const Staircase<false>& low, ColumnSpan span, unsigned (&near)[4])
{
    unsigned tile_num = up.stored.tile_num();
    if (tile_num <= NEAR_TILES) {
        if (threadIdx.x < 4) near[threadIdx.x] = threadIdx.x / 2 * (tile_num - 1);
        return;
    }
#pragma unroll 1
    for (unsigned job = warp_index(); job < 4; job += WARPS) {
        int column = job / 2 ? span.last : span.first;
        unsigned found = job % 2 ? low.tile_of(column) : up.tile_of(column);
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
        ColumnSpan span = span_of(tile, columns, column_num);
        put_four(shared.ute + own, {});
        put_four(shared.lts + own, {});
        __syncthreads();
        const unsigned (&near)[4] = shared.near[tile % 2];
        ColumnTile by_ends = {span.first, span.last, warp_uniform(near[0]), warp_uniform(near[2])};
        ColumnTile by_starts = {span.first, span.last, warp_uniform(near[1]), warp_uniform(near[3])};
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
    scan_group_edges(group_edges, group_num, group_ends, group_starts, max_edges, min_edges);
    Staircases stored = {ends, starts, row_num, group_shift};
    Staircase<true> up = {ends, group_ends, group_num, stored};
    Staircase<false> low = {starts, group_starts, group_num, stored};
    unsigned column_tile_num = (column_num + column_lead(columns) + TILE - 1) / TILE;
    unsigned tile = blockIdx.x * tiles_per_block;
    unsigned tile_end = min(tile + tiles_per_block, column_tile_num);
    write_columns(up, low, tile, tile_end, columns, column_num, shared);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_of_few_rows(
    const unsigned* cu_seqlens_q,  // as for row_staircases
    const unsigned* cu_seqlens_k,
    unsigned q_stride,
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,              // in [1, FEW_TILES * TILE]
    int2* columns,                 // as for columns_of_staircases
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
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    int2 found = scan_group(pack, intervals, stored, 0, shared.rows);
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


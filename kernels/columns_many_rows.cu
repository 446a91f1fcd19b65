// Intervals of many rows in, [LTS, UTE] per key column out. Unlike columns_intervals.cu it stores no
// staircase (staircase.cuh draws them), but one edge of each for a strip of STRIP rows. The rows are read
// again for the columns and marked there (marks.cuh): 24 bytes for a row and a column rather than 32, and
// two thirds of the instructions. 16 M rows of one sequence, sorted, took 123 us rather than 174.
//
//   edges_of_strips        a block reads one group of strips; reads 8 * Q
//   columns_of_many_rows   a warp writes some tiles of STRIP columns, and finds the strips with their
//                          steps by the edges; reads 8 * Q, writes 8 * N bytes
//
// Strips are in groups, one group a block, so that no block waits for another:
//   - the end at a strip's edge is the maximum of E over the strips of its group up to this one,
//   - the start at its edge is the minimum of S over the strips of its group from this one on,
//   - group_edges[g] is (maximum of E, minimum of S) of the group.
//
// Mostly the last row of a sequence sees its first key. Then LTS is the sequence's end for all of its
// columns, and no start is looked at.

#include "marks.cuh"
#include "overlap.cuh"

// Where the edges of row_num rows are, and which strips belong together. A group has 2**group_shift
// strips for each warp of a block.
struct Edges {
    int* ends;    // (strip_num,)
    int* starts;  // (strip_num,)
    unsigned row_num, group_shift;

    __device__ unsigned strip_num() const { return (row_num + STRIP - 1) / STRIP; }
    __device__ unsigned strips_a_group() const { return (unsigned)WARPS << group_shift; }
    __device__ unsigned group_of(unsigned strip) const { return strip / WARPS >> group_shift; }
    __device__ unsigned first_strip(unsigned group) const { return group * strips_a_group(); }
    __device__ unsigned strip_end(unsigned group) const
    {
        return min((group + 1) * strips_a_group(), strip_num());
    }
};

// One of the two staircases, ends or starts, and the search in it. A template rather than a flag: the
// kernel that writes 64 M columns took 345 us rather than 421.
template <bool ENDS>
struct StripEdges {
    // A search of edges finds the first strip whose edge is above the column. For ends the column's step
    // is in that strip. For starts it is in the strip before it.
    static constexpr unsigned OVERSHOOT = ENDS ? 0 : 1;

    Edges edges;
    const int* group_edges;  // (group_num,) scanned over the groups, in shared memory
    unsigned group_num;

    // Returns the edge of a strip, scanned across its group.
    __device__ int operator[](unsigned strip) const { return (ENDS ? edges.ends : edges.starts)[strip]; }

    // Returns how many strips have their edge, scanned over all groups, at or below the column. All lanes
    // have one column. Of the group in which they end one strip need not be searched: for ends the last,
    // whose edge is above the column, and for starts the first, whose edge is not.
    __device__ unsigned warp_count(int column) const
    {
        unsigned found = warp_upper_bound(group_edges, 0, group_num, column);
        if (found == (ENDS ? group_num : 0)) return ENDS ? edges.strip_num() : 0;
        unsigned group = found - OVERSHOOT, first = edges.first_strip(group) + OVERSHOOT;
        return warp_upper_bound(*this, first, edges.strip_end(group) - 1 + OVERSHOOT, column);
    }

    // Returns the edge of the group before (for starts: behind) this one, over all of those.
    __device__ int beside_group(unsigned group) const
    {
        if (ENDS) return group == 0 ? -1 : group_edges[group - 1];
        return group + 1 == group_num ? NO_ROW : group_edges[group + 1];
    }

    // Returns the edge of a strip, scanned over all groups. Behind all strips is none.
    __device__ int scanned(unsigned strip) const
    {
        if (strip >= edges.strip_num()) return NO_ROW;
        int edge = (*this)[strip], beside = beside_group(edges.group_of(strip));
        return ENDS ? max(edge, beside) : min(edge, beside);
    }
};

// The edges of up to 32 strips of a warp, one a lane.
struct LaneEdges {
    int end, start;
};

// Reads the rows of a warp's strips, and writes their edges: of ends, scanned up to the strip; of starts,
// the strip's own, which are scanned later. Keeps those of the last 32, which the lanes have not written.
// Returns the maximum of E and the minimum of S of them all.
__device__ int2 warp_read_strips(
    RowWarp& warp, const Intervals& intervals, const Edges& edges, unsigned strip, unsigned strip_end,
    LaneEdges& kept)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    Span rows = {0, edges.row_num - 1};
    int2 all = {-1, NO_ROW};
    int least = NO_ROW;  // of the strip
    Four start, end;
    if (strip < strip_end) load_intervals(intervals, strip * STRIP + PER_THREAD * lane, start, end);
#pragma unroll 1
    for (unsigned i = 0; strip + i < strip_end; ++i) {
        unsigned first = (strip + i) * STRIP;
        Four next_start = {}, next_end = {};  // loaded while this strip is reduced
        if (strip + i + 1 < strip_end)
            load_intervals(intervals, first + STRIP + PER_THREAD * lane, next_start, next_end);
        warp.warp_to_pack_coordinates(first, rows, start, end);
        all.x = max(all.x, warp_max(max_of(end)));
        least = warp_min(min_of(start));
        if (lane == i % WARP_THREADS) kept = {all.x, least};
        all.y = min(all.y, least);
        start = next_start;
        end = next_end;
        if (i % WARP_THREADS < WARP_THREADS - 1 || strip + i + 1 == strip_end) continue;
        edges.ends[strip + i - (WARP_THREADS - 1) + lane] = kept.end;
        edges.starts[strip + i - (WARP_THREADS - 1) + lane] = kept.start;
    }
    return all;
}

// Writes the edges of a warp's strips, which the lanes have of the last 32 and wrote of the others,
// scanned over those of the other warps, `before` of which is in front and `behind` behind them.
__device__ void warp_link_strips(
    const Edges& edges, unsigned strip, unsigned strip_end, LaneEdges kept, int before, int behind)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    if (strip >= strip_end) return;
    unsigned last_steps = (strip_end - strip - 1) / WARP_THREADS;
#pragma unroll 1
    for (unsigned step = last_steps + 1; step-- > 0;) {
        unsigned at = strip + step * WARP_THREADS + lane;
        bool exists = at < strip_end;
        if (step < last_steps) kept = {edges.ends[at], edges.starts[at]};
        behind = min(warp_running_min_from_right(exists ? kept.start : NO_ROW), behind);
        if (exists) {
            edges.ends[at] = max(kept.end, before);
            edges.starts[at] = behind;
        }
        behind = __shfl_sync(FULL_MASK, behind, 0);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void edges_of_strips(
    const unsigned* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    unsigned q_stride,             // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,      // (row_num, 2)
    int is_int64,
    unsigned row_num,              // in [1, INT32_MAX]; may be above cu_seqlens_q[batch]
    unsigned group_shift,
    int* ends,                     // (strips,)
    int* starts,                   // (strips,)
    int2* group_edges)             // (gridDim.x,), at most GROUPS
{
    __shared__ WarpEdges max_edges, min_edges;
    let_next_launch_begin();
    Edges edges = {ends, starts, row_num, group_shift};
    unsigned group_first = edges.first_strip(blockIdx.x), group_end = edges.strip_end(blockIdx.x);
    unsigned strip = group_first + (warp_index() << group_shift);
    unsigned strip_end = min(strip + (1u << group_shift), group_end);
    RowWarp warp({{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch});
    Span rows = {group_first * STRIP, min(group_end * STRIP, row_num) - 1};
    warp.window.range = block_narrow_sequences(warp.window.source, rows);
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    LaneEdges kept;
    int2 all = warp_read_strips(warp, intervals, edges, strip, strip_end, kept);
    if (threadIdx.x % WARP_THREADS == 0) {
        max_edges.at[threadIdx.x / WARP_THREADS] = all.x;
        min_edges.at[threadIdx.x / WARP_THREADS] = all.y;
    }
    __syncthreads();
    int before = warp_max_before(max_edges), behind = warp_min_behind(min_edges);
    warp_link_strips(edges, strip, strip_end, kept, before, behind);
    if (threadIdx.x == BLOCK_THREADS - 1) group_edges[blockIdx.x].x = max(before, all.x);
    if (threadIdx.x == 0) group_edges[blockIdx.x].y = min(behind, all.y);
}

// The edges of 32 strips in a row, one a lane, scanned over all groups: a warp finds in them which strips
// have steps among its columns. It goes on with the columns. All edges before it are at or below them.
template <bool ENDS>
struct StripWindow {
    StripEdges<ENDS> stairs;
    unsigned first;  // lane 0's strip
    int edge;

    // At first all edges are ended, so that the first column is searched.
    __device__ explicit StripWindow(const StripEdges<ENDS>& stairs) : stairs(stairs), first(0), edge(-1) {}

    // Returns how many strips have their edge at or below the column, and that of the next as next_edge.
    __device__ unsigned warp_count(int column, int& next_edge)
    {
        unsigned ended = __popc(__ballot_sync(FULL_MASK, edge <= column));
        if (ended == WARP_THREADS) {
            first = warp_uniform(stairs.warp_count(column));
            edge = stairs.scanned(first + threadIdx.x % WARP_THREADS);
            ended = 0;
        }
        next_edge = __shfl_sync(FULL_MASK, edge, ended);
        return first + ended;
    }
};

// Marks the rows of the strips that have steps of one of the staircases among the tile's columns. From
// a strip the next is found by the edge: the first whose edge is above it (for starts: the last whose edge
// is that of the strip behind). So strips without a step are ended over, however many.
template <bool ENDS>
__device__ void warp_mark_steps(
    const MarkedTile& tile, RowWarp& warp, const Intervals& intervals, StripWindow<ENDS>& window)
{
    if (!tile.has_rows()) return;
    unsigned first = tile.first_row / STRIP, last = (tile.row_end - 1) / STRIP;
    int column = max(tile.columns.first, 0);
#pragma unroll 1
    while (column <= tile.columns.last) {
        int next = column + 1;  // the least next column: the loop ends whatever the edges are
        unsigned strip = window.warp_count(column, column) - StripEdges<ENDS>::OVERSHOOT;
        column = max(column, next);
        if (strip - first > last - first) continue;
        Four start, end;
        unsigned in_strip = PER_THREAD * (threadIdx.x % WARP_THREADS);
        load_intervals(intervals, strip * STRIP + in_strip, start, end);
        warp_mark_strip(tile, warp, strip, start, end, ENDS, !ENDS);
    }
}

// A warp that writes tiles of STRIP columns, forward, by the edges of the rows' staircases.
struct ColumnWarp {
    Pack pack;
    Intervals intervals;
    SequenceRange range;  // of the block's columns
    StripWindow<true> ends;
    StripWindow<false> starts;
    RowWarp rows;
    // Of the last tile:
    SequenceRange sequences;
    unsigned first_row, row_end;
    bool is_level;       // it has one sequence, whose LTS is one number
    bool needs_starts;
    unsigned q_end;

    __device__ ColumnWarp(
        const Pack& pack, const Intervals& intervals, const SequenceRange& range,
        const StripEdges<true>& ends, const StripEdges<false>& starts)
        : pack(pack), intervals(intervals), range(range), ends(ends), starts(starts), rows(pack),
          sequences{NO_END, NO_END}, first_row(0), row_end(0), is_level(false), needs_starts(false), q_end(0)
    {
    }

    // Returns how many sequences of the window end at or before the column.
    __device__ unsigned warp_count_ended(unsigned column) const
    {
        bool has_ended = (unsigned)rows.window.lane_sequence.kv_end <= column;
        return __popc(__ballot_sync(FULL_MASK, has_ended));
    }

    __device__ unsigned warp_search(unsigned from, unsigned column) const
    {
        unsigned lo = max(from, range.lo), hi = max(lo, range.hi);
        return warp_upper_bound(SequenceEnds{pack.k}, lo, hi, column);
    }

    // Finds the sequences of a tile's columns. Lets the window of sequences begin at or before them.
    __device__ SequenceRange warp_find_sequences(ColumnSpan columns)
    {
        unsigned first_column = (unsigned)max(columns.first, 0), last_column = (unsigned)columns.last;
        auto& window = rows.window;
        unsigned ended = warp_count_ended(first_column);
        if (ended == WARP_THREADS) {
            window.warp_load(warp_uniform(warp_search(window.first + WARP_THREADS, first_column)));
            ended = warp_count_ended(first_column);
        }
        unsigned first = min(window.first + ended, pack.batch);
        ended = warp_count_ended(last_column);
        unsigned last = min(window.first + ended, pack.batch);
        if (ended == WARP_THREADS && last < pack.batch)
            last = warp_uniform(warp_search(window.first + WARP_THREADS, last_column));
        return {first, max(first, last)};
    }

    // Learns what the tile's sequences say of it, if they are not those of the tile before.
    __device__ void warp_enter(const SequenceRange& found)
    {
        bool was_one = sequences.lo == sequences.hi;
        if (was_one && found.lo == sequences.lo && found.hi == sequences.hi) return;
        sequences = found;
        unsigned q_start = pack.q[found.lo];
        q_end = pack.q[min(found.hi + 1, pack.batch)];
        first_row = warp_uniform(min(q_start, intervals.row_num));
        row_end = warp_uniform(min(q_end, intervals.row_num));
        is_level = false;
        if (found.lo != found.hi) return;
        is_level = warp_uniform(is_flat(intervals, q_start, q_end));
        needs_starts = !is_level;
    }

    // Begins anew with the rows of the tile's sequences.
    __device__ void warp_restart_rows()
    {
        rows.sequence = {};
        rows.window.range = sequences;
        if (rows.window.first > sequences.lo) rows.window.warp_load(sequences.lo);
    }

    // Writes a tile's columns.
    __device__ void warp_write(ColumnSpan columns, int2* out, unsigned column_num, ColumnShared& shared)
    {
        unsigned thread_first = PER_THREAD * threadIdx.x;
        unsigned warp_first = thread_first - PER_THREAD * (threadIdx.x % WARP_THREADS);
        warp_enter(warp_find_sequences(columns));
        bool is_one = sequences.lo == sequences.hi;
        int most = is_one ? (int)q_end : NO_ROW;
        put_four(shared.ute + thread_first, {{most, most, most, most}});
        if (!is_level) {
            int least = is_one ? (int)first_row : 0;
            put_four(shared.lts + thread_first, {{least, least, least, least}});
        }
        __syncwarp();
        MarkedTile tile = {
            columns, sequences, first_row, row_end, shared.ute + warp_first, shared.lts + warp_first};
        if (!is_one) {
            bool is_due = mark_sequences<false, WARP_THREADS>(tile, pack, intervals);
            needs_starts = __ballot_sync(FULL_MASK, is_due) != 0;
        }
        warp_restart_rows();
        warp_mark_steps(tile, rows, intervals, ends);
        if (needs_starts) {
            warp_restart_rows();
            warp_mark_steps(tile, rows, intervals, starts);
        }
        __syncwarp();
        Four ute = get_four(shared.ute + thread_first), lts;
        warp_running_min_from_right(ute);
        if (is_level) {
            lts = {{(int)q_end, (int)q_end, (int)q_end, (int)q_end}};
        } else {
            lts = get_four(shared.lts + thread_first);
            warp_running_max(lts);
        }
        for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);
        warp_store_columns(lts, ute, out, (unsigned)columns.first, column_num, shared);
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_of_many_rows(
    const unsigned* cu_seqlens_q,  // all as for edges_of_strips
    const unsigned* cu_seqlens_k,
    unsigned q_stride,
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,
    unsigned group_shift,
    int* ends,                // (strips,) as edges_of_strips leaves them
    int* starts,              // (strips,)
    const int2* group_edges,  // (group_num,)
    unsigned group_num,       // in [1, GROUPS]
    int2* columns,            // (column_num,) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned tiles_per_warp)  // of STRIP columns
{
    __shared__ ColumnShared shared;
    __shared__ int group_ends[GROUPS], group_starts[GROUPS];
    __shared__ WarpEdges max_edges, min_edges;
    unsigned tile_num = (column_num + column_lead(columns) + STRIP - 1) / STRIP;
    unsigned block_first = blockIdx.x * WARPS * tiles_per_warp;
    unsigned block_end = min(block_first + WARPS * tiles_per_warp, tile_num);
    if (block_first >= block_end) return;
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    SequenceRange range = block_narrow_to_columns(
        pack, span_of(block_first, STRIP, columns, column_num),
        span_of(block_end - 1, STRIP, columns, column_num));
    Edges edges = {ends, starts, row_num, group_shift};
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    ColumnWarp warp(
        pack, intervals, range, {edges, group_ends, group_num}, {edges, group_starts, group_num});
    wait_for_launch_before();
    block_scan_group_edges(group_edges, group_num, group_ends, group_starts, max_edges, min_edges);
    unsigned tile = block_first + warp_index() * tiles_per_warp;
    unsigned tile_end = min(tile + tiles_per_warp, block_end);
#pragma unroll 1
    for (; tile < tile_end; ++tile)
        warp.warp_write(span_of(tile, STRIP, columns, column_num), columns, column_num, shared);
}

// Columns of rows in any order: each row is marked at its columns.
//
//     E        2  1  3  5  5        rows 0 to 4, as in staircase.cuh
//     column   0  1  2  3  4        one tile
//     marks    -  0  2  -  3        at E - 1 the first row that ends there: the least of these
//     UTE      0  0  2  3  3        the running minimum of the marks from the right
//
// LTS is the running maximum of marks at S, each the number of rows up to the last that starts there.
// Rows are read by strips, the rows of a warp. No address depends on a bound that cuts tell but after it
// is clipped to what there is. So any bits in the arrays give some columns, whose bounds may be of rows
// that there are not.

#include "columns.cuh"
#include "scans.cuh"

__device__ int max_of(const Four& v) { return max(max(v.at[0], v.at[1]), max(v.at[2], v.at[3])); }
__device__ int min_of(const Four& v) { return min(min(v.at[0], v.at[1]), min(v.at[2], v.at[3])); }

// The columns of a tile, first .. last. The first tile begins with an aligned pair: first is -1 in front
// of half a pair.
struct ColumnSpan {
    int first, last;
};

// Returns the columns of a tile of `length`.
__device__ ColumnSpan span_of(unsigned tile, unsigned length, const int2* columns, unsigned column_num)
{
    unsigned first = tile * length - column_lead(columns);
    return {(int)first, (int)min(first + length - 1, column_num - 1)};
}

// A tile of columns whose marks are made. Its rows are those of its columns' sequences.
struct MarkedTile {
    ColumnSpan columns;
    SequenceRange sequences;
    unsigned first_row, row_end;
    int* ute;  // the marks, in shared memory
    int* lts;

    __device__ bool has_rows() const { return first_row < row_end; }

    // Marks the ends of a warp's rows, four a lane from `row` on: at the last column that a row sees,
    // the row. A row needs no mark if one before it ends no earlier, here or in the lane before: where
    // all rows end at one key, one lane marks it.
    __device__ void warp_mark_ends(unsigned row, const Four& end) const
    {
        int before = __shfl_up_sync(FULL_MASK, max_of(end), 1);
        if (threadIdx.x % WARP_THREADS == 0) before = -1;
        before = max(before, columns.first);
        if (__ballot_sync(FULL_MASK, max_of(end) > before) == 0) return;
        for (unsigned i = 0; i < PER_THREAD; ++i) {
            int at = min(end.at[i], columns.last + 1);
            if (at > before) atomicMin(ute + (at - 1 - columns.first), (int)(row + i));
            before = max(before, at);
        }
    }

    // Marks the starts: at the first column that a row sees, how many rows there are up to it.
    __device__ void warp_mark_starts(unsigned row, const Four& start) const
    {
        int behind = __shfl_down_sync(FULL_MASK, min_of(start), 1);
        if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) behind = NO_ROW;
        behind = min(behind, columns.last + 1);
        if (__ballot_sync(FULL_MASK, min_of(start) < behind) == 0) return;
        for (int i = PER_THREAD - 1; i >= 0; --i) {
            int at = max(start.at[i], columns.first);
            if (at < behind) atomicMax(lts + (at - columns.first), (int)row + i + 1);
            behind = min(behind, at);
        }
    }

    // Makes of rows that are not the tile's such as see nothing.
    __device__ void hide_other_rows(unsigned row, Four& start, Four& end) const
    {
        for (unsigned i = 0; i < PER_THREAD; ++i) {
            if (row + i >= first_row && row + i < row_end) continue;
            start.at[i] = NO_ROW;
            end.at[i] = -1;
        }
    }
};

// Marks the ends of a strip's rows, the starts, or both.
__device__ void warp_mark_strip(
    const MarkedTile& tile, RowWarp& warp, unsigned strip, Four& start, Four& end, bool has_ends,
    bool has_starts)
{
    unsigned first = strip * STRIP, row = first + PER_THREAD * (threadIdx.x % WARP_THREADS);
    warp.warp_to_pack_coordinates(first, {tile.first_row, tile.row_end - 1}, start, end);
    if (first < tile.first_row || first + STRIP > tile.row_end) tile.hide_other_rows(row, start, end);
    if (has_ends) tile.warp_mark_ends(row, end);
    if (has_starts) tile.warp_mark_starts(row, start);
}

__device__ void load_strip(const Intervals& intervals, unsigned strip, Four& start, Four& end)
{
    load_intervals(intervals, strip * STRIP + PER_THREAD * (threadIdx.x % WARP_THREADS), start, end);
}

// Returns whether LTS is the end of a sequence's rows for all of its columns, of which there are some. It
// is if the last row sees the first key, or there are no rows.
__device__ bool is_flat(const Intervals& intervals, unsigned q_start, unsigned q_end)
{
    if (q_start == q_end) return true;
    if (q_start > q_end || q_end > intervals.row_num) return false;
    int start, end;
    load_interval(intervals, q_end - 1, start, end);
    return start <= 0 && end > 0;
}

// A sequence of columns.
struct Sequence {
    unsigned q_start, q_end;
    int kv_start, kv_end;
};

// Returns sequence b. That of the padding has all further columns.
__device__ Sequence load_sequence(const Pack& pack, unsigned b)
{
    unsigned behind = min(b + 1, pack.batch);
    return {pack.q[b], pack.q[behind], (int)pack.k[b], b < pack.batch ? (int)pack.k[behind] : NO_ROW};
}

// Marks a sequence: no row behind it sees its last column, and none before it its first. If flat, neither
// do starts matter. Returns whether they do. FEW: all starts are marked.
template <bool FEW>
__device__ bool mark_sequence(const MarkedTile& tile, const Intervals& intervals, const Sequence& sequence)
{
    int first = max(sequence.kv_start, tile.columns.first);
    int end = min(sequence.kv_end, tile.columns.last + 1);
    if (first >= end) return false;
    bool flat = !FEW && is_flat(intervals, sequence.q_start, sequence.q_end);
    atomicMin(tile.ute + (end - 1 - tile.columns.first), (int)sequence.q_end);
    atomicMax(tile.lts + (first - tile.columns.first), (int)(flat ? sequence.q_end : sequence.q_start));
    return !flat;
}

// Marks all sequences of the columns, of which THREADS threads take turns. If they are more than the
// columns, most are empty, and each column looks for its own.
template <bool FEW, unsigned THREADS>
__device__ bool mark_sequences(const MarkedTile& tile, const Pack& pack, const Intervals& intervals)
{
    bool needs_starts = false;
    unsigned index = threadIdx.x % THREADS, length = tile.sequences.hi - tile.sequences.lo;
    if (length < PER_THREAD * THREADS) {
#pragma unroll 1
        for (unsigned i = index; i <= length; i += THREADS)
            needs_starts |= mark_sequence<FEW>(tile, intervals, load_sequence(pack, tile.sequences.lo + i));
        return needs_starts;
    }
    unsigned column = (unsigned)max(tile.columns.first, 0) + index;
#pragma unroll 1
    for (; column <= (unsigned)tile.columns.last; column += THREADS) {
        unsigned lo[] = {tile.sequences.lo}, hi[] = {tile.sequences.hi}, columns[] = {column};
        upper_bounds(SequenceEnds{pack.k}, lo, hi, columns);
        needs_starts |= mark_sequence<FEW>(tile, intervals, load_sequence(pack, lo[0]));
    }
    return needs_starts;
}

// Shared memory of a block that writes columns, four a thread.
struct ColumnShared {
    __align__(16) int ute[TILE];  // first marks, then the bounds
    __align__(16) int lts[TILE];
};

// Stores STRIP columns from `first` on, of which each lane has four as (lts, ute). Through shared memory a
// lane gets pairs beside those of the next lane, so that each store of the warp writes bytes in a row.
__device__ void warp_store_columns(
    const Four& lts, const Four& ute, int2* columns, unsigned first, unsigned column_num,
    ColumnShared& shared)
{
    unsigned lane = threadIdx.x % WARP_THREADS, thread_first = PER_THREAD * threadIdx.x;
    put_four(shared.lts + thread_first, lts);
    put_four(shared.ute + thread_first, ute);
    __syncwarp();
    for (unsigned i = 0; i < PER_THREAD / 2; ++i) {
        unsigned in_strip = 2 * (lane + WARP_THREADS * i), at = thread_first - PER_THREAD * lane + in_strip;
        int2 pair_ute = *reinterpret_cast<int2*>(shared.ute + at);
        int2 pair_lts = *reinterpret_cast<int2*>(shared.lts + at);
        store_pair(
            columns, first + in_strip, column_num,
            make_int2(pair_lts.x, pair_ute.x), make_int2(pair_lts.y, pair_ute.y));
    }
    __syncwarp();
}

// Narrows all sequences to those of the columns first .. last.
struct KeySequences {
    SequenceEnds ends;
    unsigned batch;
};

__device__ SequenceRange block_narrow_to_columns(const Pack& pack, ColumnSpan first, ColumnSpan last)
{
    Span span = {(unsigned)max(first.first, 0), (unsigned)last.last};
    return block_narrow_sequences(KeySequences{{pack.k}, pack.batch}, span);
}

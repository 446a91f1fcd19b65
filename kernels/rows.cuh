// Which keys each row sees: its interval, clipped to its sequence, in the columns of the whole pack.
//
// S and E of a row are the columns where its keys start and end. A row that sees nothing has the end
// of its sequence's keys as S, and their start as E. A row in no sequence has NO_ROW as both.

#include "sequences.cuh"

constexpr int PER_THREAD = 4;                     // neighbouring rows, or columns
constexpr int STRIP = WARP_THREADS * PER_THREAD;  // those of a warp
constexpr int TILE = BLOCK_THREADS * PER_THREAD;  // those of a block
constexpr int NO_ROW = INT32_MAX_VALUE;           // above every column

struct Four {
    int at[PER_THREAD];
};

// Reads four numbers at once, and writes them. They are 16-byte aligned.
__device__ Four get_four(const int* at)
{
    int4 four = *reinterpret_cast<const int4*>(at);
    return {{four.x, four.y, four.z, four.w}};
}

__device__ void put_four(int* at, const Four& v)
{
    *reinterpret_cast<int4*>(at) = make_int4(v.at[0], v.at[1], v.at[2], v.at[3]);
}

// attn_mask_kv: row_num pairs (start, end) of int32 or int64. Pairs of rows in no sequence do not count.
struct Intervals {
    const void* pairs;
    unsigned row_num;
    bool is_int64;
    bool is_aligned;  // to 16 bytes
};

__device__ Intervals intervals_of(const void* pairs, unsigned row_num, int is_int64)
{
    bool is_aligned = reinterpret_cast<unsigned long long>(pairs) % sizeof(int4) == 0;
    return {pairs, row_num, is_int64 != 0, is_aligned};
}

// Returns the key as int32: the nearest number from 0 to INT32_MAX.
__device__ int saturate(long long key)
{
    return (int)min(max(key, 0LL), (long long)INT32_MAX_VALUE);
}

// Reads a row's start and end, as int32. int64 is saturated.
__device__ void load_interval(const Intervals& intervals, unsigned row, int& start, int& end)
{
    unsigned long long at = 2 * (unsigned long long)row;
    if (intervals.is_int64) {
        start = saturate(static_cast<const long long*>(intervals.pairs)[at]);
        end = saturate(static_cast<const long long*>(intervals.pairs)[at + 1]);
    } else {
        start = static_cast<const int*>(intervals.pairs)[at];
        end = static_cast<const int*>(intervals.pairs)[at + 1];
    }
}

// Reads the starts and ends of four rows from `row` on. Rows from row_num on have 0 as both.
__device__ void load_intervals(const Intervals& intervals, unsigned row, Four& start, Four& end)
{
    if (!intervals.is_int64 && intervals.is_aligned && row + PER_THREAD <= intervals.row_num) {
        const int4* two_rows = static_cast<const int4*>(intervals.pairs) + row / 2;
        int4 low = two_rows[0], high = two_rows[1];
        start = {{low.x, low.z, high.x, high.z}};
        end = {{low.y, low.w, high.y, high.w}};
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        start.at[i] = end.at[i] = 0;
        if (row + i < intervals.row_num) load_interval(intervals, row + i, start.at[i], end.at[i]);
    }
}

// The sequences of rows, as a SequenceWindow's Source.
struct RowSequences {
    Pack pack;
    SequenceEnds ends = {pack.q};
    unsigned batch = pack.batch;

    struct Sequence {
        unsigned end;  // of its rows
        int kv_start, kv_end;
    };

    __device__ Sequence load(unsigned b) const
    {
        if (b >= batch) return {NO_END, NO_ROW, NO_ROW};
        return {pack.q[b + 1], (int)pack.k[b], (int)pack.k[b + 1]};
    }

    __device__ Sequence warp_shuffle(const Sequence& sequence, unsigned lane) const
    {
        return {
            __shfl_sync(FULL_MASK, sequence.end, lane),
            __shfl_sync(FULL_MASK, sequence.kv_start, lane),
            __shfl_sync(FULL_MASK, sequence.kv_end, lane)};
    }
};

// Turns a row's start and end into S and E.
__device__ void clip_to_sequence(const RowSequences::Sequence& sequence, int& start, int& end)
{
    int kv_len = (int)((unsigned)sequence.kv_end - (unsigned)sequence.kv_start);
    int s = min(max(start, 0), kv_len), e = min(max(end, 0), kv_len);
    start = s < e ? (int)((unsigned)sequence.kv_start + (unsigned)s) : sequence.kv_end;
    end = s < e ? (int)((unsigned)sequence.kv_start + (unsigned)e) : sequence.kv_start;
}

// A warp on its way through rows, forward, a strip at a time.
struct RowWarp {
    SequenceWindow<RowSequences> window;
    RowSequences::Sequence sequence;  // of the last row that was found; at first none, whose end is 0

    __device__ explicit RowWarp(const Pack& pack) : window(RowSequences{pack}), sequence() {}

    // Turns the starts and ends of each lane's four rows, of a strip from `first` on, into S and E. Rows
    // in front of the span and behind it are taken to be in the sequence of its first and its last.
    __device__ void warp_to_pack_coordinates(unsigned first, Span rows, Four& start, Four& end)
    {
        auto within = [rows](unsigned row) { return max(min(row, rows.last), rows.first); };
        Span span = {within(first), within(first + STRIP - 1)};
        if (span.last >= sequence.end) {  // mostly: the rows are in the sequence of those before
            unsigned only = window.warp_count_ended(span.last);
            bool is_one = only < WARP_THREADS && only == window.warp_count_ended(span.first);
            if (!is_one) return warp_find(first + PER_THREAD * (threadIdx.x % WARP_THREADS), span, start, end);
            sequence = window.source.warp_shuffle(window.lane_sequence, only);
        }
        for (int i = 0; i < PER_THREAD; ++i) clip_to_sequence(sequence, start.at[i], end.at[i]);
    }

    // The same, for rows of several sequences, or of one that the window does not have yet.
    __device__ void warp_find(unsigned row, Span span, Four& start, Four& end)
    {
        unsigned rows[PER_THREAD];
        for (unsigned i = 0; i < PER_THREAD; ++i) rows[i] = max(min(row + i, span.last), span.first);
        auto visit = [&](unsigned i, const RowSequences::Sequence& found, bool holds) {
            int s = start.at[i], e = end.at[i];
            clip_to_sequence(found, s, e);
            start.at[i] = holds ? s : start.at[i];
            end.at[i] = holds ? e : end.at[i];
        };
        unsigned last_lane = window.warp_find(span, rows, visit);
        sequence = window.source.warp_shuffle(window.lane_sequence, last_lane);
    }
};

// Rows in, each with the keys that it sees: intervals, clipped to their sequences, in pack coordinates.
//
// E and S of a row are where its keys end and start. A row that sees nothing has the start of its
// sequence's keys as E and their end as S; a row in no sequence has NO_ROW as both.

#include "sequences.cuh"

#define PER_THREAD 4
#define TILE (BLOCK_THREADS * PER_THREAD)
#define NO_ROW INT32_MAX_VALUE  // above every column

struct Four {
    int at[PER_THREAD];
};

// attn_mask_kv: row_num pairs (start, end) of int32 or int64, of which those of rows in no sequence do not count.
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

__device__ int saturate(long long key)
{
    return (int)min(max(key, 0LL), (long long)INT32_MAX_VALUE);
}

// Reads four rows' starts and ends as int32, saturated; rows from row_num on are 0.
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
        unsigned long long at = 2 * ((unsigned long long)row + i);
        start.at[i] = end.at[i] = 0;
        if (row + i >= intervals.row_num) continue;
        if (intervals.is_int64) {
            start.at[i] = saturate(static_cast<const long long*>(intervals.pairs)[at]);
            end.at[i] = saturate(static_cast<const long long*>(intervals.pairs)[at + 1]);
        } else {
            start.at[i] = static_cast<const int*>(intervals.pairs)[at];
            end.at[i] = static_cast<const int*>(intervals.pairs)[at + 1];
        }
    }
}

// What a SequenceWindow asks for.
struct RowsOf {
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
__device__ void clip_to_sequence(const RowsOf::Sequence& own, int& start, int& end)
{
    int kv_len = (int)((unsigned)own.kv_end - (unsigned)own.kv_start);
    int s = min(max(start, 0), kv_len), e = min(max(end, 0), kv_len);
    start = s < e ? (int)((unsigned)own.kv_start + (unsigned)s) : own.kv_end;
    end = s < e ? (int)((unsigned)own.kv_start + (unsigned)e) : own.kv_start;
}

// A warp's way through the block's rows, forward, PER_THREAD rows a lane at a time.
struct RowWarp {
    SequenceWindow<RowsOf> window;
    unsigned row_num;
    RowsOf::Sequence own;  // of the row before; at first none

    // For the whole block, whose rows are the span.
    __device__ RowWarp(const Pack& pack, unsigned row_num, Span rows)
        : window(RowsOf{pack}), row_num(row_num), own()
    {
        window.range = block_narrow_sequences(window.source, rows);
    }

    // Turns the starts and ends of the thread's four rows into S and E. Rows from row_num on are like
    // the last.
    __device__ void to_pack_coordinates(unsigned row, Four& start, Four& end)
    {
        unsigned first = warp_uniform(row), last_row = row_num - 1;
        Span span = {min(first, last_row), min(first + PER_THREAD * WARP_THREADS - 1, last_row)};
        if (span.last < own.end) {  // most go on in the sequence before
            for (int i = 0; i < PER_THREAD; ++i) clip_to_sequence(own, start.at[i], end.at[i]);
            return;
        }
        unsigned rows[PER_THREAD];
        for (unsigned i = 0; i < PER_THREAD; ++i) rows[i] = min(row + i, last_row);
        auto visit = [&](unsigned i, const RowsOf::Sequence& sequence, bool holds) {
            int s = start.at[i], e = end.at[i];
            clip_to_sequence(sequence, s, e);
            start.at[i] = holds ? s : start.at[i];
            end.at[i] = holds ? e : end.at[i];
        };
        unsigned last_lane = window.warp_find(span, rows, visit);
        own = window.source.warp_shuffle(window.lane_sequence, last_lane);
    }
};

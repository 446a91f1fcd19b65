// The keys that each row sees: an interval [start, end) of its sequence, turned into E and S.
//
// E(r) and S(r) are the row's interval in pack coordinates, clipped to its sequence's keys; of a row
// that sees nothing E = kv_start and S = kv_end (staircase.cuh says what becomes of them).

#include "staircase.cuh"

#define NO_ROW INT32_MAX_VALUE  // E and S of a row in no sequence: above every column

// attn_mask_kv: row_num pairs (start, end) of int32 or int64, of which those of valid rows are read.
struct Intervals {
    const void* pairs;
    int is_int64;
    int is_aligned;  // to 16 bytes: one or two rows a load
};

__device__ int clip(long long key, int kv_len)
{
    return (int)min(max(key, 0LL), (long long)kv_len);
}

// Reads four rows' starts and ends as int32, saturated; rows from row_num on are 0.
__device__ void load_intervals(
    const Intervals& intervals, unsigned row, unsigned row_num, Four& start, Four& end)
{
    if (!intervals.is_int64 && intervals.is_aligned && row + PER_THREAD <= row_num) {
        const int4* two_rows = static_cast<const int4*>(intervals.pairs) + row / 2;
        int4 low = two_rows[0], high = two_rows[1];
        start = {low.x, low.z, high.x, high.z};
        end = {low.y, low.w, high.y, high.w};
        return;
    }
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        unsigned long long at = 2 * ((unsigned long long)row + i);
        bool exists = row + i < row_num;
        long long s = 0, e = 0;
        if (exists && intervals.is_int64) {
            s = static_cast<const long long*>(intervals.pairs)[at];
            e = static_cast<const long long*>(intervals.pairs)[at + 1];
        } else if (exists) {
            s = static_cast<const int*>(intervals.pairs)[at];
            e = static_cast<const int*>(intervals.pairs)[at + 1];
        }
        start.at[i] = clip(s, INT32_MAX_VALUE);
        end.at[i] = clip(e, INT32_MAX_VALUE);
    }
}

// Turns the starts and ends of a thread's four rows into S and E.
template <class AnyCuts>
__device__ void to_pack_coordinates(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range,
    unsigned row, unsigned row_num, Four& start, Four& end)
{
    SequenceEnds<AnyCuts> q_ends = {cuts_q};
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned warp_first = row - PER_THREAD * lane;
    unsigned warp_last = warp_first + PER_THREAD * WARP_THREADS - 1;
    unsigned b = warp_upper_bound(q_ends, range.lo, range.hi, (int)min(warp_first, row_num));
    unsigned b_limit = chunk_last_sequence(q_ends, b, range.hi, (int)min(warp_last, row_num));
    for (unsigned i = 0; i < PER_THREAD; ++i) {
        b = upper_bound(q_ends, b, b_limit, (int)min(row + i, row_num));
        if (b == batch || row + i >= row_num) {
            start.at[i] = end.at[i] = NO_ROW;
            continue;
        }
        int kv_start = cuts_k[b], kv_end = cuts_k[b + 1];
        int kv_len = (int)((unsigned)kv_end - (unsigned)kv_start);
        int s = clip(start.at[i], kv_len), e = clip(end.at[i], kv_len);
        bool sees = s < e;
        start.at[i] = sees ? (int)((unsigned)kv_start + (unsigned)s) : kv_end;
        end.at[i] = sees ? (int)((unsigned)kv_start + (unsigned)e) : kv_start;
    }
}

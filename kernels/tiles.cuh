// Tiles of block_q rows by block_k columns: which of them a column is shown in, and how lists of them
// are written. What tile_lists.cu and narrow_lists.cu share.

#include "device.cuh"

constexpr unsigned WORD_TILES = 32;  // of a word, a bit each

// Consecutive tiles [first, end).
struct Run {
    unsigned first, end;
};

__device__ unsigned bits_below(unsigned bit)
{
    return bit < WORD_TILES ? (1u << bit) - 1 : FULL_MASK;
}

// The bits of a run's tiles in a word: bit i is tile base + i.
__device__ unsigned bits_of(Run run, unsigned base)
{
    unsigned lo = min(max(run.first, base) - base, WORD_TILES);
    unsigned hi = min(max(run.end, base) - base, WORD_TILES);
    return bits_below(hi) & ~bits_below(lo);
}

// Rows [first, end), none where end is 0.
struct Rows {
    unsigned first, end;
};

// The rows that see a column with these bounds, (LTS, UTE).
__device__ Rows shown_rows(int2 bounds, unsigned row_num)
{
    unsigned first_row = (unsigned)max(bounds.y, 0);
    unsigned row_end = min((unsigned)max(bounds.x, 0), row_num);
    if (first_row >= row_end) return {FULL_MASK, 0};
    return {first_row, row_end};
}

// The row tiles that hold the rows.
__device__ Run tiles_of(Rows rows, unsigned block_q)
{
    if (rows.end == 0) return {0, 0};
    return {rows.first / block_q, (rows.end - 1) / block_q + 1};
}

// The row tiles in which a column with these bounds is shown.
__device__ Run shown_tiles(int2 bounds, unsigned row_num, unsigned block_q)
{
    return tiles_of(shown_rows(bounds, row_num), block_q);
}

// The row tiles that lie between the columns' highest UTE and lowest LTS.
__device__ Run full_tiles(int max_ute, int min_lts, unsigned row_num, unsigned block_q)
{
    unsigned first = ((unsigned)max(max_ute, 0) + block_q - 1) / block_q;
    unsigned end = min((unsigned)max(min_lts, 0), row_num) / block_q;
    return {first, max(first, end)};
}

// Raises highest and lowers lowest to those of all lanes, in lane 0.
__device__ void warp_bound(int& highest, int& lowest)
{
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2) {
        highest = max(highest, __shfl_down_sync(FULL_MASK, highest, distance));
        lowest = min(lowest, __shfl_down_sync(FULL_MASK, lowest, distance));
    }
}

__device__ int warp_running_sum(int v)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
        int other = __shfl_up_sync(FULL_MASK, v, distance);
        if (lane >= distance) v += other;
    }
    return v;
}

// Marks the runs of the columns first .. end - 1 in a chunk of as many words as there are threads:
// in end_words the bits of runs' first and last words, in covering, as differences, how many runs
// cover a word whole. word_first is the chunk's first word. `threads` of whole warps, of which each
// is `thread`.
__device__ void warps_mark_runs(
    const int2* columns, unsigned first, unsigned end, unsigned row_num, unsigned block_q,
    unsigned word_first, unsigned* end_words, int* covering, unsigned thread, unsigned threads)
{
    Run chunk = {word_first * WORD_TILES, (word_first + threads) * WORD_TILES};
    for (unsigned step = first; step < end; step += threads) {
        unsigned column = step + thread;
        Run run = {0, 0};
        if (column < end) run = shown_tiles(columns[column], row_num, block_q);
        // Neighbours are mostly shown in the same tiles: the first of them marks for all.
        unsigned first_before = __shfl_up_sync(FULL_MASK, run.first, 1);
        unsigned end_before = __shfl_up_sync(FULL_MASK, run.end, 1);
        bool repeats = run.first == first_before && run.end == end_before;
        if (repeats && thread % WARP_THREADS != 0) continue;
        run = {max(run.first, chunk.first), min(run.end, chunk.end)};
        if (run.first >= run.end) continue;
        unsigned head = run.first / WORD_TILES, tail = (run.end - 1) / WORD_TILES;
        atomicOr(&end_words[head - word_first], bits_of(run, head * WORD_TILES));
        if (head == tail) continue;
        atomicOr(&end_words[tail - word_first], bits_of(run, tail * WORD_TILES));
        atomicAdd(&covering[head + 1 - word_first], 1);
        atomicAdd(&covering[tail - word_first], -1);
    }
}

// Writes the entries from .. length - 1 of a list, entry(i) each; `thread` of `threads` stores 16 bytes
// at a time between the aligned ends. entry is also asked for some i below and past them.
template <class Entry>
__device__ void store_entries(
    int* list, unsigned from, unsigned length, const Entry& entry, unsigned thread, unsigned threads)
{
    unsigned lead = (unsigned)(reinterpret_cast<unsigned long long>(list + from) / sizeof(int)) % 4;
    unsigned entries = length - from;
    for (unsigned place = 4 * thread; place < entries + lead; place += 4 * threads) {
        int value[4];
        for (unsigned i = 0; i < 4; ++i) value[i] = entry(from + place + i - lead);
        int* quad = list + from + place - lead;
        if (place >= lead && place + 4 <= entries + lead) {
            *reinterpret_cast<int4*>(quad) = make_int4(value[0], value[1], value[2], value[3]);
            continue;
        }
        for (unsigned i = 0; i < 4; ++i)
            if (place + i >= lead && place + i < entries + lead) quad[i] = value[i];
    }
}

// A list of a run's tiles, zeros behind them.
struct RunEntries {
    Run run;
    __device__ int operator()(unsigned i) const
    {
        return i < run.end - run.first ? (int)(run.first + i) : 0;
    }
};

__device__ RunEntries zeros()
{
    return {{0, 0}};
}

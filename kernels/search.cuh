// Where in a non-decreasing array a key falls, and which sequences a tile of a pack touches.
//
// Every index here is unsigned and every search stays inside [lo, hi] whatever the values are, so
// that an array that is not sorted gives a wrong answer and nothing worse.

#ifndef BLOCK_THREADS
#error "BLOCK_THREADS: threads of a block, a multiple of 32"
#endif
#ifndef WINDOW_SEQUENCES
#error "WINDOW_SEQUENCES: sequences of a tile whose cuts are kept in shared memory"
#endif

#define WARP_THREADS 32
#define WARPS (BLOCK_THREADS / WARP_THREADS)
#define WINDOW_CUTS (WINDOW_SEQUENCES + 2)  // their starts, and the end of the last
#define CUTS_PER_THREAD ((WINDOW_CUTS + BLOCK_THREADS - 1) / BLOCK_THREADS)
#define FULL_MASK 0xffffffffu
#define INT32_MAX_VALUE 0x7fffffff

static_assert(BLOCK_THREADS % WARP_THREADS == 0, "a block is a whole number of warps");

// cu_seqlens of int32 (stride 1) or int64 (stride 2) as 32-bit words: valid values fit in the low one.
struct Cuts {
    const int* words;
    int stride;
    __device__ int operator[](unsigned i) const { return words[(unsigned long long)i * stride]; }
};

// A copy of the cuts from `first` on. A type of its own: the compiler sees that it is shared memory.
struct StagedCuts {
    const int* cuts;
    unsigned first;
    __device__ int operator[](unsigned i) const { return cuts[i - first]; }
};

// The ends of the sequences: ends[b] = cuts[b + 1].
template <class AnyCuts>
struct SequenceEnds {
    AnyCuts cuts;
    __device__ int operator[](unsigned b) const { return cuts[b + 1]; }
};

// A run of whole sequences [lo, hi], one of which holds any position of the tile; hi may be batch.
struct SequenceRange {
    unsigned lo, hi;
};

// Returns the first index in [lo, hi) whose value is above key, or hi. One thread, log2(hi - lo) loads.
template <class Values>
__device__ unsigned upper_bound(const Values& values, unsigned lo, unsigned hi, int key)
{
#pragma unroll 1
    while (lo < hi) {
        unsigned middle = lo + (hi - lo) / 2;
        if (values[middle] <= key) lo = middle + 1;
        else hi = middle;
    }
    return lo;
}

// The same by a whole warp for one key: 32 probes at once, log32(hi - lo) dependent loads.
template <class Values>
__device__ unsigned warp_upper_bound(const Values& values, unsigned lo, unsigned hi, int key)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
#pragma unroll 1
    while (lo < hi) {
        unsigned step = (hi - lo + WARP_THREADS - 1) / WARP_THREADS;
        unsigned probe = lo + (lane + 1) * step - 1;
        bool at_or_below = probe < hi && values[probe] <= key;
        lo += __popc(__ballot_sync(FULL_MASK, at_or_below)) * step;
        hi = min(hi, lo + step - 1);
    }
    return lo;
}

template <bool BY_WARP, class Values>
__device__ unsigned search(const Values& values, unsigned lo, unsigned hi, int key)
{
    return BY_WARP ? warp_upper_bound(values, lo, hi, key) : upper_bound(values, lo, hi, key);
}

// Narrows [0, batch] to the sequences of the positions first .. last, until they fit the window or
// do not get fewer: all threads of the block probe at once, so that a round costs one load's time.
__device__ SequenceRange block_sequence_range(const Cuts& cuts, unsigned batch, int first, int last)
{
    SequenceRange range = {0, batch};
#pragma unroll 1
    while (range.hi - range.lo > WINDOW_SEQUENCES) {
        unsigned length = range.hi - range.lo;
        unsigned step = (length + BLOCK_THREADS - 1) / BLOCK_THREADS;
        unsigned probe = range.lo + (threadIdx.x + 1) * step - 1;
        int end = probe < range.hi ? cuts[probe + 1] : INT32_MAX_VALUE;
        unsigned ended_before_first = __syncthreads_count(end <= first);
        unsigned ended_before_last = __syncthreads_count(end <= last);
        unsigned lo = range.lo + ended_before_first * step;
        unsigned hi = min(range.hi, range.lo + (ended_before_last + 1) * step - 1);
        range.lo = lo;
        range.hi = max(lo, hi);
        if (range.hi - range.lo > length / 2) break;
    }
    return range;
}

// Shared memory for the cuts of a window.
struct Window {
    int q[WINDOW_CUTS], k[WINDOW_CUTS];
};

// Copies the cuts of a range that fits the window to shared memory. Ends with a barrier.
__device__ void block_stage_cuts(
    const Cuts& cuts_q, const Cuts& cuts_k, SequenceRange range, unsigned batch, Window& window)
{
    unsigned cut_num = min(range.hi + 1, batch) - range.lo + 1;
    int q[CUTS_PER_THREAD] = {}, k[CUTS_PER_THREAD] = {};  // all loads in flight at once
    for (unsigned i = 0; i < CUTS_PER_THREAD; ++i) {
        unsigned at = threadIdx.x + i * BLOCK_THREADS;
        if (at < cut_num) q[i] = cuts_q[range.lo + at];
        if (at < cut_num) k[i] = cuts_k[range.lo + at];
    }
    for (unsigned i = 0; i < CUTS_PER_THREAD; ++i) {
        unsigned at = threadIdx.x + i * BLOCK_THREADS;
        if (at < cut_num) window.q[at] = q[i];
        if (at < cut_num) window.k[at] = k[i];
    }
    __syncthreads();
}

// Narrows the range to the sequences of a warp's positions first .. last. The last ones are counted
// only as far as WARP_THREADS sequences reach; behind that the range stays as wide as it was.
template <class Ends>
__device__ SequenceRange warp_sequence_range(const Ends& ends, SequenceRange range, int first, int last)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned lo = range.lo, hi = range.hi;
#pragma unroll 1
    while (hi - lo > WARP_THREADS) {
        unsigned step = (hi - lo + WARP_THREADS - 1) / WARP_THREADS;
        unsigned probe = lo + (lane + 1) * step - 1;
        bool before = probe < hi && ends[probe] <= first;
        lo += __popc(__ballot_sync(FULL_MASK, before)) * step;
        hi = min(hi, lo + step - 1);
    }
    unsigned candidate = lo + lane;
    int end = candidate < range.hi ? ends[candidate] : INT32_MAX_VALUE;
    unsigned before_first = __popc(__ballot_sync(FULL_MASK, end <= first));
    unsigned before_last = __popc(__ballot_sync(FULL_MASK, end <= last));
    return {lo + before_first, before_last < WARP_THREADS ? lo + before_last : range.hi};
}

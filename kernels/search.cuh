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
#define FULL_MASK 0xffffffffu
#define INT32_MAX_VALUE 0x7fffffff

static_assert(BLOCK_THREADS % WARP_THREADS == 0, "a block is a whole number of warps");

// cu_seqlens of int32 (stride 1) or int64 (stride 2) as 32-bit words: valid values fit in the low one.
struct Cuts {
    const int* words;
    int stride;
    __device__ int operator[](unsigned i) const { return words[(unsigned long long)i * stride]; }
};

// The cuts first .. first + WINDOW_SEQUENCES + 1, copied to shared memory.
struct StagedCuts {
    const int* cuts;
    unsigned first;
    __device__ int operator[](unsigned i) const { return cuts[i - first]; }
};

// The ends of the sequences: ends[b] = cuts[b + 1].
template <class CutsOrStaged>
struct SequenceEnds {
    CutsOrStaged cuts;
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
    while (lo < hi) {
        unsigned step = (hi - lo + WARP_THREADS - 1) / WARP_THREADS;
        unsigned probe = lo + (lane + 1) * step - 1;
        bool at_or_below = probe < hi && values[probe] <= key;
        lo += __popc(__ballot_sync(FULL_MASK, at_or_below)) * step;
        hi = min(hi, lo + step - 1);
    }
    return lo;
}

// Narrows [0, batch] to the sequences of the positions first .. last, until they fit the window or
// do not get fewer: all threads of the block probe at once, so that a round costs one load's time.
__device__ SequenceRange block_sequence_range(const Cuts& cuts, unsigned batch, int first, int last)
{
    SequenceRange range = {0, batch};
    while (range.hi - range.lo > WINDOW_SEQUENCES) {
        unsigned length = range.hi - range.lo;
        unsigned step = (length + BLOCK_THREADS - 1) / BLOCK_THREADS;
        unsigned probe = range.lo + (threadIdx.x + 1) * step - 1;
        int end = probe < range.hi ? cuts[probe + 1] : INT32_MAX_VALUE;
        unsigned ended_before_first = __syncthreads_count(probe < range.hi && end <= first);
        unsigned ended_before_last = __syncthreads_count(probe < range.hi && end <= last);
        unsigned lo = range.lo + ended_before_first * step;
        unsigned hi = min(range.hi, range.lo + (ended_before_last + 1) * step - 1);
        range.lo = lo;
        range.hi = max(lo, hi);
        if (range.hi - range.lo > length / 2) break;
    }
    return range;
}

// Copies the cuts of the range to shared memory. Call only where the range fits the window; ends
// with a barrier.
__device__ void stage_cuts(
    const Cuts& cuts_q, const Cuts& cuts_k, SequenceRange range, unsigned batch,
    int* staged_q, int* staged_k)
{
    unsigned last = min(range.hi + 1, batch);
    for (unsigned b = range.lo + threadIdx.x; b <= last; b += BLOCK_THREADS) {
        staged_q[b - range.lo] = cuts_q[b];
        staged_k[b - range.lo] = cuts_k[b];
    }
    __syncthreads();
}

// Of a warp's next chunk of positions, up to `last`, that starts in sequence b: returns the highest
// sequence that a position of it can be in. Most chunks end no sequence, and then nobody searches.
template <class Ends>
__device__ unsigned chunk_last_sequence(const Ends& ends, unsigned b, unsigned hi, int last)
{
    unsigned candidate = b + threadIdx.x % WARP_THREADS;
    bool ended = candidate < hi && ends[candidate] <= last;
    unsigned ended_num = __popc(__ballot_sync(FULL_MASK, ended));
    return ended_num < WARP_THREADS ? b + ended_num : hi;
}

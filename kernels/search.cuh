// Where in a non-decreasing array a key falls.
//
// Every index here is unsigned and every search stays inside [lo, hi] whatever the values are, so
// that an array that is not sorted gives a wrong answer and nothing worse.

#ifndef BLOCK_THREADS
#error "BLOCK_THREADS: threads of a block, a multiple of 32"
#endif

#define WARP_THREADS 32
#define WARPS (BLOCK_THREADS / WARP_THREADS)
#define FULL_MASK 0xffffffffu
#define INT32_MAX_VALUE 0x7fffffff

static_assert(BLOCK_THREADS % WARP_THREADS == 0, "a block is a whole number of warps");

// A value that is one for the whole warp: by a shuffle, from which the compiler learns that it is.
// Without, it guards each shuffle that depends on the value against a warp that has parted.
__device__ unsigned of_warp(unsigned value)
{
    return __shfl_sync(FULL_MASK, value, 0);
}

__device__ unsigned warp_of_block()
{
    return of_warp(threadIdx.x / WARP_THREADS);
}

// Who searches together for one key: each thread probes once a round, which costs one load's time.
struct OfWarp {
    static constexpr unsigned THREADS = WARP_THREADS;
    static __device__ unsigned index() { return threadIdx.x % WARP_THREADS; }
    static __device__ unsigned count(bool is_so)
    {
        return (unsigned)__popc(__ballot_sync(FULL_MASK, is_so));
    }
};

struct OfBlock {
    static constexpr unsigned THREADS = BLOCK_THREADS;
    static __device__ unsigned index() { return threadIdx.x; }
    static __device__ unsigned count(bool is_so) { return of_warp((unsigned)__syncthreads_count(is_so)); }
};

// Narrows [lo, hi], which holds the upper bound of key, until it has fewer than `entries`. A whole
// group: as many dependent loads as the logarithm of hi - lo to the base of its threads.
template <class Group, class Values, class Key>
__device__ void narrow(const Values& values, unsigned& lo, unsigned& hi, Key key, unsigned entries)
{
#pragma unroll 1
    while (hi - lo >= entries) {
        unsigned step = (hi - lo + Group::THREADS - 1) / Group::THREADS;
        unsigned probe = lo + (Group::index() + 1) * step - 1;
        lo += Group::count(probe < hi && values[probe] <= key) * step;
        hi = min(hi, lo + step - 1);
    }
}

// Returns the first index in [lo, hi) whose value is above key, or hi. A whole warp for one key.
template <class Values, class Key>
__device__ unsigned warp_upper_bound(const Values& values, unsigned lo, unsigned hi, Key key)
{
    narrow<OfWarp>(values, lo, hi, key, 1);
    return lo;
}

// The same by one thread for some keys at once, each in its own [lo, hi), as lo. Their loads are in
// flight together. At first every hi is at least 1, unless all ranges are empty.
template <unsigned COUNT, class Values, class Key>
__device__ void upper_bounds(
    const Values& values, unsigned (&lo)[COUNT], unsigned (&hi)[COUNT], const Key (&key)[COUNT])
{
    unsigned most = 0;
    for (unsigned i = 0; i < COUNT; ++i) most = max(most, hi[i] - lo[i]);
#pragma unroll 1
    for (; most > 0; most /= 2) {
        for (unsigned i = 0; i < COUNT; ++i) {
            unsigned middle = lo[i] + (hi[i] - lo[i]) / 2;
            bool at_or_below = values[min(middle, hi[i] - 1)] <= key[i];
            if (lo[i] < hi[i] && at_or_below) lo[i] = middle + 1;
            else hi[i] = middle;
        }
    }
}

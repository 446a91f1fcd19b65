// Where a segment's subtree ends, in a tree whose segments are packed in depth-first order.
//
// The subtree of segment b is b and the segments behind it up to the first whose parent is before b.
// The segments next to b are looked at for 32 segments at once. For one that is farther, two levels of
// minima find it without a scan: an entry of level 1 is the least of a run of 32 parents, one of level
// 2 the least of a run of 32 of these. A warp looks at a whole run at once.
//
//     runs of 4     segment    0  1  2  3   4  5  6  7   8  9
//                   parent    -1  0  1  0   3  4  3  0  -1  8
//                   level 1   -1            0          -1
//     subtree of 1: in its run, segment 3 has a parent below 1               ends at 3
//     subtree of 3: in the next run, segment 7 has                           ends at 7
//     subtree of 0: none in its run; in level 1, the entry of the last run   ends at 8
//                   is below 0; in that run, segment 8 is the first
//
// No index depends on a parent's value, so that any bits in the array give some segment.

#include "overlap.cuh"
#include "sequences.cuh"

constexpr int RUN = 32;
constexpr int RUNS_AT_ONCE = 4;    // whose loads a walk has in flight
constexpr int MINIMA_AT_ONCE = 8;  // runs whose loads are in flight where minima are written

static_assert(RUN == WARP_THREADS, "a warp looks at a whole run");

// Returns value & mask. The compiler makes three instructions of a bit's test where it sees one.
__device__ unsigned masked(unsigned value, unsigned mask)
{
#ifdef __CUDA_ARCH__
    asm("and.b32 %0, %0, %1;" : "+r"(value) : "r"(mask));
    return value;
#else
    return value & mask;
#endif
}

// Returns the lanes whose parent is below the lane's own segment, which is first + lane, as bits.
//
// A lane's parent is below the segments of all lanes from some lane on, its rank. Ranks are compared
// with each lane's number bit by bit: a ballot gives one bit of all of them.
__device__ unsigned lanes_below(int parent, unsigned first)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned rank = (unsigned)(min(max((int)((unsigned)parent - first), -1), WARP_THREADS - 1) + 1);
    unsigned at_most = FULL_MASK;  // whose rank is at most the lane's number, as far as the bits below say
    for (unsigned bit = 1; bit < WARP_THREADS; bit *= 2) {
        unsigned ones = __ballot_sync(FULL_MASK, (int)masked(rank, bit));
        unsigned own = (lane & bit) != 0 ? FULL_MASK : 0;
        at_most = (own & ~ones) | (~(own ^ ones) & at_most);
    }
    return at_most & __ballot_sync(FULL_MASK, rank < WARP_THREADS);
}

// Consecutive entries, all int.
struct Entries {
    const int* first;
    unsigned stride, num;

    __device__ int operator[](unsigned i) const { return first[(unsigned long long)i * stride]; }

    // The end of the run that `i` is in, or i itself where a run begins there.
    __device__ unsigned run_end(unsigned i) const { return min((i + RUN - 1) / RUN * RUN, num); }

    // Returns the first entry from `from` to `end` that is below b, or end. A whole warp, RUNS at once.
    template <unsigned RUNS>
    __device__ unsigned first_below(int b, unsigned from, unsigned end) const
    {
        unsigned lane = threadIdx.x % WARP_THREADS;
#pragma unroll 1
        for (; from < end; from += RUNS * RUN) {
            int value[RUNS];
            for (unsigned r = 0; r < RUNS; ++r) {
                unsigned i = from + r * RUN + lane;
                value[r] = i < end ? (*this)[i] : b;
            }
            for (unsigned r = 0; r < RUNS; ++r) {
                unsigned hits = __ballot_sync(FULL_MASK, value[r] < b);
                if (hits != 0) return from + r * RUN + __ffs((int)hits) - 1;
            }
        }
        return end;
    }
};

struct Segments {
    Entries parents, level_1, level_2;  // level_2.first is null where there are few of level 1

    // Returns the first segment behind b's subtree, or as many as there are. A whole warp, for one b
    // whose subtree does not end before segment `from`, which is behind it.
    __device__ unsigned subtree_end(unsigned b, unsigned from) const
    {
        unsigned end = parents.run_end(from);
        unsigned segment = parents.first_below<1>((int)b, from, end);
        if (segment < end || end == parents.num) return segment;
        unsigned run = run_below((int)b, end / RUN);
        return parents.first_below<1>((int)b, run * RUN, min(run * RUN + RUN, parents.num));
    }

    // Returns the first run of parents from `from` on of which one is below b, or as many as there are.
    __device__ unsigned run_below(int b, unsigned from) const
    {
        if (!level_2.first) return level_1.first_below<RUNS_AT_ONCE>(b, from, level_1.num);
        unsigned end = level_1.run_end(from);
        unsigned run = level_1.first_below<1>(b, from, end);
        if (run < end || end == level_1.num) return run;
        unsigned above = level_2.first_below<RUNS_AT_ONCE>(b, end / RUN, level_2.num);
        if (above == level_2.num) return level_1.num;
        return level_1.first_below<1>(b, above * RUN, min(above * RUN + RUN, level_1.num));
    }
};

// The segments, and their minima of both levels from `minima` on, or null.
__device__ Segments segments_of(
    const int* parent, unsigned parent_stride, unsigned num, const int* minima)
{
    unsigned level_1 = (num + RUN - 1) / RUN, level_2 = (level_1 + RUN - 1) / RUN;
    const int* minima_2 = minima ? minima + level_1 : nullptr;
    return {{parent, parent_stride, num}, {minima, 1, level_1}, {minima_2, 1, level_2}};
}

// Returns, at least in lane 0, the least v of the warp.
__device__ int warp_min(int v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_min_sync(FULL_MASK, v);
#else
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2)
        v = min(v, __shfl_down_sync(FULL_MASK, v, distance));
    return v;
#endif
}

// Writes the least entry of each run from `run` to `end`, as minima[run]. A whole block.
__device__ void write_minima(const Entries& entries, unsigned run, unsigned end, int* minima)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
#pragma unroll 1
    for (run += warp_index() * MINIMA_AT_ONCE; run < end; run += WARPS * MINIMA_AT_ONCE) {
        int least[MINIMA_AT_ONCE];
        for (unsigned r = 0; r < MINIMA_AT_ONCE; ++r) {
            unsigned long long i = (unsigned long long)(run + r) * RUN + lane;
            least[r] = i < entries.num ? entries[(unsigned)i] : INT32_MAX_VALUE;
        }
        for (unsigned r = 0; r < MINIMA_AT_ONCE; ++r) {
            least[r] = warp_min(least[r]);
            if (lane == 0 && run + r < end) minima[run + r] = least[r];
        }
    }
}

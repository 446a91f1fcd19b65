// Where a segment's subtree ends, in a tree whose segments are packed in depth-first order.
//
// The subtree of segment b is b and the segments behind it, up to the first whose parent is before b.
// A warp looks for the ends of 32 subtrees at once among the segments next to them. An end that is
// farther away is found in two levels of minima: an entry of level 1 is the least of a run of 32
// parents, and an entry of level 2 the least of a run of 32 entries of level 1. A warp looks at a whole
// run at once. With two levels rather than a pyramid, and the columns begun meanwhile, 16 M columns of
// 262,144 segments took 53 us rather than 79.
//
//     runs of 4     segment    0  1  2  3   4  5  6  7   8  9
//                   parent    -1  0  1  0   3  4  3  0  -1  8
//                   level 1   -1            0          -1
//     subtree of 1: in its run, segment 3 has a parent below 1               ends at 3
//     subtree of 3: in the next run, segment 7 has                           ends at 7
//     subtree of 0: none in its run; in level 1, the entry of the last run   ends at 8
//                   is below 0; in that run, segment 8 is the first
//
// No index depends on the value of a parent. So any bits in the array give some segment.

#include "overlap.cuh"
#include "sequences.cuh"

constexpr int RUN = 32;
constexpr int RUNS_AT_ONCE = 4;    // whose loads a walk has in flight
constexpr int MINIMA_AT_ONCE = 8;  // runs whose loads are in flight where minima are written

static_assert(RUN == WARP_THREADS, "a warp looks at a whole run");

// Returns value & mask, by an instruction of its own: where the compiler sees a test of a bit, it makes
// three instructions of it. With this, and with Forest::load, 8,192 columns of 128 segments took 1.59 us
// rather than 1.73.
__device__ unsigned masked(unsigned value, unsigned mask)
{
#ifdef __CUDA_ARCH__
    asm("and.b32 %0, %0, %1;" : "+r"(value) : "r"(mask));
    return value;
#else
    return value & mask;
#endif
}

// Each lane gives a parent, and asks about segment first + lane. Returns which lanes gave a parent below
// the segment, as bits.
//
// A parent is below the segments of all lanes from some lane on. The number of that lane is the parent's
// rank. So a lane wants the ranks up to its own number. It compares its number with all ranks at once,
// from the lowest bit on: a ballot gives one bit of every rank. With this, and with the window in shared
// memory (columns_tree.cu), 8,192 columns of 128 segments took 1.69 us rather than 2.04.
__device__ unsigned warp_lanes_below(int parent, unsigned first)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned rank = (unsigned)(min(max((int)((unsigned)parent - first), -1), WARP_THREADS - 1) + 1);
    unsigned at_most = FULL_MASK;  // ranks whose bits so far are at most those of the lane's number
    for (unsigned bit = 1; bit < WARP_THREADS; bit *= 2) {
        unsigned ones = __ballot_sync(FULL_MASK, (int)masked(rank, bit));
        unsigned lane_bit = (lane & bit) != 0 ? FULL_MASK : 0;
        at_most = (lane_bit & ~ones) | (~(lane_bit ^ ones) & at_most);
    }
    return at_most & __ballot_sync(FULL_MASK, rank < WARP_THREADS);
}

// Consecutive entries, all int.
struct Entries {
    const int* first;
    unsigned stride, num;

    __device__ int operator[](unsigned i) const { return first[(unsigned long long)i * stride]; }

    // Returns the end of the run that `i` is in, or i itself if a run begins there.
    __device__ unsigned run_end(unsigned i) const { return min((i + RUN - 1) / RUN * RUN, num); }

    // Returns the first entry from `from` to `end` that is below b, or end. Loads RUNS runs at once.
    template <unsigned RUNS>
    __device__ unsigned warp_first_below(int b, unsigned from, unsigned end) const
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
    Entries parents, level_1, level_2;  // level_2.first is null where segment_minima is not launched

    // Returns the first segment behind b's subtree, or the number of segments. All lanes have one b. Its
    // subtree does not end before segment `from`, and `from` is behind b.
    __device__ unsigned warp_subtree_end(unsigned b, unsigned from) const
    {
        unsigned end = parents.run_end(from);
        unsigned segment = parents.warp_first_below<1>((int)b, from, end);
        if (segment < end || end == parents.num) return segment;
        unsigned run = warp_run_below((int)b, end / RUN);
        return parents.warp_first_below<1>((int)b, run * RUN, min(run * RUN + RUN, parents.num));
    }

    // Returns the first run from `from` on that has a parent below b, or the number of runs.
    __device__ unsigned warp_run_below(int b, unsigned from) const
    {
        if (!level_2.first) return level_1.warp_first_below<RUNS_AT_ONCE>(b, from, level_1.num);
        unsigned end = level_1.run_end(from);
        unsigned run = level_1.warp_first_below<1>(b, from, end);
        if (run < end || end == level_1.num) return run;
        unsigned above = level_2.warp_first_below<RUNS_AT_ONCE>(b, end / RUN, level_2.num);
        if (above == level_2.num) return level_1.num;
        return level_1.warp_first_below<1>(b, above * RUN, min(above * RUN + RUN, level_1.num));
    }
};

// Returns the segments with their minima: level 1 from `minima` on, then level 2. It may be null.
__device__ Segments segments_of(
    const int* parent, unsigned parent_stride, unsigned num, const int* minima)
{
    unsigned level_1 = (num + RUN - 1) / RUN, level_2 = (level_1 + RUN - 1) / RUN;
    const int* minima_2 = minima ? minima + level_1 : nullptr;
    return {{parent, parent_stride, num}, {minima, 1, level_1}, {minima_2, 1, level_2}};
}

// Returns the least v of the warp in lane 0. In the other lanes it may be some other v.
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

// Writes the least entry of each run from `run` to `end`, as minima[run].
__device__ void block_write_minima(const Entries& entries, unsigned run, unsigned end, int* minima)
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

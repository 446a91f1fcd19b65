// Where a segment's subtree ends, in a tree whose segments are packed in depth-first order.
//
// The subtree of segment b is b and the segments behind it up to the first whose parent is before b.
// A pyramid of minima finds that one without a scan: an entry of level k + 1 is the least of a run
// of 32 entries of level k, and level 0 is the parents themselves. A warp looks at a whole run at
// once, climbs while nothing in it is below b, and descends to the first that is: O(log32) loads.
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

#include "sequences.cuh"

#define RUN_BITS 5
#define RUN (1 << RUN_BITS)
#define RUNS_AT_ONCE 4  // that a warp has in flight

static_assert(RUN == WARP_THREADS, "a warp looks at a whole run");

struct Segments {
    Cuts parents;       // (num,)
    unsigned num;
    const int* minima;  // levels 1 to top_level(), one behind the other; or null if segments are few

    __device__ int parent(unsigned b) const { return (int)parents[b]; }

    // Entries of a level; there is a segment.
    __device__ unsigned level_size(unsigned level) const { return ((num - 1) >> RUN_BITS * level) + 1; }

    // The first level of at most one run.
    __device__ unsigned top_level() const
    {
        unsigned level = 0;
        while (num > 0 && level_size(level) > RUN) ++level;
        return level;
    }

    // An entry of a level that starts at `start` in the minima.
    __device__ int entry(unsigned level, unsigned start, unsigned i) const
    {
        return level == 0 ? parent(i) : minima[start + i];
    }

    // Returns the lanes whose entry of a run is below b; of those from entry `from` on.
    __device__ unsigned below(int b, unsigned level, unsigned start, unsigned run, unsigned from) const
    {
        unsigned i = run * RUN + threadIdx.x % WARP_THREADS;
        bool is_below = i >= from && i < level_size(level) && entry(level, start, i) < b;
        return __ballot_sync(FULL_MASK, is_below);
    }

    // Returns the first segment behind b's subtree, or num. A whole warp, for one b in [0, num) whose
    // subtree does not end before segment `from`.
    __device__ unsigned subtree_end(unsigned b, unsigned from) const
    {
        return minima ? climb(b, from) : walk(b, from);
    }

    // The same through the minima.
    __device__ unsigned climb(unsigned b, unsigned from) const
    {
        unsigned level = 0, start = 0, run = 0, hits = 0;
        while (hits == 0) {
            unsigned size = level_size(level);
            if (from >= size) return num;
            run = from / RUN;
            hits = below((int)b, level, start, run, from);
            if (hits != 0) break;
            start += level == 0 ? 0 : size;
            ++level;
            from = run + 1;
        }
        unsigned at = run * RUN + __ffs((int)hits) - 1;
        for (; level > 0; --level) {
            start -= level == 1 ? 0 : level_size(level - 1);
            hits = below((int)b, level - 1, start, at, 0);
            at = at * RUN + __ffs((int)hits) - 1;
        }
        return min(at, num);
    }

    // The same from run to run.
    __device__ unsigned walk(unsigned b, unsigned from) const
    {
        for (; from < num; from += RUNS_AT_ONCE * RUN) {
            int parents_of[RUNS_AT_ONCE];
            for (unsigned r = 0; r < RUNS_AT_ONCE; ++r) {
                unsigned i = from + r * RUN + threadIdx.x % WARP_THREADS;
                parents_of[r] = i < num ? parent(i) : -1;
            }
            for (unsigned r = 0; r < RUNS_AT_ONCE; ++r) {
                unsigned hits = __ballot_sync(FULL_MASK, parents_of[r] < (int)b);
                if (hits != 0) return min(from + r * RUN + __ffs((int)hits) - 1, num);
            }
        }
        return num;
    }
};

// Returns in lane 0 the least v of the warp.
__device__ int warp_min(int v)
{
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2)
        v = min(v, __shfl_down_sync(FULL_MASK, v, distance));
    return v;
}

// Writes an entry of the top level and all that are below it; segments.minima already points to
// `minima`. A whole block.
__device__ void write_minima(const Segments& segments, int* minima, unsigned top_entry)
{
    unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
    unsigned top = segments.top_level(), start = 0, start_below = 0;
    for (unsigned level = 1; level <= top; ++level) {
        unsigned size = segments.level_size(level), size_below = segments.level_size(level - 1);
        unsigned spread = RUN_BITS * (top - level);
        unsigned end = min(size, (top_entry + 1) << spread);
        for (unsigned i = (top_entry << spread) + warp; i < end; i += WARPS * RUNS_AT_ONCE) {
            int least[RUNS_AT_ONCE];
            for (unsigned r = 0; r < RUNS_AT_ONCE; ++r) {
                unsigned j = (i + r * WARPS) * RUN + lane;
                bool exists = i + r * WARPS < end && j < size_below;
                least[r] = exists ? segments.entry(level - 1, start_below, j) : INT32_MAX_VALUE;
            }
            for (unsigned r = 0; r < RUNS_AT_ONCE; ++r) {
                least[r] = warp_min(least[r]);
                if (lane == 0 && i + r * WARPS < end) minima[start + i + r * WARPS] = least[r];
            }
        }
        __syncthreads();
        start_below = start;
        start += size;
    }
}

// Chunks, [start, end) ranges of rows or of keys, and how many tokens lie before each of them.
//
//     chunks         [0, 2)  [4, 5)  [7, 9)       in storage   tokens  0  1  4  7  8
//     start            0       4       7                       place   0  1  2  3  4
//     tokens before    0       2       3       (5 in all)
//
// A block keeps such a table in shared memory, of at most ENTRIES entries: one a chunk, or one a
// group of some chunks in a row where there are more. What is inside a group is asked of the chunks
// themselves where they are few, and else of the sums that chunk_sums has stored.
//
// Values of 64 bits are taken to the nearest of 32: no row or key is there. Every index comes from a
// search inside the table, so that any bits whatever in the chunks give some number and no more.

#include "search.cuh"

#define ENTRIES (4 * BLOCK_THREADS)
#define LOADS_AHEAD 4

struct Chunk {
    int start;
    unsigned length;
};

struct Chunks {
    const void* values;  // (num, 2) of int32, or of int64
    unsigned stride;     // of a value in 32-bit words: 1 or 2
    unsigned num;

    __device__ Chunk operator[](unsigned i) const
    {
        unsigned long long at = 2ull * i;
        if (stride == 1) {
            const int* value = static_cast<const int*>(values) + at;
            return {value[0], (unsigned)value[1] - (unsigned)value[0]};
        }
        const long long* value = static_cast<const long long*>(values) + at;
        long long start = value[0], end = value[1], highest = INT32_MAX_VALUE;
        int nearest = (int)max(min(start, highest), -highest - 1);
        return {nearest, (unsigned)((unsigned long long)end - (unsigned long long)start)};
    }

    // Loads those of from .. from + LOADS_AHEAD - 1 that are below end, the others as empty ones.
    __device__ void load(unsigned from, unsigned end, Chunk (&chunk)[LOADS_AHEAD]) const
    {
        for (unsigned i = 0; i < LOADS_AHEAD; ++i) {
            chunk[i] = {0, 0};
            if (from + i < end) chunk[i] = (*this)[from + i];
        }
    }
};

// Where a chunk starts, and the tokens before it: x and y of an int2.
struct Starts {
    const int2* sums;
    __device__ int operator[](unsigned i) const { return sums[i].x; }
};
struct Befores {
    const int2* sums;
    __device__ unsigned operator[](unsigned i) const { return (unsigned)sums[i].y; }
};

struct ChunkTable {
    int2* entries;       // in shared memory, (num + 1,) of (start, tokens before); last (-, all tokens)
    Chunks chunks;
    const int2* stored;  // (chunks.num + 1,) of the same, or null
    unsigned group;      // chunks of an entry
    unsigned num;        // entries

    __device__ ChunkTable(int2* entries, const Chunks& chunks, const int2* stored)
        : entries(entries), chunks(chunks), stored(stored),
          group(max((chunks.num + ENTRIES - 1) / ENTRIES, 1u)), num((chunks.num + group - 1) / group)
    {
    }

    __device__ unsigned total() const { return (unsigned)entries[num].y; }

    // Writes the entries of the thread's share of chunks, with tokens counted from its first one on;
    // returns the share's tokens.
    __device__ unsigned write_share(unsigned thread, unsigned threads) const
    {
        unsigned share = (num + threads - 1) / threads * group, sum = 0;
        unsigned first = thread * share, end = min(first + share, chunks.num);
#pragma unroll 1
        for (unsigned at = first; at < end; at += LOADS_AHEAD) {
            Chunk chunk[LOADS_AHEAD];
            chunks.load(at, end, chunk);
            for (unsigned i = 0; i < LOADS_AHEAD; ++i) {
                if (at + i < end && (at + i) % group == 0)
                    entries[(at + i) / group] = make_int2(chunk[i].start, (int)sum);
                sum += chunk[i].length;
            }
        }
        return sum;
    }

    // Adds the tokens before the thread's share to what it wrote; the last thread ends the table.
    __device__ void move_share(unsigned thread, unsigned threads, unsigned before, unsigned sum) const
    {
        unsigned share = (num + threads - 1) / threads, first = thread * share;
        for (unsigned e = first; e < min(first + share, num); ++e)
            entries[e].y = (int)((unsigned)entries[e].y + before);
        if (thread == threads - 1) entries[num] = make_int2(INT32_MAX_VALUE, (int)(before + sum));
    }

    __device__ void copy_stored(unsigned thread, unsigned threads) const
    {
        for (unsigned e = thread; e < num; e += threads) entries[e] = stored[(unsigned long long)e * group];
        if (thread == threads - 1) entries[num] = stored[chunks.num];
    }

    // The chunks of an entry: first .. end - 1.
    __device__ unsigned first_of(unsigned entry) const { return entry * group; }
    __device__ unsigned end_of(unsigned entry) const { return min(entry * group + group, chunks.num); }
};

__device__ unsigned warp_running_sum_of(unsigned v)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
        unsigned other = __shfl_up_sync(FULL_MASK, v, distance);
        if (lane >= distance) v += other;
    }
    return v;
}

// Warps of a block that fill a table together: first .. end - 1.
struct Fillers {
    unsigned first, end;
};

// Fills a table, by some of the warps; others may fill another one at the same time.
__device__ void block_fill(const ChunkTable& table, Fillers warps, unsigned (&warp_sums)[WARPS])
{
    unsigned warp = warp_index(), sum = 0;
    unsigned thread = threadIdx.x - warps.first * WARP_THREADS;
    unsigned threads = (warps.end - warps.first) * WARP_THREADS;
    if (table.stored) table.copy_stored(thread, threads);
    else sum = table.write_share(thread, threads);
    unsigned before = warp_running_sum_of(sum);
    if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) warp_sums[warp] = before;
    before -= sum;
    __syncthreads();
    for (unsigned w = warps.first; w < warp; ++w) before += warp_sums[w];
    if (!table.stored) table.move_share(thread, threads, before, sum);
    __syncthreads();
}

// [LTS, UTE] per key column in, lists of full and of partial tiles out, in two launches.
//
// A tile is block_q rows by block_k columns: full where all of its pairs are shown, partial where
// some are, empty where none is; one that hangs over the last row or column is never full.
//
//     block_q 2, block_k 3    column     0  1  2   3  4  5
//                             LTS        6  6  6   4  6  6
//                             UTE        0  1  1   2  4  5
//                             rows 0, 1  partial   empty       kv lists: partial {0}, full {}
//                             rows 2, 3  full      partial               partial {1}, full {0}
//                             rows 4, 5  full      partial               partial {1}, full {0}
//
//     q lists of column tile 0: full between max(UTE) = 1 and min(LTS) = 6: {1, 2}; partial {0}
//     q lists of column tile 1: max(UTE) = 5 is above min(LTS) = 4: full {}; partial {1, 2}
//
// The live row tiles of a column tile, full or partial, are the union of its columns' runs of row
// tiles. A run marks, in words of 32 tiles, the bits of its two end words, and +1 and -1 around the
// words that it covers whole: their running sum tells those from the rest.
//
//   column_tile_lists   a block a column tile; its live words, and by bit counts the q lists
//   row_tile_lists      a warp a row tile; reads its bit of the words of 32 column tiles at once
//
// Columns may be of several slices, (slices, column_num), each with lists of its own: the tiles of one
// follow those of the one before. Both write every entry of their lists once, zeros past the count.
// Moves 8 * N bytes in, the lists out, and one bit a tile and kind between the launches. Bounds are
// clipped to the rows before they are used, so that any bits whatever in the columns give the lists of
// the mask that they show.

#include "tiles.cuh"

// Running sum of v over the block's threads up to this one, and over all of them as `total`. Only the
// first `warps` have a v that is not 0. warp_sums is for this call alone until the next barrier but one.
__device__ int block_running_sum(int v, unsigned warps, int& total, int (&warp_sums)[WARPS])
{
    unsigned warp = threadIdx.x / WARP_THREADS;
    if (warp < warps) {
        v = warp_running_sum(v);
        if (threadIdx.x % WARP_THREADS == WARP_THREADS - 1) warp_sums[warp] = v;
    }
    __syncthreads();
    total = 0;
#pragma unroll 1
    for (unsigned w = 0; w < warps; ++w) {
        if (w < warp) v += warp_sums[w];
        total += warp_sums[w];
    }
    return v;
}

// The highest UTE and the lowest LTS of columns.
struct Extremes {
    int ute, lts;
};

// Returns those of the warp's columns, every BLOCK_THREADS-th of first .. end - 1, in lane 0.
__device__ Extremes warp_extremes(const int2* columns, unsigned first, unsigned end)
{
    Extremes found = {0, INT32_MAX_VALUE};
    for (unsigned column = first + threadIdx.x; column < end; column += BLOCK_THREADS) {
        int2 bounds = columns[column];
        found = {max(found.ute, bounds.y), min(found.lts, bounds.x)};
    }
    bool has_any = first + threadIdx.x / WARP_THREADS * WARP_THREADS < end;
    if (has_any) warp_bound(found.ute, found.lts);
    return found;
}

// Returns the extremes of all warps.
__device__ Extremes joined(const Extremes (&of_warps)[WARPS])
{
    Extremes all = of_warps[0];
    for (const Extremes& each : of_warps) all = {max(all.ute, each.ute), min(all.lts, each.lts)};
    return all;
}

struct SliceTile {
    unsigned slice, tile;
};

// Returns which tile of which slice one of `tiles` is. Only several slices cost a division: 32,768 tokens
// took 5.17 us rather than 5.29.
__device__ SliceTile slice_tile(unsigned number, unsigned tiles, unsigned tiles_a_slice)
{
    if (tiles == tiles_a_slice) return {0, number};
    return {number / tiles_a_slice, number % tiles_a_slice};
}

// Writes the tiles whose bits are set, first_tile + bit, to the list from `at` on, a lane a bit.
__device__ void warp_store_listed(int* list, unsigned at, unsigned first_tile, unsigned bits)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    if (bits >> lane & 1) list[at + __popc(bits & bits_below(lane))] = (int)(first_tile + lane);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void column_tile_lists(
    const int2* columns,     // (slices, column_num) of (LTS, UTE)
    unsigned column_num,     // in [1, INT32_MAX]
    unsigned row_num,        // in [0, INT32_MAX]
    unsigned block_q,        // in [1, INT32_MAX]
    unsigned block_k,        // in [1, INT32_MAX]
    unsigned row_tiles,
    unsigned column_tiles,   // of a slice
    unsigned all_partial,    // no tile counts as full
    uint2* words,            // (ceil(row_tiles / 32), gridDim.x) of (partial, full) bits
    int* q_num_blocks,       // (gridDim.x,)
    int* q_indices,          // (gridDim.x, row_tiles)
    int* full_q_num_blocks,  // (gridDim.x,)
    int* full_q_indices,     // (gridDim.x, row_tiles)
    int* needed)             // (2,): the second is raised to the longest list's length; or 0
{
    __shared__ Extremes extremes[WARPS];
    __shared__ Run full_run;
    __shared__ unsigned end_words[BLOCK_THREADS];     // bits of runs' first and last words
    __shared__ int covering[BLOCK_THREADS];           // runs that cover the word whole, as differences
    __shared__ unsigned partial_words[BLOCK_THREADS];
    __shared__ unsigned partials_before[BLOCK_THREADS];
    __shared__ int warp_sums[2][WARPS];

    unsigned warp = threadIdx.x / WARP_THREADS;
    SliceTile own = slice_tile(blockIdx.x, gridDim.x, column_tiles);
    columns += (unsigned long long)own.slice * column_num;
    unsigned first = own.tile * block_k, end = min(first + block_k, column_num);
    end_words[threadIdx.x] = 0;
    covering[threadIdx.x] = 0;
    Extremes of_warp = warp_extremes(columns, first, end);
    if (threadIdx.x % WARP_THREADS == 0) extremes[warp] = of_warp;
    __syncthreads();
    if (threadIdx.x == 0) {  // divides for all: the other warps go on
        Extremes all = joined(extremes);
        Run full = {0, 0};
        if (end - first == block_k && !all_partial)
            full = full_tiles(all.ute, all.lts, row_num, block_q);
        full_run = full;
    }
    int* list = q_indices + (unsigned long long)blockIdx.x * row_tiles;
    int* full_list = full_q_indices + (unsigned long long)blockIdx.x * row_tiles;
    unsigned word_num = (row_tiles + WORD_TILES - 1) / WORD_TILES, listed = 0;
    for (unsigned word_first = 0; word_first < word_num; word_first += BLOCK_THREADS) {
        unsigned word = word_first + threadIdx.x;  // one a thread
        warps_mark_runs(
            columns, first, end, row_num, block_q, word_first, end_words, covering, threadIdx.x,
            BLOCK_THREADS);
        __syncthreads();

        Run full = full_run;
        if (word_first == 0)
            store_entries(full_list, 0, row_tiles, RunEntries{full}, threadIdx.x, BLOCK_THREADS);
        unsigned word_warps = min((word_num - word_first + WARP_THREADS - 1) / WARP_THREADS, WARPS);
        int unused, partials;
        int covered = block_running_sum(covering[threadIdx.x], word_warps, unused, warp_sums[0]);
        unsigned live = covered > 0 ? FULL_MASK : end_words[threadIdx.x];
        end_words[threadIdx.x] = 0;  // for the next words
        covering[threadIdx.x] = 0;
        unsigned full_bits = bits_of(full, word * WORD_TILES), partial_bits = live & ~full_bits;
        if (word < word_num)
            words[(unsigned long long)word * gridDim.x + blockIdx.x] = make_uint2(partial_bits, full_bits);
        int through = block_running_sum(__popc(partial_bits), word_warps, partials, warp_sums[1]);
        partial_words[threadIdx.x] = partial_bits;
        partials_before[threadIdx.x] = listed + (unsigned)through - __popc(partial_bits);
        __syncthreads();
        for (unsigned w = warp; w < min(word_num - word_first, BLOCK_THREADS); w += WARPS)
            warp_store_listed(list, partials_before[w], (word_first + w) * WORD_TILES, partial_words[w]);
        listed += (unsigned)partials;
    }
    store_entries(list, listed, row_tiles, zeros(), threadIdx.x, BLOCK_THREADS);
    if (threadIdx.x == 0) {
        Run full = full_run;
        q_num_blocks[blockIdx.x] = (int)listed;
        full_q_num_blocks[blockIdx.x] = (int)(full.end - full.first);
        if (needed) atomicMax(&needed[1], (int)max(listed, full.end - full.first));
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void row_tile_lists(
    const uint2* words,       // (ceil(row_tiles / 32), slices, column_tiles) of (partial, full) bits
    unsigned slices,
    unsigned row_tiles,       // at least 1; slices * row_tiles is in [1, INT32_MAX]
    unsigned column_tiles,    // slices * column_tiles is in [0, INT32_MAX]
    int* kv_num_blocks,       // (slices, row_tiles)
    int* kv_indices,          // (slices, row_tiles, column_tiles)
    int* full_kv_num_blocks,  // (slices, row_tiles)
    int* full_kv_indices,     // (slices, row_tiles, column_tiles)
    int* needed)              // (2,): the first is raised to the longest list's length; or 0
{
    constexpr unsigned AHEAD = 8;  // loads in flight
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned row_tile = blockIdx.x * WARPS + threadIdx.x / WARP_THREADS;  // of all slices
    if (row_tile >= slices * row_tiles) return;
    SliceTile own = slice_tile(row_tile, slices * row_tiles, row_tiles);
    const uint2* own_words =
        words + ((unsigned long long)(own.tile / WORD_TILES) * slices + own.slice) * column_tiles;
    unsigned bit = own.tile % WORD_TILES, partials = 0, fulls = 0;
    int* list = kv_indices + (unsigned long long)row_tile * column_tiles;
    int* full_list = full_kv_indices + (unsigned long long)row_tile * column_tiles;

    for (unsigned step = 0; step < column_tiles; step += AHEAD * WARP_THREADS) {
        uint2 word[AHEAD];
        for (unsigned i = 0; i < AHEAD; ++i) {
            unsigned column_tile = step + i * WARP_THREADS + lane;
            word[i] = column_tile < column_tiles ? own_words[column_tile] : make_uint2(0, 0);
        }
        for (unsigned i = 0; i < AHEAD; ++i) {
            unsigned first_tile = step + i * WARP_THREADS;
            unsigned partial_bits = __ballot_sync(FULL_MASK, word[i].x >> bit & 1);
            unsigned full_bits = __ballot_sync(FULL_MASK, word[i].y >> bit & 1);
            warp_store_listed(list, partials, first_tile, partial_bits);
            warp_store_listed(full_list, fulls, first_tile, full_bits);
            partials += __popc(partial_bits);
            fulls += __popc(full_bits);
        }
    }
    store_entries(list, partials, column_tiles, zeros(), lane, WARP_THREADS);
    store_entries(full_list, fulls, column_tiles, zeros(), lane, WARP_THREADS);
    if (lane == 0) {
        kv_num_blocks[row_tile] = (int)partials;
        full_kv_num_blocks[row_tile] = (int)fulls;
        if (needed) atomicMax(&needed[0], (int)max(partials, fulls));
    }
}

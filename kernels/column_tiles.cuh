// Which columns a warp writes: 32 * steps pairs in a row, a lane one pair (16 bytes) a step.

#include "columns.cuh"
#include "sequences.cuh"

struct WarpTile {
    int2* columns;        // (column_num,) of (LTS, UTE)
    unsigned column_num;  // in [1, INT32_MAX]
    unsigned steps;       // pairs a lane
    unsigned lead;        // of columns
    unsigned start;       // the warp's first column + lead
    Span warp_columns;    // that the warp writes
    Span block_columns;   // that its block writes
};

__device__ WarpTile warp_tile(int2* columns, unsigned column_num, unsigned steps)
{
    unsigned lead = column_lead(columns), end = column_num + lead, size = 2 * WARP_THREADS * steps;
    unsigned block = blockIdx.x * WARPS * size, start = block + warp_index() * size;
    Span warp_columns = {max(start, lead) - lead, min(start + size, end) - 1 - lead};
    Span block_columns = {max(block, lead) - lead, min(block + WARPS * size, end) - 1 - lead};
    return {columns, column_num, steps, lead, start, warp_columns, block_columns};
}

// Writes the lane's pair of those columns that the warp writes in one step. `column` is the pair's first;
// -1 in front of a half pair.
__device__ void store_step(const WarpTile& tile, Span columns, unsigned column, int2 a, int2 b)
{
    // All 32 pairs: no lane need test its own.
    bool is_whole = columns.last - columns.first == 2 * WARP_THREADS - 1;
    if (is_whole) store_whole_pair(tile.columns, column, a, b);
    else store_pair(tile.columns, column, tile.column_num, a, b);
}

// What a lane writes where its warp has one step.
struct LanePair {
    unsigned column;  // the first of the two; -1 in front of a half pair
    unsigned two[2];  // both, moved into the warp's columns
};

__device__ LanePair lane_pair(const WarpTile& tile)
{
    unsigned at = tile.start + 2 * (threadIdx.x % WARP_THREADS), last = tile.warp_columns.last;
    unsigned column = at - tile.lead;
    return {column, {min(max(at, tile.lead) - tile.lead, last), min(column + 1, last)}};
}

// Lets the window begin near the sequences of the warp's columns, those of its one step. Up to 256
// sequences cut at random are mostly in a window of 32 around where even ones would be. Of 1,024, too few
// are: 131,072 columns took 2.09 us rather than 2.02.
template <class Source>
__device__ void block_near_sequences(SequenceWindow<Source>& window, const WarpTile& tile)
{
    unsigned batch = window.source.batch;
    window.range = {0, batch};
    if (batch > BLOCK_THREADS)
        window.range = block_narrow_sequences(window.source, tile.block_columns);
    else if (batch >= WARP_THREADS)
        window.warp_load_even(tile.warp_columns.first, tile.column_num);
}

// Writes the columns of the warp, which has one step; bounds(sequence, i, column) are (LTS, UTE) of the
// lane's column i. Straight on, without the loop and what it keeps from step to step.
template <class Source, class Bounds>
__device__ void warp_write_step(
    SequenceWindow<Source>& window, const WarpTile& tile, const LanePair& lane, const Bounds& bounds)
{
    int2 pair[2] = {};
    auto visit = [&](unsigned i, const typename Source::Sequence& sequence, bool holds) {
        int2 found = bounds(sequence, i, lane.column + i);
        pair[i] = holds ? found : pair[i];
    };
    window.warp_require(tile.warp_columns.first);
    window.warp_find(tile.warp_columns, lane.two, visit);
    store_step(tile, tile.warp_columns, lane.column, pair[0], pair[1]);
}

// Columns, written pair by pair, each from what its sequence says. What is written is for the kernel
// to say.
//
// A warp writes 32 * steps pairs of columns in a row, a lane one pair (16 bytes) a step.

#include "columns.cuh"
#include "sequences.cuh"

// What a warp writes.
struct Tile {
    int2* columns;        // (column_num,) of (LTS, UTE)
    unsigned column_num;  // in [1, INT32_MAX]
    unsigned steps;       // pairs a lane
    unsigned lead;        // of columns
    unsigned start;       // first column of the warp + lead
    Span own, of_block;   // columns of the warp, of its block
};

__device__ Tile tile_of_warp(int2* columns, unsigned column_num, unsigned steps)
{
    unsigned lead = column_lead(columns), end = column_num + lead, size = 2 * WARP_THREADS * steps;
    unsigned block = blockIdx.x * WARPS * size, start = block + warp_of_block() * size;
    Span own = {max(start, lead) - lead, min(start + size, end) - 1 - lead};
    Span of_block = {max(block, lead) - lead, min(block + WARPS * size, end) - 1 - lead};
    return {columns, column_num, steps, lead, start, own, of_block};
}

// Writes the warp's columns. ColumnsOf is what a SequenceWindow asks for, and
//   bounds(own, column)  (LTS, UTE) of a column of the sequence
template <class ColumnsOf>
__device__ void write_tile(const ColumnsOf& columns_of, const Tile& tile)
{
    SequenceWindow<ColumnsOf> window(columns_of);
    window.range = sequences_of_block(columns_of, tile.of_block);
    unsigned start = tile.start, lead = tile.lead, lane = threadIdx.x % WARP_THREADS;
    unsigned first = tile.own.first;
    using Sequence = typename ColumnsOf::Sequence;
    Sequence own = {};  // of the column before; at first none
#pragma unroll 1
    for (unsigned step = 0; step < tile.steps && first <= tile.own.last; ++step) {
        unsigned last = min(start + 2 * WARP_THREADS - 1 - lead, tile.own.last);
        unsigned column = start + 2 * lane - lead;  // -1 in front of a half pair
        int2 pair[2] = {};
        if (last < own.end) {  // most go on in the sequence before
            for (unsigned i = 0; i < 2; ++i) pair[i] = columns_of.bounds(own, column + i);
        } else {
            unsigned a = min(max(start + 2 * lane, lead) - lead, last), b = min(column + 1, last);
            auto use = [&](unsigned i, const Sequence& sequence, bool is_it) {
                int2 bounds = columns_of.bounds(sequence, column + i);
                pair[i] = is_it ? bounds : pair[i];
            };
            unsigned of_last = window.find({first, last}, {a, b}, use);
            if (step + 1 < tile.steps) own = columns_of.of_lane(window.own, of_last);
        }
        if (last - first == 2 * WARP_THREADS - 1) store_whole_pair(tile.columns, column, pair[0], pair[1]);
        else store_pair(tile.columns, column, tile.column_num, pair[0], pair[1]);
        start += 2 * WARP_THREADS;
        first = last + 1;
    }
}

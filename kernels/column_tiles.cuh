// Which columns a warp writes: 32 * steps pairs in a row, a lane one pair (16 bytes) a step.

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

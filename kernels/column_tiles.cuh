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

// A tile of columns, written pair by pair: which columns are the block's, and in which sequence each
// of them is. What is written is for the kernel to say.
//
// A block writes BLOCK_THREADS * steps pairs of columns, a warp 32 * steps of them in a row, a lane
// one pair (16 bytes) a step.

#include "columns.cuh"
#include "search.cuh"

struct Tile {
    int2* columns;        // (column_num,) of (LTS, UTE)
    unsigned column_num;  // in [1, INT32_MAX]
    unsigned lead;        // of columns
    unsigned steps;       // pairs a thread
    unsigned first;       // the block's columns: first .. last
    unsigned last;
};

__device__ Tile tile_of_block(int2* columns, unsigned column_num, unsigned steps)
{
    unsigned lead = column_lead(columns);
    unsigned size = 2 * BLOCK_THREADS * steps;
    unsigned start = blockIdx.x * size;
    unsigned first = max(start, lead) - lead;
    unsigned last = min(start + size - 1, column_num + lead - 1) - lead;
    return {columns, column_num, lead, steps, first, last};
}

// A column and the sequence that it is in; batch is the padding behind the last sequence.
struct Place {
    unsigned sequence, column;
};

// Writes the block's columns. bounds.of_pair gives a pair's (LTS, UTE); a whole warp calls it.
template <class AnyCuts, class Bounds>
__device__ void write_tile(const AnyCuts& cuts_k, SequenceRange range, const Tile& tile, Bounds& bounds)
{
    SequenceEnds<AnyCuts> ends = {cuts_k};
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned warp = blockIdx.x * WARPS + threadIdx.x / WARP_THREADS;
    unsigned pair = warp * WARP_THREADS * tile.steps + lane;
    unsigned lead = tile.lead, last_column = tile.column_num - 1;
    unsigned b = 0;
    for (unsigned step = 0; step < tile.steps; ++step, pair += WARP_THREADS) {
        unsigned chunk = 2 * (pair - lane);                // the chunk's first column, + lead
        if (chunk >= tile.column_num + lead) return;       // the same for the whole warp
        unsigned chunk_first = max(chunk, lead) - lead;    // column in [0, column_num)
        unsigned chunk_last = min(chunk + 2 * WARP_THREADS - 1 - lead, last_column);
        if (step == 0) b = warp_upper_bound(ends, range.lo, range.hi, (int)chunk_first);
        unsigned b_limit = chunk_last_sequence(ends, b, range.hi, (int)chunk_last);

        unsigned column = 2 * pair - lead;
        unsigned column_a = min(max(2 * pair, lead) - lead, last_column);
        unsigned column_b = min(column + 1, last_column);
        unsigned b_a = upper_bound(ends, b, b_limit, (int)column_a);
        unsigned b_b = upper_bound(ends, b_a, b_limit, (int)column_b);
        int2 bounds_a, bounds_b;
        bounds.of_pair({b_a, column_a}, {b_b, column_b}, bounds_a, bounds_b);
        store_pair(tile.columns, column, tile.column_num, bounds_a, bounds_b);
        b = __shfl_sync(FULL_MASK, b_b, WARP_THREADS - 1);
    }
}

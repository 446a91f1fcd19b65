// A tile of columns, written pair by pair: which columns are the block's, and in which sequence each
// of them is. What is written is for the kernel to say.
//
// A block writes BLOCK_THREADS * steps pairs of columns, a warp 32 * steps of them in a row, a lane
// one pair (16 bytes) a step.

#include "columns.cuh"
#include "search.cuh"

#define NO_END 0xffffffffu  // kv_end of the padding: behind every column

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

// Writes the block's columns. What they are is asked of columns_of:
//   Sequence                 what its columns need to know of a sequence; {} ends before every column
//     .kv_end                NO_END of the padding, b = batch
//   load(b)                  reads one, the same for the whole warp
//   load_two(b_a, b_b, ..)   reads those of a lane's pair of columns
//   bounds(own, column)      (LTS, UTE) of a column
template <class AnyCuts, class ColumnsOf>
__device__ void write_tile(
    const AnyCuts& cuts_k, SequenceRange range, const Tile& tile, ColumnsOf& columns_of)
{
    SequenceEnds<AnyCuts> ends = {cuts_k};
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned warp = blockIdx.x * WARPS + threadIdx.x / WARP_THREADS;
    unsigned column_num = tile.column_num, lead = tile.lead, last_column = column_num - 1;
    typename ColumnsOf::Sequence own = {};  // of the warp's last column; at first none
#pragma unroll 1
    for (unsigned step = 0; step < tile.steps; ++step) {
        unsigned chunk = 2 * WARP_THREADS * (warp * tile.steps + step);  // the warp's first, + lead
        if (chunk >= column_num + lead) return;                           // the same for the whole warp
        unsigned chunk_last = min(chunk + 2 * WARP_THREADS - 1 - lead, last_column);
        unsigned column = chunk + 2 * lane - lead;
        if (chunk_last < own.kv_end) {  // most chunks go on in the sequence before
            store_pair(
                tile.columns, column, column_num,
                columns_of.bounds(own, column), columns_of.bounds(own, column + 1));
            continue;
        }
        unsigned chunk_first = max(chunk, lead) - lead;
        SequenceRange here = warp_sequence_range(ends, range, (int)chunk_first, (int)chunk_last);
        unsigned column_a = min(max(chunk + 2 * lane, lead) - lead, last_column);
        unsigned column_b = min(column + 1, last_column);
        unsigned b_a = upper_bound(ends, here.lo, here.hi, (int)column_a);
        unsigned b_b = upper_bound(ends, b_a, here.hi, (int)column_b);
        typename ColumnsOf::Sequence of_a, of_b;
        columns_of.load_two(b_a, b_b, of_a, of_b);
        store_pair(
            tile.columns, column, column_num,
            columns_of.bounds(of_a, column_a), columns_of.bounds(of_b, column_b));
        range.lo = __shfl_sync(FULL_MASK, b_b, WARP_THREADS - 1);
        if (step + 1 < tile.steps) own = columns_of.load(range.lo);
    }
}

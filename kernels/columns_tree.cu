// columns_tree: a packed forest of segments in, [LTS, UTE] per key column out.
//
// Segments are packed in depth-first order, each with its parent's number, or -1 for a root. A row
// sees the keys of its own segment up to the diagonal, and all keys of its segment's ancestors.
// The rows that see a key of segment b are those of its subtree, which lie in a row:
//
//     UTE = q_end - clip(keys_after + 1, 0, q_len)     as in the causal rule (columns_rule.cu)
//     LTS = the row end of b's subtree                 (tree.cuh)
//
//     segments 0, 1, 2 of     column   0  1  2  3  4
//     2, 2 and 1 tokens,      segment  0  0  1  1  2
//     parents -1, 0, 0        row 0    x  .  .  .  .
//                             row 1    x  x  .  .  .
//                             row 2    x  x  x  .  .
//                             row 3    x  x  x  x  .
//                             row 4    x  x  .  .  x
//                             UTE      0  1  2  3  4
//                             LTS      5  5  4  4  5
//
//   segment_minima   a block writes the minima of 32 runs of 32 parents, and their own; reads 4 * B
//                    bytes; not launched where segments are few: a walk over them needs no minima
//   columns_tree     a warp writes some columns in a row (column_tiles.cuh), 8 * N bytes in all
//
// Preconditions: columns is 8-byte aligned; the grids cover all pairs and all segments.

#include "column_tiles.cuh"
#include "tree.cuh"

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void segment_minima(
    const int* parent,       // (batch,) words of stride parent_stride
    unsigned parent_stride,  // 1 for int32, 2 for int64
    unsigned batch,          // at least 1
    int* minima)             // (ceil(batch / 32) + ceil(batch / 1024),)
{
    __shared__ int of_runs[RUN];
    let_next_launch_begin();
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    unsigned lane = threadIdx.x % WARP_THREADS, warp = warp_of_block(), first_run = blockIdx.x * RUN;
    static_assert(RUN % WARPS == 0, "the warps share the runs evenly");
    int least[RUN / WARPS];  // all loads in flight at once
    for (unsigned i = 0; i < RUN / WARPS; ++i) {
        unsigned long long segment = (first_run + warp + i * WARPS) * RUN + lane;
        least[i] = segment < batch ? parent[segment * parent_stride] : INT32_MAX_VALUE;
    }
    for (unsigned i = 0; i < RUN / WARPS; ++i) {
        unsigned run = warp + i * WARPS;
        least[i] = warp_min(least[i]);
        if (lane == 0) of_runs[run] = least[i];
        if (lane == 0 && first_run + run < segments.level_1.num) minima[first_run + run] = least[i];
    }
    __syncthreads();
    if (warp != 0) return;
    int least_of_all = warp_min(of_runs[lane]);
    if (lane == 0) minima[segments.level_1.num + blockIdx.x] = least_of_all;
}

struct TreeColumns {
    Pack pack;
    Segments segments;
    Span columns;  // of the warp
    SequenceEnds ends = {pack.k};
    unsigned batch = pack.batch;

    struct Sequence {
        unsigned end;  // of its keys
        unsigned q_end, q_len;
        int row_end;   // of its subtree
    };

    // Reads segment b, which is one more in each lane up to the padding, b = batch. Only the subtrees
    // of segments that have some of the warp's columns are looked up.
    __device__ Sequence load(unsigned b) const
    {
        unsigned lane = threadIdx.x % WARP_THREADS, first = of_warp(b);
        unsigned next = min(b + 1, batch);
        unsigned q_start = pack.q[b], q_end = pack.q[next], kv_start = pack.k[b], kv_end = pack.k[next];
        int parent = b < batch ? segments.parents[b] : -1;
        int next_parent = __shfl_down_sync(FULL_MASK, parent, 1);
        bool is_inner = lane == WARP_THREADS - 1 || next_parent >= (int)b;
        bool is_open = b < batch && is_inner && kv_start <= columns.last && kv_end > columns.first;
        unsigned row_end = q_end;
        for (unsigned open = __ballot_sync(FULL_MASK, is_open); open != 0; open &= open - 1) {
            unsigned at = __ffs((int)open) - 1, own = first + at;
            unsigned up_to_own = FULL_MASK >> (WARP_THREADS - 1 - at);
            unsigned behind = __ballot_sync(FULL_MASK, parent < (int)own) & ~up_to_own;
            unsigned end;
            if (behind != 0) end = __shfl_sync(FULL_MASK, q_start, __ffs((int)behind) - 1);
            else end = pack.q[segments.subtree_end(own, first + WARP_THREADS)];
            if (lane == at) row_end = end;
        }
        return {b < batch ? kv_end : NO_END, q_end, q_end - q_start, (int)row_end};
    }

    __device__ Sequence of_lane(const Sequence& own, unsigned lane) const
    {
        return {
            __shfl_sync(FULL_MASK, own.end, lane),
            __shfl_sync(FULL_MASK, own.q_end, lane),
            __shfl_sync(FULL_MASK, own.q_len, lane),
            __shfl_sync(FULL_MASK, own.row_end, lane)};
    }

    // Returns (LTS, UTE) of a column of the segment.
    __device__ int2 bounds(const Sequence& own, unsigned column) const
    {
        return make_int2(own.row_end, (int)(own.q_end - min(own.end - column, own.q_len)));
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_tree(
    const unsigned* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    unsigned q_stride,             // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    const int* parent,             // (batch,) words of stride parent_stride
    unsigned parent_stride,
    const int* minima,             // by segment_minima, or null where it is not launched
    int2* columns,                 // (column_num,) of (LTS, UTE)
    unsigned column_num,           // in [1, INT32_MAX]
    unsigned steps)                // pairs a thread
{
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    Tile tile = tile_of_warp(columns, column_num, steps);
    TreeColumns tree_columns = {pack, segments, tile.own};
    write_tile(tree_columns, tile);
    wait_for_launch_before();  // so that no launch behind this one begins before its end
}

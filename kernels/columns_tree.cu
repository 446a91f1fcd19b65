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
//   segment_minima   a block writes the minima below one entry of the top level; reads 4 * B bytes
//   columns_tree     a block writes one tile of columns (column_tiles.cuh), 8 * N bytes in all
//
// Up to OWN_SEGMENTS segments, a block of columns_tree finds the minima itself, in shared memory,
// and segment_minima is not launched. Preconditions: columns is 8-byte aligned; the grids cover all
// pairs and the top level.

#include "column_tiles.cuh"
#include "tree.cuh"

#ifndef OWN_SEGMENTS
#error "OWN_SEGMENTS: segments of a forest up to which a block finds their minima itself"
#endif
#define OWN_MINIMA (OWN_SEGMENTS / (RUN - 1) + 8)  // every level rounds up; there are at most 6

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void segment_minima(
    const int* parent,  // (batch,) words of stride parent_stride
    int parent_stride,  // 1 for int32, 2 for int64
    unsigned batch,
    int* minima)        // the levels above the parents, one behind the other
{
    Segments segments = {{parent, parent_stride}, batch, minima};
    write_minima(segments, minima, blockIdx.x, blockIdx.x + 1);
}

template <class AnyCuts>
struct TreeColumns {
    AnyCuts cuts_q, cuts_k;
    Cuts all_cuts_q;
    Segments segments;
    unsigned known;  // the segment whose subtree the warp looked up last
    int known_end;   // its row end

    // What its columns need to know of a segment.
    struct Sequence {
        unsigned q_end, q_len, kv_end;
        int row_end;  // of its subtree
    };

    // Reads segment b as if it had no children; b = segments.num is the padding, which has no end.
    __device__ Sequence load_leaf(unsigned b) const
    {
        unsigned next = min(b + 1, segments.num);
        unsigned q_end = cuts_q[next];
        unsigned kv_end = b < segments.num ? cuts_k[next] : NO_END;
        return {q_end, q_end - (unsigned)cuts_q[b], kv_end, (int)q_end};
    }

    // Has the segment children? The next one is then the first of them.
    __device__ bool is_inner(unsigned b) const
    {
        return b + 1 < segments.num && segments.parents[b + 1] >= (int)b;
    }

    // Makes b the segment that is known; b is the same for the whole warp.
    __device__ void look_up(unsigned b)
    {
        if (b == known) return;
        known = b;
        known_end = all_cuts_q[segments.subtree_end(b)];
    }

    __device__ Sequence load(unsigned b)
    {
        Sequence own = load_leaf(b);
        if (is_inner(b)) {
            look_up(b);
            own.row_end = known_end;
        }
        return own;
    }

    // One subtree at a time by the whole warp; its columns are of few segments with children.
    __device__ void load_two(unsigned b_a, unsigned b_b, Sequence& of_a, Sequence& of_b)
    {
        of_a = load_leaf(b_a);
        of_b = load_leaf(b_b);
        bool a_is_open = is_inner(b_a), b_is_open = is_inner(b_b);
        while (unsigned open = __ballot_sync(FULL_MASK, a_is_open || b_is_open)) {
            unsigned b = __shfl_sync(FULL_MASK, a_is_open ? b_a : b_b, __ffs((int)open) - 1);
            look_up(b);
            if (a_is_open && b_a == b) of_a.row_end = known_end;
            if (b_is_open && b_b == b) of_b.row_end = known_end;
            a_is_open = a_is_open && b_a != b;
            b_is_open = b_is_open && b_b != b;
        }
    }

    // Returns (LTS, UTE) of a column of the segment.
    __device__ int2 bounds(const Sequence& own, unsigned column) const
    {
        return make_int2(own.row_end, (int)(own.q_end - min(own.kv_end - column, own.q_len)));
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_tree(
    const int* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const int* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    int q_stride,             // 1 for int32, 2 for int64
    int k_stride,
    unsigned batch,
    const int* parent,        // (batch,) words of stride parent_stride
    int parent_stride,
    const int* minima,        // by segment_minima, or null: at most OWN_SEGMENTS segments
    int2* columns,            // (column_num,) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned steps)           // pairs a thread
{
    __shared__ Window window;
    __shared__ int own_minima[OWN_MINIMA];
    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    Segments segments = {{parent, parent_stride}, batch, minima ? minima : own_minima};
    if (!minima) write_minima(segments, own_minima, 0, RUN);

    Tile tile = tile_of_block(columns, column_num, steps);
    SequenceRange range = block_sequence_range(cuts_k, batch, (int)tile.first, (int)tile.last);
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        block_stage_cuts(cuts_q, cuts_k, range, batch, window);
        StagedCuts q = {window.q, range.lo}, k = {window.k, range.lo};
        TreeColumns<StagedCuts> tree_columns = {q, k, cuts_q, segments, batch, 0};
        write_tile(k, range, tile, tree_columns);
    } else {
        TreeColumns<Cuts> tree_columns = {cuts_q, cuts_k, cuts_q, segments, batch, 0};
        write_tile(cuts_k, range, tile, tree_columns);
    }
}

// columns_rule: cu_seqlens and a rule in, [LTS, UTE] per key column out, in one launch.
//
// A row sees its keys up to `right` past the diagonal and down to `left` before it. The diagonal
// ends in the sequence's last row and last key, so both bounds are counted from there; with
// keys_after = keys of the sequence behind the column:
//
//     UTE = q_end - clip(keys_after + 1 + right, 0, q_len)
//     LTS = q_end - clip(keys_after - left, 0, q_len)        q_end if the column is a sink
//
//     q_len 3, kv_len 5,       column      0  1  2  3  4
//     left 1, right 0          row 0       .  x  x  .  .
//                              row 1       .  .  x  x  .
//                              row 2       .  .  .  x  x
//                              keys_after  4  3  2  1  0
//                              UTE         0  0  0  1  2
//                              LTS         0  1  2  3  3
//
// Distances are saturated to INT32_MAX = unbounded, which reaches past every sequence, so that no
// sum leaves 32 bits. For valid input every step is exact; for any other, unsigned wrap-around
// gives some number and no undefined behaviour.
//
// A block writes one tile of columns (column_tiles.cuh). Preconditions: columns is 8-byte aligned;
// grid covers all pairs. Moves 8 * N bytes out and the cuts in.

#include "column_tiles.cuh"

struct Rule {
    unsigned left, right, sinks;  // each in [0, INT32_MAX]
};

template <class AnyCuts>
struct RuleBounds {
    AnyCuts cuts_q, cuts_k;
    unsigned batch;
    Rule rule;

    // Returns (LTS, UTE) of a column of sequence b; b = batch is the padding, which nobody sees.
    __device__ int2 of(unsigned b, unsigned column) const
    {
        unsigned next = min(b + 1, batch);  // the padding has no rows: q_start = q_end = total
        unsigned q_end = cuts_q[next];
        int q_len = (int)(q_end - (unsigned)cuts_q[b]);
        unsigned keys_after = (unsigned)cuts_k[next] - 1 - column;
        unsigned rows_from_ute = min(keys_after + 1 + rule.right, (unsigned)q_len);
        unsigned rows_from_lts = (unsigned)min(max((int)(keys_after - rule.left), 0), q_len);
        bool sink = rule.sinks != 0 && column - (unsigned)cuts_k[b] < rule.sinks;
        return make_int2((int)(sink ? q_end : q_end - rows_from_lts), (int)(q_end - rows_from_ute));
    }

    __device__ void of_pair(const Place& a, const Place& b, int2& bounds_a, int2& bounds_b) const
    {
        bounds_a = of(a.sequence, a.column);
        bounds_b = of(b.sequence, b.column);
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void columns_rule(
    const int* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const int* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    int q_stride,             // 1 for int32, 2 for int64
    int k_stride,
    unsigned batch,
    unsigned left,
    unsigned right,
    unsigned sinks,
    int2* columns,            // (column_num,) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned steps)           // pairs a thread
{
    __shared__ int staged_q[WINDOW_SEQUENCES + 2];
    __shared__ int staged_k[WINDOW_SEQUENCES + 2];
    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    Rule rule = {left, right, sinks};

    Tile tile = tile_of_block(columns, column_num, steps);
    SequenceRange range = block_sequence_range(cuts_k, batch, (int)tile.first, (int)tile.last);
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        stage_cuts(cuts_q, cuts_k, range, batch, staged_q, staged_k);
        StagedCuts q = {staged_q, range.lo};
        StagedCuts k = {staged_k, range.lo};
        RuleBounds<StagedCuts> bounds = {q, k, batch, rule};
        write_tile(k, range, tile, bounds);
    } else {
        RuleBounds<Cuts> bounds = {cuts_q, cuts_k, batch, rule};
        write_tile(cuts_k, range, tile, bounds);
    }
}

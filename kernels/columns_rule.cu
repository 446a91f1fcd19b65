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
// A block writes BLOCK_THREADS * steps pairs of columns, a warp 32 * steps of them in a row, a lane
// one pair (16 bytes) a step. Preconditions: columns is 8-byte aligned; grid covers all pairs.
// Moves 8 * N bytes out and the cuts in.

#include "columns.cuh"
#include "search.cuh"

#define NO_END 0xffffffffu  // kv_end of the padding: behind every column

struct Rule {
    unsigned left, right, sinks;  // each in [0, INT32_MAX]
};

// What its columns need to know of a sequence.
struct Sequence {
    unsigned q_end, q_len, kv_start, kv_end;
};

// Reads sequence b; b = batch is the padding, which has no rows and no end.
template <class AnyCuts>
__device__ Sequence load_sequence(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, unsigned b)
{
    unsigned next = min(b + 1, batch);
    unsigned q_end = cuts_q[next];
    unsigned kv_end = b < batch ? cuts_k[next] : NO_END;
    return {q_end, q_end - (unsigned)cuts_q[b], (unsigned)cuts_k[b], kv_end};
}

// Returns (LTS, UTE) of a column of the sequence.
__device__ int2 rule_column(const Sequence& own, Rule rule, unsigned column)
{
    unsigned keys_after = own.kv_end - 1 - column;
    unsigned rows_from_ute = min(keys_after + 1 + rule.right, own.q_len);
    unsigned rows_from_lts = min((unsigned)max((int)(keys_after - rule.left), 0), own.q_len);
    bool sink = column - own.kv_start < rule.sinks;
    return make_int2((int)(sink ? own.q_end : own.q_end - rows_from_lts), (int)(own.q_end - rows_from_ute));
}

template <class AnyCuts>
__device__ void write_tile(
    const AnyCuts& cuts_q, const AnyCuts& cuts_k, unsigned batch, SequenceRange range, Rule rule,
    int2* columns, unsigned column_num, unsigned lead, unsigned steps)
{
    SequenceEnds<AnyCuts> ends = {cuts_k};
    unsigned lane = threadIdx.x % WARP_THREADS;
    unsigned warp = blockIdx.x * WARPS + threadIdx.x / WARP_THREADS;
    unsigned last_column = column_num - 1;
    Sequence own = {};  // of the warp's last column; at first none, which ends before every column
#pragma unroll 1
    for (unsigned step = 0; step < steps; ++step) {
        unsigned chunk = 2 * WARP_THREADS * (warp * steps + step);  // first column of the warp, + lead
        if (chunk >= column_num + lead) return;                      // the same for the whole warp
        unsigned chunk_last = min(chunk + 2 * WARP_THREADS - 1 - lead, last_column);
        unsigned column = chunk + 2 * lane - lead;
        if (chunk_last < own.kv_end) {  // most chunks go on in the sequence before
            store_pair(
                columns, column, column_num,
                rule_column(own, rule, column), rule_column(own, rule, column + 1));
            continue;
        }
        unsigned chunk_first = max(chunk, lead) - lead;
        SequenceRange here = warp_sequence_range(ends, range, (int)chunk_first, (int)chunk_last);
        unsigned column_a = min(max(chunk + 2 * lane, lead) - lead, last_column);
        unsigned column_b = min(column + 1, last_column);
        unsigned b_a = upper_bound(ends, here.lo, here.hi, (int)column_a);
        unsigned b_b = upper_bound(ends, b_a, here.hi, (int)column_b);
        Sequence of_a = load_sequence(cuts_q, cuts_k, batch, b_a);
        Sequence of_b = load_sequence(cuts_q, cuts_k, batch, b_b);
        store_pair(
            columns, column, column_num,
            rule_column(of_a, rule, column_a), rule_column(of_b, rule, column_b));
        range.lo = __shfl_sync(FULL_MASK, b_b, WARP_THREADS - 1);
        if (step + 1 < steps) own = load_sequence(cuts_q, cuts_k, batch, range.lo);
    }
}

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
    __shared__ Window window;
    Cuts cuts_q = {cu_seqlens_q, q_stride};
    Cuts cuts_k = {cu_seqlens_k, k_stride};
    Rule rule = {left, right, sinks};
    unsigned lead = column_lead(columns);
    unsigned tile = 2 * BLOCK_THREADS * steps;  // columns
    unsigned tile_start = blockIdx.x * tile;
    unsigned first = max(tile_start, lead) - lead;
    unsigned last = min(tile_start + tile - 1, column_num + lead - 1) - lead;
    SequenceRange range = block_sequence_range(cuts_k, batch, (int)first, (int)last);
    if (range.hi - range.lo <= WINDOW_SEQUENCES) {
        block_stage_cuts(cuts_q, cuts_k, range, batch, window);
        StagedCuts q = {window.q, range.lo}, k = {window.k, range.lo};
        write_tile(q, k, batch, range, rule, columns, column_num, lead, steps);
    } else {
        write_tile(cuts_q, cuts_k, batch, range, rule, columns, column_num, lead, steps);
    }
}

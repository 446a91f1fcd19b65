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
// A warp writes some columns in a row (column_tiles.cuh). Preconditions: columns is 8-byte aligned;
// grid covers all pairs. Moves 8 * N bytes out and the cuts in.

#include "column_sequences.cuh"
#include "column_tiles.cuh"

struct Rule {
    unsigned left, right, sinks;  // each in [0, INT32_MAX]
};

struct RuleColumns : ColumnSequences {
    Rule rule;

    __device__ Sequence of_lane(const Sequence& own, unsigned lane) const
    {
        return ColumnSequences::of_lane(own, lane, rule.sinks > 0);
    }

    // Returns (LTS, UTE) of a column of the sequence.
    __device__ int2 bounds(const Sequence& own, unsigned column) const
    {
        unsigned keys_after = own.end - 1 - column, q_len = own.q_end - own.q_start;
        unsigned rows_from_ute = min(keys_after + 1 + rule.right, q_len);
        unsigned rows_from_lts = min((unsigned)max((int)(keys_after - rule.left), 0), q_len);
        bool sink = column - own.kv_start < rule.sinks;
        int lts = (int)(sink ? own.q_end : own.q_end - rows_from_lts);
        return make_int2(lts, (int)(own.q_end - rows_from_ute));
    }
};

// Writes the warp's columns.
__device__ void write_tile(const RuleColumns& rule_columns, const Tile& tile)
{
    SequenceWindow<RuleColumns> window(rule_columns);
    window.range = sequences_of_block(rule_columns, tile.of_block);
    unsigned start = tile.start, lead = tile.lead, lane = threadIdx.x % WARP_THREADS;
    unsigned first = tile.own.first;
    using Sequence = RuleColumns::Sequence;
    Sequence own = {};  // of the column before; at first none
#pragma unroll 1
    for (unsigned step = 0; step < tile.steps && first <= tile.own.last; ++step) {
        unsigned last = min(start + 2 * WARP_THREADS - 1 - lead, tile.own.last);
        unsigned column = start + 2 * lane - lead;  // -1 in front of a half pair
        int2 pair[2] = {};
        if (last < own.end) {  // most go on in the sequence before
            for (unsigned i = 0; i < 2; ++i) pair[i] = rule_columns.bounds(own, column + i);
        } else {
            unsigned a = min(max(start + 2 * lane, lead) - lead, last), b = min(column + 1, last);
            auto use = [&](unsigned i, const Sequence& sequence, bool is_it) {
                int2 bounds = rule_columns.bounds(sequence, column + i);
                pair[i] = is_it ? bounds : pair[i];
            };
            unsigned of_last = window.find({first, last}, {a, b}, use);
            if (step + 1 < tile.steps) own = rule_columns.of_lane(window.own, of_last);
        }
        if (last - first == 2 * WARP_THREADS - 1) store_whole_pair(tile.columns, column, pair[0], pair[1]);
        else store_pair(tile.columns, column, tile.column_num, pair[0], pair[1]);
        start += 2 * WARP_THREADS;
        first = last + 1;
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_rule(
    const unsigned* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    unsigned q_stride,             // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    unsigned left,
    unsigned right,
    unsigned sinks,
    int2* columns,                 // (column_num,) of (LTS, UTE)
    unsigned column_num,           // in [1, INT32_MAX]
    unsigned steps)                // pairs a thread
{
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    RuleColumns rule_columns = {{pack}, {left, right, sinks}};
    write_tile(rule_columns, tile_of_warp(columns, column_num, steps));
}

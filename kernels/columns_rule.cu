// columns_rule: cu_seqlens and a rule in, [LTS, UTE] per key column out, in one launch.
//
// A row sees the keys from `left` before the diagonal to `right` past it. The diagonal ends at the last
// row and the last key of the sequence, so both bounds are counted from there. With keys_after, the
// number of keys of the sequence behind the column:
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
// left and right are at most INT32_MAX, which reaches past every sequence. So no sum leaves 32 bits.
// For valid input every step is exact. For any other input, unsigned numbers wrap around: the result is
// some number, and nothing is undefined.
//
// A warp writes some columns in a row (column_tiles.cuh). Preconditions: columns is 8-byte aligned;
// the grid covers all pairs. Moves 8 * N bytes out and the cuts in.

#include "column_sequences.cuh"
#include "column_tiles.cuh"

struct Rule {
    unsigned left, right, sinks;  // each in [0, INT32_MAX]
};

// The rule, and the sequences of columns as a SequenceWindow's Source.
struct RuleColumns : ColumnSequences {
    Rule rule;

    __device__ Sequence warp_shuffle(const Sequence& sequence, unsigned lane) const
    {
        // Only sinks are counted from kv_start. Without sinks a shuffle is spared.
        return ColumnSequences::warp_shuffle(sequence, lane, rule.sinks > 0);
    }

    // Returns (LTS, UTE) of a column of the sequence. Both are counted back from q_end: rows_from_ute is
    // the number of the sequence's rows from UTE on.
    __device__ int2 bounds(const Sequence& sequence, unsigned column) const
    {
        unsigned keys_after = sequence.end - 1 - column, q_len = sequence.q_end - sequence.q_start;
        unsigned rows_from_ute = min(keys_after + 1 + rule.right, q_len);
        unsigned rows_from_lts = min((unsigned)max((int)(keys_after - rule.left), 0), q_len);
        bool is_sink = column - sequence.kv_start < rule.sinks;
        int lts = (int)(is_sink ? sequence.q_end : sequence.q_end - rows_from_lts);
        return make_int2(lts, (int)(sequence.q_end - rows_from_ute));
    }
};

// Writes the columns of the block, each warp one step.
__device__ void block_write_step(const RuleColumns& rule_columns, const WarpTile& tile)
{
    SequenceWindow<RuleColumns> window(rule_columns);
    block_near_sequences(window, tile);
    if (tile.warp_columns.first > tile.warp_columns.last) return;
    auto bounds = [&](const RuleColumns::Sequence& sequence, unsigned, unsigned column) {
        return rule_columns.bounds(sequence, column);
    };
    warp_write_step(window, tile, lane_pair(tile), bounds);
}

// Writes the columns of the block, each warp step by step.
__device__ void block_write_steps(const RuleColumns& rule_columns, const WarpTile& tile)
{
    SequenceWindow<RuleColumns> window(rule_columns);
    window.range = block_narrow_sequences(rule_columns, tile.block_columns);
    unsigned start = tile.start, lead = tile.lead, lane = threadIdx.x % WARP_THREADS;
    unsigned first = tile.warp_columns.first;
    using Sequence = RuleColumns::Sequence;
    Sequence sequence = {};  // of the last column that was found; at first none, whose end is 0
#pragma unroll 1
    for (unsigned step = 0; step < tile.steps && first <= tile.warp_columns.last; ++step) {
        unsigned last = min(start + 2 * WARP_THREADS - 1 - lead, tile.warp_columns.last);
        unsigned column = start + 2 * lane - lead;  // first of the pair; -1 in front of a half pair
        int2 pair[2] = {};
        // Mostly the columns are in the sequence of those before. They need no search then: 64 M columns
        // of one sequence took 118.7 us rather than 129.
        if (last < sequence.end) {
            for (unsigned i = 0; i < 2; ++i) pair[i] = rule_columns.bounds(sequence, column + i);
        } else {
            unsigned a = min(max(start + 2 * lane, lead) - lead, last), b = min(column + 1, last);
            auto visit = [&](unsigned i, const Sequence& found, bool holds) {
                int2 bounds = rule_columns.bounds(found, column + i);
                pair[i] = holds ? bounds : pair[i];
            };
            unsigned last_lane = window.warp_find({first, last}, {a, b}, visit);
            // Only a next step needs the sequence. The last step does without the shuffles.
            bool is_last = step + 1 >= tile.steps;
            if (!is_last) sequence = rule_columns.warp_shuffle(window.lane_sequence, last_lane);
        }
        store_step(tile, {first, last}, column, pair[0], pair[1]);
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
    WarpTile tile = warp_tile(columns, column_num, steps);
    if (steps == 1) block_write_step(rule_columns, tile);
    else block_write_steps(rule_columns, tile);
}

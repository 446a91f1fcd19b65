// columns_modified_rule: cu_seqlens, a rule with modifiers and spans in, [LTS, UTE] per key column
// out, in one launch. A rule without modifiers has a kernel of its own (columns_rule.cu).
//
// A row's position is the key on its diagonal; key j and positions are counted from the sequence's
// first key. The last row's position is row_end - 1: row_end is kv_len, or q_len where the diagonal
// begins at the top left. Key j is seen by the positions from `first` on and before `behind`:
//
//     first  = j - right, or the start of j's block
//     behind = j + left + 1
//     chunks:  first = max(first, the chunk's start); behind = min(behind, the chunk's end)
//     a sink:  behind = no end
//     a span:  first = min(first, its start);         behind = max(behind, its end)
//
//     UTE = q_end - clip(row_end - first, 0, q_len)
//     LTS = q_end - clip(row_end - behind, 0, q_len)
//
//     5 rows, 5 keys,     column  0  1  2  3  4
//     chunks of 3 keys,   row 0   x  .  .  .  .
//     a span [2, 4)       row 1   x  x  .  .  .
//                         row 2   x  x  x  x  .
//                         row 3   .  .  x  x  .
//                         row 4   .  .  .  x  x
//                         UTE     0  1  2  2  4
//                         LTS     3  3  4  5  5
//
// Distances and sizes are at most INT32_MAX, which reaches past every sequence. So no sum leaves 32 bits.
// For valid input every step is exact. For any other input, unsigned numbers wrap around: the result is
// some number, and nothing is undefined.
//
// A warp writes some columns in a row (column_tiles.cuh). It finds their sequences in one window, and
// their spans in another (sequences.cuh). Spans are found by their ends, as sequences are: of all spans,
// only the first that ends behind a column may hold it. So spans cost what as many sequences cost.
// Preconditions: columns is 8-byte aligned; the grid covers all pairs. Moves 8 * N bytes out, the cuts
// and the spans in.

#include "column_sequences.cuh"
#include "column_tiles.cuh"

// Rounds keys below 2**31 down to multiples of a size, without a division:
//     shift = ceil(log2(size)), reciprocal = floor(2**(31 + shift) / size) + 1
//     key / size = floor(2 * key * reciprocal / 2**32) / 2**shift, rounded down
struct Parts {
    unsigned size;  // in [1, INT32_MAX], or 0: there are none
    unsigned reciprocal, shift;

    __device__ unsigned start_of(unsigned key) const
    {
        return (__umulhi(2 * key, reciprocal) >> shift) * size;
    }
};

struct Rule {
    unsigned left, right, sinks;  // each in [0, INT32_MAX]
    bool is_top_left;
    Parts blocks, chunks;
};

// The ends of spans, each a start and an end in a row.
struct SpanEnds {
    Cuts words;
    __device__ unsigned operator[](unsigned s) const { return words[2 * s + 1]; }
};

// The spans of columns as a SequenceWindow's Source: a span is found by its end, as a sequence is.
struct ColumnSpans {
    Cuts words;
    unsigned batch;  // how many
    SpanEnds ends = {words};

    struct Sequence {
        unsigned end, start;
    };

    // Reads span s. Span `batch` holds no column.
    __device__ Sequence load(unsigned s) const
    {
        if (s >= batch) return {NO_END, NO_END};
        return {ends[s], words[2 * s]};
    }

    __device__ Sequence warp_shuffle(const Sequence& span, unsigned lane) const
    {
        return {__shfl_sync(FULL_MASK, span.end, lane), __shfl_sync(FULL_MASK, span.start, lane)};
    }
};

// Finds what the columns of a warp are in, step by step.
template <class Source>
struct Finder {
    using Sequence = typename Source::Sequence;

    SequenceWindow<Source> window;
    Sequence sequence;  // of the last column that was found; at first none, whose end is 0

    __device__ explicit Finder(const Source& source) : window(source), sequence() {}

    // Finds the sequence of each of the lane's columns. The span is that of the warp's columns.
    __device__ void warp_find(Span span, const unsigned (&column)[2], Sequence (&found)[2])
    {
        for (Sequence& each : found) each = sequence;
        if (sequence.end > span.last) return;
        auto visit = [&](unsigned i, const Sequence& one, bool holds) {
            found[i] = holds ? one : found[i];
        };
        unsigned lane = window.warp_find(span, column, visit);
        sequence = window.source.warp_shuffle(window.lane_sequence, lane);
    }
};

// Returns (LTS, UTE) of a column of the sequence. The span is the first that ends behind the column;
// it is not asked for if no column of the warp is in one.
__device__ int2 bounds(
    const Rule& rule, const ColumnSequences::Sequence& sequence, const ColumnSpans::Sequence& span,
    unsigned column, bool is_asked = true)
{
    unsigned j = column - sequence.kv_start, q_len = sequence.q_end - sequence.q_start;
    unsigned row_end = rule.is_top_left ? q_len : sequence.end - sequence.kv_start;
    int first = (int)(j - rule.right);
    unsigned behind = j + rule.left + 1;
    if (rule.blocks.size > 0) first = (int)rule.blocks.start_of(j);
    if (rule.chunks.size > 0) {
        unsigned start = rule.chunks.start_of(j);
        first = max(first, (int)start);
        behind = min(behind, start + rule.chunks.size);
    }
    if (j < rule.sinks) behind = NO_END;
    if (is_asked && span.start <= column) {
        first = min(first, (int)(max(span.start, sequence.kv_start) - sequence.kv_start));
        behind = max(behind, min(span.end, sequence.end) - sequence.kv_start);
    }
    unsigned rows_from_ute = min(row_end - (unsigned)min(first, (int)row_end), q_len);
    unsigned rows_from_lts = min(row_end - min(behind, row_end), q_len);
    return make_int2((int)(sequence.q_end - rows_from_lts), (int)(sequence.q_end - rows_from_ute));
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 4) void columns_modified_rule(
    const unsigned* cu_seqlens_q,   // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,   // (batch + 1,) words of stride k_stride
    unsigned q_stride,              // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    unsigned left,
    unsigned right,
    unsigned sinks,
    unsigned causal_block,          // 0: none
    unsigned chunk_size,            // 0: none
    unsigned is_top_left,
    const unsigned* spans,          // (span_num, 2) words of stride span_stride
    unsigned span_stride,           // 1 for int32, 2 for int64
    unsigned span_num,
    unsigned block_reciprocal,      // of causal_block
    unsigned block_shift,
    unsigned chunk_reciprocal,      // of chunk_size
    unsigned chunk_shift,
    int2* columns,                  // (column_num,) of (LTS, UTE)
    unsigned column_num,            // in [1, INT32_MAX]
    unsigned steps)                 // pairs a thread
{
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Parts blocks = {causal_block, block_reciprocal, block_shift};
    Parts chunks = {chunk_size, chunk_reciprocal, chunk_shift};
    Rule rule = {left, right, sinks, is_top_left != 0, blocks, chunks};
    WarpTile tile = warp_tile(columns, column_num, steps);
    Finder<ColumnSequences> of_sequences(ColumnSequences{pack});
    Finder<ColumnSpans> of_spans(ColumnSpans{{spans, span_stride}, span_num});
    of_sequences.window.range = block_narrow_sequences(of_sequences.window.source, tile.block_columns);
    of_spans.window.range = block_narrow_sequences(of_spans.window.source, tile.block_columns);
    unsigned start = tile.start, lead = tile.lead, lane = threadIdx.x % WARP_THREADS;
    unsigned first = tile.warp_columns.first;
#pragma unroll 1
    for (unsigned step = 0; step < tile.steps && first <= tile.warp_columns.last; ++step) {
        unsigned last = min(start - lead + 2 * WARP_THREADS - 1, tile.warp_columns.last);
        unsigned at = start + 2 * lane, column = at - lead;  // -1 in front of a half pair
        int2 pair[2];
        // Mostly the columns are in the sequence of those before, and no span or one holds them all.
        ColumnSpans::Sequence near = of_spans.sequence;
        if (last < min(of_sequences.sequence.end, near.start)) {
            for (unsigned i = 0; i < 2; ++i)
                pair[i] = bounds(rule, of_sequences.sequence, near, column + i, false);
        } else if (last < min(of_sequences.sequence.end, near.end)) {
            for (unsigned i = 0; i < 2; ++i)
                pair[i] = bounds(rule, of_sequences.sequence, near, column + i);
        } else {
            unsigned two[2] = {min(max(at, lead) - lead, last), min(column + 1, last)};
            ColumnSequences::Sequence sequence[2];
            ColumnSpans::Sequence span[2];
            of_sequences.warp_find({first, last}, two, sequence);
            of_spans.warp_find({first, last}, two, span);
            for (unsigned i = 0; i < 2; ++i) pair[i] = bounds(rule, sequence[i], span[i], column + i);
        }
        bool is_whole = last - first == 2 * WARP_THREADS - 1;  // all 32 pairs: no lane tests its own
        if (is_whole) store_whole_pair(tile.columns, column, pair[0], pair[1]);
        else store_pair(tile.columns, column, tile.column_num, pair[0], pair[1]);
        first = last + 1;
        start += 2 * WARP_THREADS;
    }
}

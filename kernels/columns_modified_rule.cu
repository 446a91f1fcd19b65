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
// A warp writes some columns in a row (column_tiles.cuh), and finds their sequences in a window
// (sequences.cuh). Of all spans, only the first that ends behind a column may hold it. How it is found:
//
//   one step a warp    up to 31 spans: in a window, by its end, as a sequence is
//                      more: by marks. Each thread loads some spans, and marks those of the block's columns
//   more steps a warp, or more spans near a block than it marks: by a search of ends, as for sequences
//
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

// The spans of a block's columns, by where they begin. Without a search, and with one load to wait for
// rather than three: 8,192 columns with 1,000 spans took 1.81 us rather than 2.18.
//
//     spans [1, 3) [3, 3) [3, 6)     position  0  1  2  3  4...
//     of the columns 2, 3, 4...      begins    x  x
//                                    ends      3  6
//
// A column's span is that of the nearest mark at or before it, if it ends behind the column.
struct SpanMarks {
    static constexpr unsigned MOST = 4 * BLOCK_THREADS;  // spans that a block marks
    static constexpr unsigned WORDS = 2 * WARPS;

    unsigned begins[WORDS];            // a bit a position: a span begins there, or in front of position 0
    unsigned ends[2 * BLOCK_THREADS];  // of the spans that begin there
    unsigned first_start;              // of the span that is marked at position 0
};

static_assert(SpanMarks::WORDS <= WARP_THREADS, "a lane has a word of marks");

// The column at position 0, counted with its lead.
__device__ unsigned block_front()
{
    return 2 * BLOCK_THREADS * blockIdx.x;
}

// Marks the spans that hold columns of the block. Returns false if so many spans are near that some could
// be missed: more than one for each column, most of them empty.
__device__ bool block_mark_spans(const ColumnSpans& spans, const WarpTile& tile, SpanMarks& marks)
{
    constexpr unsigned EACH = SpanMarks::MOST / BLOCK_THREADS;
    SequenceRange range = {0, spans.batch};
    if (spans.batch > SpanMarks::MOST) {
        // The room of a graph is filled with empty spans where the last one ends. None is looked at.
        unsigned last = min(tile.block_columns.last, spans.ends[spans.batch - 1] - 1);
        range = block_narrow_sequences(spans, {tile.block_columns.first, last});
    }
    unsigned num = min(range.hi + 1, spans.batch) - range.lo, stride = spans.words.stride;
    if (num > SpanMarks::MOST) return false;
    const unsigned* words = spans.words.words + (unsigned long long)range.lo * (2 * stride);
    ColumnSpans::Sequence span[EACH];  // {end, start}
    for (unsigned i = 0; i < EACH; ++i) {
        unsigned s = i * BLOCK_THREADS + threadIdx.x;
        span[i] = {0, NO_END};
        if (s < num) {
            const unsigned* word = words + (unsigned long long)s * (2 * stride);
            span[i].start = word[0];
            span[i].end = word[stride];
        }
    }
    if (threadIdx.x < SpanMarks::WORDS) marks.begins[threadIdx.x] = 0;
    __syncthreads();
    for (const ColumnSpans::Sequence& each : span) {
        unsigned first = max(each.start, tile.block_columns.first);
        unsigned at = first + tile.lead - block_front();
        if (first >= each.end || first > tile.block_columns.last) continue;
        atomicOr(&marks.begins[at / 32], 1u << at % 32);
        // At most one span begins at a column, or many, if they are no valid spans.
        atomicExch(&marks.ends[at], each.end);
        if (at == 0) atomicExch(&marks.first_start, each.start);
    }
    __syncthreads();
    return true;
}

// Finds the spans of the lane's pair of columns: those of the nearest marks at or before them.
__device__ void warp_find_marked(
    const SpanMarks& marks, const WarpTile& tile, ColumnSpans::Sequence (&found)[2])
{
    unsigned lane = threadIdx.x % WARP_THREADS, position = 2 * threadIdx.x, own = position / 32;
    unsigned lane_word = lane < SpanMarks::WORDS ? marks.begins[lane] : 0;
    unsigned before = __ballot_sync(FULL_MASK, lane_word != 0) & ((1u << own) - 1);
    unsigned other = before ? 31 - __clz((int)before) : own;
    unsigned word = marks.begins[own], other_word = marks.begins[other];
    for (unsigned i = 0; i < 2; ++i, ++position) {
        unsigned bits = word & FULL_MASK >> (31 - position % 32);
        unsigned at = bits ? 32 * own + 31 - __clz((int)bits) : 32 * other + 31 - __clz((int)other_word);
        bool has = bits || before;
        if (!has) at = 0;
        unsigned end = marks.ends[at], start = at == 0 ? marks.first_start : block_front() + at - tile.lead;
        if (has && block_front() + position - tile.lead < end) found[i] = {end, start};
    }
}

// Finds the spans of the lane's pair of columns among up to 31, which are all in the window.
__device__ void warp_find_few(
    const SequenceWindow<ColumnSpans>& window, Span columns, const unsigned (&column)[2],
    ColumnSpans::Sequence (&found)[2])
{
    unsigned from = window.warp_count_ended(columns.first), to = window.warp_count_ended(columns.last);
    unsigned lane[2];
    window.warp_find_lanes(from, to, column, lane);
    for (unsigned i = 0; i < 2; ++i) found[i] = window.source.warp_shuffle(window.lane_sequence, lane[i]);
}

// Writes the columns of the block, each warp one step. Returns false, and has written none, if their
// spans cannot be marked.
__device__ bool block_write_step(
    const Rule& rule, const ColumnSequences& sequences, const ColumnSpans& spans, const WarpTile& tile,
    SpanMarks& marks)
{
    SequenceWindow<ColumnSequences> of_sequences(sequences);
    SequenceWindow<ColumnSpans> of_spans(spans);
    block_near_sequences(of_sequences, tile);
    bool are_few = spans.batch < WARP_THREADS;
    if (!are_few && !block_mark_spans(spans, tile, marks)) return false;
    if (tile.warp_columns.first > tile.warp_columns.last) return true;
    LanePair lane = lane_pair(tile);
    ColumnSpans::Sequence span[2] = {{NO_END, NO_END}, {NO_END, NO_END}};
    if (!are_few) warp_find_marked(marks, tile, span);
    else if (spans.batch > 0) warp_find_few(of_spans, tile.warp_columns, lane.two, span);
    auto of_rule = [&](const ColumnSequences::Sequence& sequence, unsigned i, unsigned column) {
        return bounds(rule, sequence, span[i], column);
    };
    warp_write_step(of_sequences, tile, lane, of_rule);
    return true;
}

// Writes the columns of the block, each warp step by step.
__device__ void block_write_steps(
    const Rule& rule, const ColumnSequences& sequences, const ColumnSpans& spans, const WarpTile& tile)
{
    Finder<ColumnSequences> of_sequences(sequences);
    Finder<ColumnSpans> of_spans(spans);
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
        store_step(tile, {first, last}, column, pair[0], pair[1]);
        first = last + 1;
        start += 2 * WARP_THREADS;
    }
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
    ColumnSpans column_spans = {{spans, span_stride}, span_num};
    __shared__ SpanMarks marks;
    if (steps == 1 && block_write_step(rule, {pack}, column_spans, tile, marks)) return;
    block_write_steps(rule, {pack}, column_spans, tile);
}

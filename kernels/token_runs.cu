// From an id or a position a token: where documents begin, or where spans of tokens lie.
//
// A token begins a run where it is its batch row's first, or where its id is not that of the token
// before (of positions: not the one before plus 1). A run of spans is one of an id other than text's.
//
//     ids           7  7  9  9  9  0  0              text is 0:  0  5  5  0  6
//     starts        1  0  1  0  0  1  0                          0  1  0  0  1
//     stops                                                      0  0  0  1  0
//     count before  0  1  1  2  2  2  3                          0  0  1  1  1
//     list          0  2  5  7                                   [1, 3)  [4, 5)
//     padding is 0: 0  2  5  5              the last span's stop, behind all tokens, has no bit
//
//   mark_runs    a block marks the runs of one group of tokens, a bit a start and a bit a stop, and
//                counts them; reads the tokens once, writes N / 8 bytes (N / 4 of spans)
//   list_runs    a block writes each run of its words where the count of those before it says, and
//                its share of the entries behind the last run; reads N / 8 (N / 4) bytes
//
// No block waits for another. Of values only bits are kept, so that any are good. There are at most
// INT32_MAX tokens.

#include "device.cuh"
#include "overlap.cuh"

constexpr unsigned WORD_BITS = 32;
constexpr unsigned WORDS_AT_ONCE = 4;  // of a warp, whose tokens are in flight together
constexpr unsigned TOKEN_TILE = WARPS * WORDS_AT_ONCE * WORD_BITS;
constexpr unsigned FEW_BITS = 4;       // of a word: its lane writes them one by one

static_assert(WORD_BITS == WARP_THREADS, "a warp's ballot is a word");

// What follows from one token and the one before.
template <class Value>
struct Tokens {
    const Value* values;
    unsigned num, row_length;  // of all tokens, and of those of a batch row
    bool by_positions, of_spans, has_padding;
    long long other_id;        // of padding, or of text

    __device__ bool begins(unsigned token, Value before, Value value) const
    {
        if (row_length == num ? token == 0 : token % row_length == 0) return true;
        if (!by_positions) return value != before;
        // By the order too: the greatest value plus 1 wraps to the least.
        return value <= before || (unsigned long long)value - (unsigned long long)before != 1;
    }

    // Is a run still open behind the last token?
    __device__ bool ends_open() const
    {
        return (!of_spans && !has_padding) || values[num - 1] != other_id;
    }
};

// What is known of a group of tokens.
struct Group {
    unsigned starts;  // how many
    unsigned end;     // of spans: the last stop, else the last start; all tokens if the last run ends
                      // with them; 0 if there is none in the group
};

// Marks the runs of a warp's words of one tile, from first_token on, and adds them to the group.
template <class Value>
__device__ void warp_mark(
    const Tokens<Value>& tokens, unsigned first_token, unsigned* starts, unsigned* stops, Group& group)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    Value value[WORDS_AT_ONCE], before[WORDS_AT_ONCE];
    for (unsigned i = 0; i < WORDS_AT_ONCE; ++i) {
        unsigned token = min(first_token + WORD_BITS * i + lane, tokens.num - 1);
        value[i] = tokens.values[token];
        before[i] = tokens.values[max(token, 1u) - 1];  // the same lines again, but for one lane
    }
    for (unsigned i = 0; i < WORDS_AT_ONCE; ++i) {
        unsigned first = first_token + WORD_BITS * i, token = first + lane;
        bool begins = token < tokens.num && tokens.begins(token, before[i], value[i]);
        bool is_start = begins && (!tokens.of_spans || value[i] != tokens.other_id);
        unsigned start_bits = __ballot_sync(FULL_MASK, is_start), end_bits = start_bits;
        if (first >= tokens.num) continue;
        if (lane == 0) starts[first / WORD_BITS] = start_bits;
        if (tokens.of_spans) {
            bool is_stop = begins && before[i] != tokens.other_id;  // at token 0 of no span
            end_bits = __ballot_sync(FULL_MASK, is_stop);
            if (lane == 0) stops[first / WORD_BITS] = end_bits;
        }
        group.starts += (unsigned)__popc(start_bits);
        if (end_bits != 0) group.end = first + WORD_BITS - 1 - (unsigned)__clz((int)end_bits);
    }
}

// Marks the runs of the block's group. The group is complete in shared memory behind a barrier.
template <class Value>
__device__ void block_mark(
    const Tokens<Value>& tokens, unsigned group_tiles, unsigned* starts, unsigned* stops, Group& shared)
{
    unsigned own = warp_index() * WORDS_AT_ONCE * WORD_BITS;
    unsigned first_tile = blockIdx.x * group_tiles;
    unsigned tile_num = (tokens.num + TOKEN_TILE - 1) / TOKEN_TILE;
    unsigned tile_end = min(first_tile + group_tiles, tile_num);
    bool is_last = threadIdx.x == 0 && tile_end == tile_num && tokens.ends_open();
    Group group = {0, 0};
#pragma unroll 1
    for (unsigned tile = first_tile; tile < tile_end; ++tile)
        warp_mark(tokens, tile * TOKEN_TILE + own, starts, stops, group);
    if (is_last) group.end = tokens.num;
    __syncthreads();  // shared is 0
    if (threadIdx.x % WARP_THREADS == 0) {
        atomicAdd(&shared.starts, group.starts);
        atomicMax(&shared.end, group.end);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void mark_runs(
    const void* tokens,    // (token_num,) of int32 or int64
    int is_int64,
    unsigned token_num,    // in [1, INT32_MAX]
    unsigned row_length,   // of a batch row, in [1, token_num]
    int by_positions,
    int has_padding,
    long long other_id,    // of padding if has_padding, of text if there are stops
    unsigned group_tiles,  // of TOKEN_TILE tokens, in a group
    uint2* groups,         // (gridDim.x,) of (starts, end): see Group
    unsigned* starts,      // (ceil(token_num / 32),)
    unsigned* stops)       // the same, or null where no spans are asked for
{
    __shared__ Group group;
    let_next_launch_begin();
    if (threadIdx.x == 0) group = {0, 0};
    bool of_spans = stops != nullptr;
    if (is_int64) {
        Tokens<long long> wide = {
            static_cast<const long long*>(tokens), token_num, row_length, by_positions != 0, of_spans,
            has_padding != 0, other_id};
        block_mark(wide, group_tiles, starts, stops, group);
    } else {
        Tokens<int> narrow = {
            static_cast<const int*>(tokens), token_num, row_length, by_positions != 0, of_spans,
            has_padding != 0, other_id};
        block_mark(narrow, group_tiles, starts, stops, group);
    }
    __syncthreads();
    if (threadIdx.x == 0) groups[blockIdx.x] = make_uint2(group.starts, group.end);
}

// Returns in lane 0 the sum over the warp.
__device__ unsigned warp_sum(unsigned v)
{
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2)
        v += __shfl_down_sync(FULL_MASK, v, distance);
    return v;
}

__device__ unsigned warp_max(unsigned v)
{
    for (unsigned distance = WARP_THREADS / 2; distance > 0; distance /= 2)
        v = max(v, __shfl_down_sync(FULL_MASK, v, distance));
    return v;
}

// Running sum of v over the warp's lanes up to this one.
__device__ unsigned warp_running_sum(unsigned v)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
        unsigned before = __shfl_up_sync(FULL_MASK, v, distance);
        if (lane >= distance) v += before;
    }
    return v;
}

// Sums over the groups: starts before the block's own, all starts, the end of the last run.
struct Totals {
    unsigned before, starts, end;
};

// Returns in lane 0 the warp's part of the totals; the block's threads read all groups.
__device__ Totals warp_totals(const uint2* groups, unsigned group_num, unsigned own_group)
{
    Totals sum = {0, 0, 0};
#pragma unroll 1
    for (unsigned g = threadIdx.x; g < group_num; g += BLOCK_THREADS) {
        uint2 group = groups[g];
        if (g < own_group) sum.before += group.x;
        sum.starts += group.x;
        sum.end = max(sum.end, group.y);
    }
    return {warp_sum(sum.before), warp_sum(sum.starts), warp_max(sum.end)};
}

__device__ Totals add(const Totals& a, const Totals& b)
{
    return {a.before + b.before, a.starts + b.starts, max(a.end, b.end)};
}

// The words of a block, as mark_runs leaves them.
struct RunWords {
    const unsigned* starts;
    const unsigned* stops;  // null where no spans are asked for
    unsigned end;           // behind the block's last word

    __device__ void load(unsigned long long word, unsigned& start_bits, unsigned& stop_bits) const
    {
        bool exists = word < end;
        start_bits = exists ? starts[word] : 0;
        stop_bits = exists && stops ? stops[word] : 0;
    }
};

// Where runs are written: cu_seqlens, a word an entry, or spans, a pair an entry.
struct RunList {
    int* words;
    unsigned entry_num;
    bool of_spans;

    __device__ void put_start(unsigned run, unsigned token) const
    {
        if (run < entry_num) words[(unsigned long long)run << (unsigned)of_spans] = (int)token;
    }

    // The span that stops in front of a token is the last of those that start before.
    __device__ void put_stop(unsigned starts_before, unsigned token) const
    {
        unsigned run = starts_before - 1;
        if (run < entry_num) words[2 * (unsigned long long)run + 1] = (int)token;
    }

    __device__ void put_empty(unsigned entry, unsigned end) const
    {
        if (of_spans) reinterpret_cast<int2*>(words)[entry] = make_int2((int)end, (int)end);
        else words[entry] = (int)end;
    }
};

// Writes the runs of a warp's words: `before` starts lie before the lane's word, whose first token
// is given. Words of many bits are written by the whole warp, so that it stores side by side.
__device__ void warp_list(
    const RunList& list, unsigned start_bits, unsigned stop_bits, unsigned before, unsigned first_token)
{
    bool is_many = max((unsigned)__popc(start_bits), (unsigned)__popc(stop_bits)) > FEW_BITS;
    if (__ballot_sync(FULL_MASK, is_many) == 0) {
        for (unsigned bits = start_bits, run = before; bits != 0; bits &= bits - 1)
            list.put_start(run++, first_token + (unsigned)__ffs((int)bits) - 1);
        for (unsigned bits = stop_bits; bits != 0; bits &= bits - 1) {
            unsigned bit = (unsigned)__ffs((int)bits) - 1;
            unsigned run = before + (unsigned)__popc(start_bits & ((1u << bit) - 1));
            list.put_stop(run, first_token + bit);
        }
        return;
    }
    unsigned lane = threadIdx.x % WARP_THREADS;
#pragma unroll 4
    for (unsigned word = 0; word < WARP_THREADS; ++word) {
        unsigned starts = __shfl_sync(FULL_MASK, start_bits, word);
        unsigned stops = __shfl_sync(FULL_MASK, stop_bits, word);
        unsigned run = __shfl_sync(FULL_MASK, before, word);
        unsigned token = __shfl_sync(FULL_MASK, first_token, word) + lane;
        run += (unsigned)__popc(starts & ((1u << lane) - 1));
        if (starts >> lane & 1) list.put_start(run, token);
        if (stops >> lane & 1) list.put_stop(run, token);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void list_runs(
    const uint2* groups,      // (group_num,) as mark_runs leaves them
    const unsigned* starts,   // (ceil(token_num / 32),)
    const unsigned* stops,    // the same, or null
    unsigned group_num,       // 0 where there are no tokens
    unsigned token_num,
    unsigned block_groups,    // whose words a block lists
    unsigned block_words,     // of these groups
    int* list,                // (entry_num,), or (entry_num, 2) if there are stops
    unsigned entry_num)
{
    __shared__ Totals totals[WARPS];
    __shared__ unsigned warp_starts[2][WARPS];  // by the round's parity: one barrier a round is enough
    wait_for_launch_before();
    unsigned lane = threadIdx.x % WARP_THREADS, warp = warp_index();
    unsigned word_num = (token_num + WORD_BITS - 1) / WORD_BITS;
    unsigned long long first_word = (unsigned long long)blockIdx.x * block_words;
    unsigned word_end = (unsigned)min((long long)(first_word + block_words), (long long)word_num);
    unsigned own_group = (unsigned)min((long long)blockIdx.x * block_groups, (long long)group_num);
    RunList runs = {list, entry_num, stops != nullptr};
    RunWords words = {starts, stops, word_end};

    unsigned start_bits, stop_bits;  // of this round
    words.load(first_word + threadIdx.x, start_bits, stop_bits);  // in flight with the groups
    Totals own = warp_totals(groups, group_num, own_group);
    if (lane == 0) totals[warp] = own;
    __syncthreads();
    Totals all = {0, 0, 0};
    for (unsigned w = 0; w < WARPS; ++w) all = add(all, totals[w]);

    unsigned before = all.before, round = 0;
#pragma unroll 1
    for (unsigned long long at = first_word; at < word_end; at += BLOCK_THREADS, ++round) {
        unsigned next_start_bits, next_stop_bits;
        words.load(at + BLOCK_THREADS + threadIdx.x, next_start_bits, next_stop_bits);
        unsigned in_word = (unsigned)__popc(start_bits), up_to = warp_running_sum(in_word);
        if (lane == WARP_THREADS - 1) warp_starts[round % 2][warp] = up_to;
        __syncthreads();
        unsigned before_warp = before;
        for (unsigned w = 0; w < WARPS; ++w) {
            if (w < warp) before_warp += warp_starts[round % 2][w];
            before += warp_starts[round % 2][w];
        }
        unsigned first_token = ((unsigned)at + threadIdx.x) * WORD_BITS;
        warp_list(runs, start_bits, stop_bits, before_warp + up_to - in_word, first_token);
        start_bits = next_start_bits;
        stop_bits = next_stop_bits;
    }

    unsigned thread = blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (thread == 0 && runs.of_spans && all.end == token_num) runs.put_stop(all.starts, token_num);
    unsigned long long step = (unsigned long long)gridDim.x * BLOCK_THREADS;
    unsigned long long entry = (unsigned long long)all.starts + thread;
#pragma unroll 1
    for (; entry < entry_num; entry += step) runs.put_empty((unsigned)entry, all.end);
}

// [LTS, UTE] per key column in, lists with room for `width` tiles out, in two launches whose work grows
// with the tiles listed. tile_lists.cu has what a tile and a list are; there they are as wide as there
// are tiles, and so is the work.
//
// The full row tiles of a column tile are one run: those between max(UTE) and min(LTS). Its live row
// tiles, full or partial, are the union of its columns' runs. In a pack that is one run too: from one
// column to the next UTE never falls, and no row between two columns' rows goes unseen, but where rows
// see nothing. So four numbers tell all about a column tile, where its tiles would take two bits each.
// They tell it for any columns of which each, taken in order, meets or touches what those before it
// show. Elsewhere there may be holes: then the column tile's own list of partial tiles tells the rest,
// and, where that was cut to the width, the columns do once more.
//
//     block_q 2, block_k 3    column     0  1  2   3  4  5
//                             LTS        6  6  6   2  8  4      rows of columns 3, 4, 5:
//                             UTE        0  1  1   0  6  2      [0, 2), [6, 8) leaves a hole, [2, 4)
//                             live       [0, 3)    [0, 4), maybe with holes: listed {0, 1, 3}
//                             full       [1, 3)    none
//
// For a row tile the column tiles must be found whose live run holds it. Over 32 column tiles, a chunk,
// and over 32 chunks, a group, the first launch keeps where the live runs begin and end; the second
// passes over the groups, then the chunks, that do not reach its rows. In a pack those that reach them
// lie side by side, so that it looks at few tiles that it does not list.
//
//   narrow_column_tile_lists   a warp a column tile, of which a lane reads four columns side by side
//   narrow_row_tile_lists      a block a window of at most 32 row tiles; a warp finds the window's bits
//                              of a chunk, a lane a column tile, then each warp lists for its row tiles
//
// Every entry of the lists is written once, zeros past the count; a count is at most the width. Moves
// 8 * N bytes in, the lists out, 16 bytes a column tile and 8 a chunk between. Bounds are clipped to the
// rows before they are used: any bits whatever in the columns give the lists of the mask that they show.

#include "tiles.cuh"

constexpr unsigned CHUNK_TILES = 32;    // a lane each
constexpr unsigned GROUP_CHUNKS = 32;   // the same
constexpr unsigned COLUMNS_A_LANE = 4;
constexpr unsigned MOST_ROWS_A_WARP = 4;
constexpr unsigned HOLES = 1u << 31;    // of a run's first tile: it may have holes
constexpr unsigned CUT = 1u << 31;      // of its end: the list of partial tiles was cut

static_assert(CHUNK_TILES % WARPS == 0, "the column tiles of a block lie in one chunk");
static_assert(MOST_ROWS_A_WARP * WARPS <= WORD_TILES, "a window has a bit for each row tile");

// From the first to the last of both.
__device__ Rows joined(Rows a, Rows b)
{
    return {min(a.first, b.first), max(a.end, b.end)};
}

// Do their tiles meet or touch, so that both have one run of them?
__device__ bool are_side_by_side(Rows a, Rows b, unsigned block_q)
{
    if (a.first <= b.end && b.first <= a.end) return true;  // mostly, and without a division
    return a.first / block_q <= (b.end - 1) / block_q + 1 && b.first / block_q <= (a.end - 1) / block_q + 1;
}

// What the columns of a tile have in common.
struct Survey {
    int max_ute, min_lts;
    Rows shown;  // from the first row that sees a column of them to the last
    bool holes;  // maybe between their live tiles
};

// Surveys the columns first .. end - 1; a whole warp, all lanes get it.
__device__ Survey warp_survey(
    const int2* columns, unsigned first, unsigned end, unsigned row_num, unsigned block_q)
{
    constexpr Rows NONE = {FULL_MASK, 0};
    unsigned lane = threadIdx.x % WARP_THREADS;
    int highest = 0, lowest = INT32_MAX_VALUE;
    Rows before = NONE;  // of the columns of earlier steps
    bool holes = false;
    for (unsigned step = first; step < end; step += COLUMNS_A_LANE * WARP_THREADS) {
        Rows own[COLUMNS_A_LANE], through = NONE;
        for (unsigned i = 0; i < COLUMNS_A_LANE; ++i) {
            unsigned column = step + lane * COLUMNS_A_LANE + i;
            own[i] = NONE;
            if (column >= end) continue;
            int2 bounds = columns[column];
            highest = max(highest, bounds.y);
            lowest = min(lowest, bounds.x);
            own[i] = shown_rows(bounds, row_num);
            through = joined(through, own[i]);
        }
        for (unsigned distance = 1; distance < WARP_THREADS; distance *= 2) {
            // Lanes below the distance get their own, which changes nothing.
            unsigned first_below = __shfl_up_sync(FULL_MASK, through.first, distance);
            unsigned end_below = __shfl_up_sync(FULL_MASK, through.end, distance);
            through = joined(through, {first_below, end_below});
        }
        unsigned first_below = __shfl_up_sync(FULL_MASK, through.first, 1);
        unsigned end_below = __shfl_up_sync(FULL_MASK, through.end, 1);
        Rows so_far = lane == 0 ? before : joined(before, {first_below, end_below});
        for (unsigned i = 0; i < COLUMNS_A_LANE; ++i) {
            if (own[i].end && so_far.end) holes |= !are_side_by_side(so_far, own[i], block_q);
            so_far = joined(so_far, own[i]);
        }
        before.first = __shfl_sync(FULL_MASK, so_far.first, WARP_THREADS - 1);
        before.end = __shfl_sync(FULL_MASK, so_far.end, WARP_THREADS - 1);
    }
    warp_bound(highest, lowest);
    highest = __shfl_sync(FULL_MASK, highest, 0);
    lowest = __shfl_sync(FULL_MASK, lowest, 0);
    return {highest, lowest, before, __ballot_sync(FULL_MASK, holes) != 0};
}

// A list of a live run's tiles but for the full ones, zeros behind them.
struct PartialEntries {
    Run live, full;
    __device__ unsigned num() const { return live.end - live.first - (full.end - full.first); }
    __device__ int operator()(unsigned i) const
    {
        if (i >= num()) return 0;
        unsigned tile = live.first + i;
        return (int)(tile < full.first ? tile : tile + (full.end - full.first));
    }
};

// Writes the tiles whose bits are set, first_tile + bit, to the list from `at` on so far as there is
// room, a lane a bit.
__device__ void warp_store_within(
    int* list, unsigned width, unsigned at, unsigned first_tile, unsigned bits)
{
    unsigned lane = threadIdx.x % WARP_THREADS, place = at + (unsigned)__popc(bits & bits_below(lane));
    if ((bits >> lane & 1) && place < width) list[place] = (int)(first_tile + lane);
}

// Lists the live tiles of the columns first .. end - 1, whatever holes there are; returns how many there
// are. None is full: a row that sees all columns joins their tiles to one run. The arrays are the
// warp's own.
__device__ unsigned warp_list_partial(
    const int2* columns, unsigned first, unsigned end, unsigned row_num, unsigned block_q, Run live,
    int* list, unsigned width, unsigned (&end_words)[WARP_THREADS], int (&covering)[WARP_THREADS])
{
    unsigned lane = threadIdx.x % WARP_THREADS, listed = 0;
    for (unsigned word_first = live.first / WORD_TILES; word_first * WORD_TILES < live.end;
         word_first += WARP_THREADS) {
        end_words[lane] = 0;
        covering[lane] = 0;
        __syncwarp();
        warps_mark_runs(
            columns, first, end, row_num, block_q, word_first, end_words, covering, lane, WARP_THREADS);
        __syncwarp();
        unsigned bits = warp_running_sum(covering[lane]) > 0 ? FULL_MASK : end_words[lane];
        for (unsigned left = __ballot_sync(FULL_MASK, bits != 0); left != 0; left &= left - 1) {
            unsigned w = (unsigned)__ffs((int)left) - 1;
            unsigned of_word = __shfl_sync(FULL_MASK, bits, w);
            warp_store_within(list, width, listed, (word_first + w) * WORD_TILES, of_word);
            listed += (unsigned)__popc(of_word);
        }
        __syncwarp();
    }
    return listed;
}

// Extends what is known of a chunk's or a group's live runs by one: x is the bits of the lowest first
// tile inverted, so that zeros stand for none; y is the highest end.
__device__ void extend(uint2* reach, Run live)
{
    atomicMax(&reach->x, ~live.first);
    atomicMax(&reach->y, live.end);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void narrow_column_tile_lists(
    const int2* columns,      // (slices, column_num) of (LTS, UTE)
    unsigned column_num,      // in [1, INT32_MAX]
    unsigned row_num,         // in [0, INT32_MAX]
    unsigned block_q,         // in [1, INT32_MAX]
    unsigned block_k,         // in [1, INT32_MAX]
    unsigned column_tiles,    // of a slice; slices * column_tiles is in [1, INT32_MAX]
    unsigned blocks_a_slice,  // ceil(column_tiles / WARPS)
    unsigned all_partial,     // no tile counts as full
    unsigned width,           // of a list, at most the row tiles
    uint2* groups,            // (slices, ceil(column_tiles / 1024)), zeros before
    uint2* chunks,            // (slices, ceil(column_tiles / 32)), zeros before
    int4* runs,               // (slices, column_tiles) of the live run and the full one
    int* q_num_blocks,        // (slices, column_tiles)
    int* q_indices,           // (slices, column_tiles, width)
    int* full_q_num_blocks,   // (slices, column_tiles)
    int* full_q_indices,      // (slices, column_tiles, width)
    int* needed)              // (2,): the second is raised to the most tiles of a list; or 0
{
    __shared__ unsigned end_words[WARPS][WARP_THREADS];
    __shared__ int covering[WARPS][WARP_THREADS];
    __shared__ Run live_runs[WARPS];
    __shared__ unsigned most_listed[WARPS];

    unsigned warp = threadIdx.x / WARP_THREADS, lane = threadIdx.x % WARP_THREADS;
    unsigned slice = blockIdx.x / blocks_a_slice;
    unsigned block_first = blockIdx.x % blocks_a_slice * WARPS, tile = block_first + warp;
    Run live = {0, 0};
    unsigned most = 0;
    if (tile < column_tiles) {
        columns += (unsigned long long)slice * column_num;
        unsigned first = tile * block_k, end = min(first + block_k, column_num);
        Survey survey = warp_survey(columns, first, end, row_num, block_q);
        live = tiles_of(survey.shown, block_q);
        Run full = {0, 0};
        bool may_be_full = end - first == block_k && !all_partial;
        if (may_be_full) full = full_tiles(survey.max_ute, survey.min_lts, row_num, block_q);

        unsigned long long place = (unsigned long long)slice * column_tiles + tile;
        int *list = q_indices + place * width, *full_list = full_q_indices + place * width;
        unsigned full_num = full.end - full.first;
        store_entries(full_list, 0, width, RunEntries{full}, lane, WARP_THREADS);
        PartialEntries partial = {live, full};
        unsigned partial_num = partial.num();
        if (!survey.holes) {
            store_entries(list, 0, width, partial, lane, WARP_THREADS);
        } else {
            partial_num = warp_list_partial(
                columns, first, end, row_num, block_q, live, list, width, end_words[warp],
                covering[warp]);
            store_entries(list, min(partial_num, width), width, zeros(), lane, WARP_THREADS);
        }
        if (lane == 0) {
            q_num_blocks[place] = (int)min(partial_num, width);
            full_q_num_blocks[place] = (int)min(full_num, width);
            runs[place] = make_int4(
                (int)(live.first | (survey.holes ? HOLES : 0)),
                (int)(live.end | (partial_num > width ? CUT : 0)), (int)full.first, (int)full.end);
        }
        most = max(partial_num, full_num);
    }
    if (lane == 0) {
        live_runs[warp] = live;
        most_listed[warp] = most;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    Run reach = {FULL_MASK, 0};
    for (unsigned w = 0; w < WARPS; ++w) {
        most = max(most, most_listed[w]);
        if (live_runs[w].end == 0) continue;
        reach = {min(reach.first, live_runs[w].first), max(reach.end, live_runs[w].end)};
    }
    if (needed) atomicMax(&needed[1], (int)most);
    if (reach.end == 0) return;
    unsigned chunk = block_first / CHUNK_TILES, chunk_num = (column_tiles - 1) / CHUNK_TILES + 1;
    unsigned group = chunk / GROUP_CHUNKS, group_num = (chunk_num - 1) / GROUP_CHUNKS + 1;
    extend(&chunks[(unsigned long long)slice * chunk_num + chunk], reach);
    extend(&groups[(unsigned long long)slice * group_num + group], reach);
}

// Bit i: does entry i of the reaches, of which `num` are left, touch the window? A lane an entry.
__device__ unsigned warp_reaching(const uint2* reaches, unsigned num, Run window)
{
    unsigned lane = threadIdx.x % WARP_THREADS;
    bool touches = false;
    if (lane < num) {
        uint2 reach = reaches[lane];
        touches = reach.y > window.first && ~reach.x < window.end;
    }
    return __ballot_sync(FULL_MASK, touches);
}

// Which of the tiles base .. base + 31 an ascending list has.
__device__ unsigned bits_of_list(const int* list, unsigned num, unsigned base)
{
    unsigned lo = 0, hi = num, bits = 0;
    while (lo < hi) {
        unsigned middle = lo + (hi - lo) / 2;
        if ((unsigned)list[middle] < base) lo = middle + 1;
        else hi = middle;
    }
    for (; lo < num && (unsigned)list[lo] - base < WORD_TILES; ++lo) bits |= 1u << ((unsigned)list[lo] - base);
    return bits;
}

// Where a block of the second launch finds what it needs of the column tiles of its slice.
struct ColumnTiles {
    const int2* columns;
    unsigned column_num, row_num, block_q, block_k;
    const int4* runs;
    const int* q_num_blocks;
    const int* q_indices;
    unsigned q_width;

    // Which of the row tiles base .. base + 31 are live in a tile, one by one from its columns.
    __device__ unsigned live_bits(unsigned tile, unsigned base) const
    {
        unsigned first = tile * block_k, end = min(first + block_k, column_num), bits = 0;
        for (unsigned column = first; column < end; ++column)
            bits |= bits_of(shown_tiles(columns[column], row_num, block_q), base);
        return bits;
    }

    // Which of the window's row tiles are (partial, full) in a tile.
    __device__ uint2 word(unsigned tile, Run window) const
    {
        int4 run = runs[tile];
        Run live = {(unsigned)run.x & ~HOLES, (unsigned)run.y & ~CUT};
        if (live.first >= window.end || live.end <= window.first) return make_uint2(0, 0);
        unsigned full = bits_of({(unsigned)run.z, (unsigned)run.w}, window.first), partial;
        if (!((unsigned)run.x & HOLES))
            partial = bits_of(live, window.first);
        else if (!((unsigned)run.y & CUT))
            partial = bits_of_list(
                q_indices + (unsigned long long)tile * q_width, (unsigned)q_num_blocks[tile], window.first);
        else
            partial = live_bits(tile, window.first);
        return make_uint2(partial & ~full, full);
    }
};

// What a warp has listed of each of its row tiles; row tile i is WARPS * i behind its first.
struct Listed {
    int *list, *full_list;  // of its first
    unsigned rows, width;
    unsigned partials[MOST_ROWS_A_WARP], fulls[MOST_ROWS_A_WARP];
    __device__ unsigned long long start(unsigned i) const
    {
        return (unsigned long long)i * WARPS * width;
    }
};

// Lists the tiles of the chunks that are held, all threads of a block.
__device__ void block_list_held(
    Listed& listed, unsigned held, const uint2 (&words)[WARPS][CHUNK_TILES],
    const unsigned (&first_tiles)[WARPS])
{
    unsigned warp = threadIdx.x / WARP_THREADS, lane = threadIdx.x % WARP_THREADS;
    __syncthreads();
    for (unsigned c = 0; c < held; ++c) {
        uint2 word = words[c][lane];
        unsigned first_tile = first_tiles[c];
#pragma unroll
        for (unsigned i = 0; i < MOST_ROWS_A_WARP; ++i) {
            if (i >= listed.rows) break;
            unsigned bit = i * WARPS + warp;
            unsigned partial_bits = __ballot_sync(FULL_MASK, word.x >> bit & 1);
            unsigned full_bits = __ballot_sync(FULL_MASK, word.y >> bit & 1);
            warp_store_within(
                listed.list + listed.start(i), listed.width, listed.partials[i], first_tile, partial_bits);
            warp_store_within(
                listed.full_list + listed.start(i), listed.width, listed.fulls[i], first_tile, full_bits);
            listed.partials[i] += (unsigned)__popc(partial_bits);
            listed.fulls[i] += (unsigned)__popc(full_bits);
        }
    }
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void narrow_row_tile_lists(
    const int2* columns,       // (slices, column_num) of (LTS, UTE)
    unsigned column_num,       // in [0, INT32_MAX]
    unsigned row_num,          // in [1, INT32_MAX]
    unsigned block_q,          // in [1, INT32_MAX]
    unsigned block_k,          // in [1, INT32_MAX]
    unsigned row_tiles,        // of a slice; slices * row_tiles is in [1, INT32_MAX]
    unsigned column_tiles,     // of a slice; slices * column_tiles is in [0, INT32_MAX]
    unsigned blocks_a_slice,   // ceil(row_tiles / (rows_a_warp * WARPS))
    unsigned rows_a_warp,      // row tiles of a warp, in [1, MOST_ROWS_A_WARP]
    unsigned width,            // of a list, at most the column tiles
    const uint2* groups,       // these three from narrow_column_tile_lists
    const uint2* chunks,
    const int4* runs,
    const int* q_num_blocks,   // (slices, column_tiles)
    const int* q_indices,      // (slices, column_tiles, q_width)
    unsigned q_width,
    int* kv_num_blocks,        // (slices, row_tiles)
    int* kv_indices,           // (slices, row_tiles, width)
    int* full_kv_num_blocks,   // (slices, row_tiles)
    int* full_kv_indices,      // (slices, row_tiles, width)
    int* needed)               // (2,): the first is raised to the most tiles of a list; or 0
{
    __shared__ uint2 words[WARPS][CHUNK_TILES];  // of the chunks that are held
    __shared__ unsigned first_tiles[WARPS];
    __shared__ unsigned most_listed[WARPS];

    unsigned warp = threadIdx.x / WARP_THREADS, lane = threadIdx.x % WARP_THREADS;
    unsigned slice = blockIdx.x / blocks_a_slice, window_tiles = WARPS * rows_a_warp;
    unsigned window_first = blockIdx.x % blocks_a_slice * window_tiles;
    Run window = {window_first, window_first + window_tiles};
    unsigned long long tiles_before = (unsigned long long)slice * column_tiles;
    ColumnTiles tiles = {columns + (unsigned long long)slice * column_num, column_num, row_num, block_q,
                         block_k, runs + tiles_before, q_num_blocks + tiles_before,
                         q_indices + tiles_before * q_width, q_width};
    unsigned chunk_num = (column_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    unsigned group_num = (chunk_num + GROUP_CHUNKS - 1) / GROUP_CHUNKS;
    chunks += (unsigned long long)slice * chunk_num;
    groups += (unsigned long long)slice * group_num;
    unsigned long long first_place = (unsigned long long)slice * row_tiles + window.first + warp;
    Listed listed = {kv_indices + first_place * width, full_kv_indices + first_place * width, rows_a_warp,
                     width, {}, {}};

    unsigned held = 0;
    for (unsigned step = 0; step < group_num; step += WARP_THREADS) {
        unsigned met_groups = warp_reaching(groups + step, group_num - step, window);
        for (; met_groups != 0; met_groups &= met_groups - 1) {
            unsigned first_chunk = (step + (unsigned)__ffs((int)met_groups) - 1) * GROUP_CHUNKS;
            unsigned met = warp_reaching(chunks + first_chunk, chunk_num - first_chunk, window);
            for (; met != 0; met &= met - 1) {
                unsigned first_tile = (first_chunk + (unsigned)__ffs((int)met) - 1) * CHUNK_TILES;
                if (held == warp) {
                    unsigned tile = first_tile + lane;
                    words[warp][lane] = tile < column_tiles ? tiles.word(tile, window) : make_uint2(0, 0);
                    if (lane == 0) first_tiles[warp] = first_tile;
                }
                if (++held < WARPS) continue;
                block_list_held(listed, held, words, first_tiles);
                held = 0;
            }
        }
    }
    block_list_held(listed, held, words, first_tiles);

    unsigned most = 0;
#pragma unroll
    for (unsigned i = 0; i < MOST_ROWS_A_WARP; ++i) {
        unsigned row_tile = window.first + i * WARPS + warp;
        if (i >= rows_a_warp || row_tile >= row_tiles) break;
        unsigned partials = listed.partials[i], fulls = listed.fulls[i];
        most = max(most, max(partials, fulls));
        store_entries(
            listed.list + listed.start(i), min(partials, width), width, zeros(), lane, WARP_THREADS);
        store_entries(
            listed.full_list + listed.start(i), min(fulls, width), width, zeros(), lane, WARP_THREADS);
        if (lane == 0) {
            kv_num_blocks[first_place + i * WARPS] = (int)min(partials, width);
            full_kv_num_blocks[first_place + i * WARPS] = (int)min(fulls, width);
        }
    }
    if (!needed) return;
    if (lane == 0) most_listed[warp] = most;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned w = 0; w < WARPS; ++w) most = max(most, most_listed[w]);
    atomicMax(&needed[0], (int)most);
}

// columns_tree: a packed forest of segments in, [LTS, UTE] per key column out.
//
// Segments are packed in depth-first order, each with its parent's number, or -1 for a root. A row
// sees the keys of its own segment up to the diagonal, and all keys of its segment's ancestors.
// So the rows that see a key of segment b are those of b's subtree, from some row on. They lie in a row:
//
//     UTE = q_end - clip(keys_after + 1, 0, q_len)     as in the causal rule (columns_rule.cu);
//           q_start, where the segment sees all of itself
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
// A block writes some columns in a row, from a window of segments in shared memory, a segment a thread:
//
//   1. The block guesses where its segments are, as if all segments had one length, and lays the window
//      there. It searches for them only if they are not in the window. A pack of few segments is in one
//      window whole. 131,072 columns of 2,048 segments took 2.17 us rather than 2.54.
//   2. Each warp finds the ends of its segments' subtrees among the parents next to them (tree.cuh).
//   3. Ends that are farther away are looked for in minima of the parents.
//   4. Each warp writes its columns (column_tiles.cuh).
//
//   segment_minima   a block writes the minimum of each of 32 runs of 32 parents, and the minimum of
//                    those; reads 4 * B bytes
//   columns_tree     writes 8 * N bytes
//
// Up to FEW_SEGMENTS segments, segment_minima is not launched: a block that needs minima makes them for
// itself, and most need none. 1 M columns of 16,384 segments took 5.0 us rather than 6.7, but a star of
// as many segments 8.8 rather than 5.5, and a chain 12.8 rather than 7.3.
//
// Preconditions: columns is 8-byte aligned; the grids cover all pairs and all segments.

#include "column_tiles.cuh"
#include "tree.cuh"

#ifndef FEW_SEGMENTS
#error "FEW_SEGMENTS: up to so many, segment_minima is not launched"
#endif

#define BLOCKS_AT_ONCE (__CUDA_ARCH__ == 750 ? 4 : 5)  // on a multiprocessor; sm_75 takes 1,024 threads
constexpr int FEW_RUNS = (FEW_SEGMENTS + RUN - 1) / RUN;
constexpr int NEAR_RUNS = 3;                      // an end is near in its segment's run and the next two
constexpr int SLACK = BLOCK_THREADS / 4;          // segments of a window before the one that is wanted
constexpr int MOST_GUESSED = 16 * BLOCK_THREADS;  // of more segments, a window is searched for at once

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void segment_minima(
    const int* parent,       // (batch,) words of stride parent_stride
    unsigned parent_stride,  // 1 for int32, 2 for int64
    unsigned batch,          // at least 1
    int* minima)             // (ceil(batch / 32) + ceil(batch / 1024),)
{
    let_next_launch_begin();
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    unsigned run = blockIdx.x * RUN, end = min(run + RUN, segments.level_1.num);
    block_write_minima(segments.parents, run, end, minima);
    __syncthreads();
    if (warp_index() != 0) return;
    unsigned lane = threadIdx.x % WARP_THREADS;
    int least = warp_min(run + lane < end ? minima[run + lane] : INT32_MAX_VALUE);
    if (lane == 0) minima[segments.level_1.num + blockIdx.x] = least;
}

// Which segments see all of themselves: a flag each, of 1, 2, 4 or 8 bytes.
struct Flags {
    const unsigned char* first;  // null where none does
    unsigned nbytes;             // of a flag

    // Returns not 0 where the flag is not.
    __device__ unsigned operator[](unsigned b) const
    {
        const unsigned char* flag = first + (unsigned long long)b * nbytes;
        if (nbytes == 1) return *flag;
        if (nbytes == 2) return *reinterpret_cast<const unsigned short*>(flag);
        const unsigned* words = reinterpret_cast<const unsigned*>(flag);
        return nbytes == 4 ? words[0] : words[0] | words[1];
    }
};

// What a thread loads of its segment.
struct LoadedSegment {
    unsigned b, kv_start, kv_end, q_start, q_end;
    int parent;
    unsigned flag;
};

struct Forest {
    Pack pack;
    Segments segments;
    Flags full;

    // Reads segment b. Segments from `batch` on are padding: each ends its own subtree. Only loads are
    // here, no sums with what they give: a sum would make the warp wait for its loads. `masked` in
    // tree.cuh names the gain.
    __device__ LoadedSegment load(unsigned b) const
    {
        unsigned at = min(b, pack.batch), next = min(b + 1, pack.batch);
        int parent = b < pack.batch ? segments.parents[b] : -1;
        unsigned kv_end = b < pack.batch ? pack.k[next] : NO_END;
        unsigned flag = full.first && b < pack.batch ? full[b] : 0;
        return {b, pack.k[at], kv_end, pack.q[at], pack.q[next], parent, flag};
    }

    // Returns the first segment of a window that has the column's segment in it.
    __device__ unsigned block_search(unsigned column) const
    {
        unsigned first = 0, end = pack.batch;
        block_narrow(SequenceEnds{pack.k}, first, end, column, SLACK);
        return first;
    }

    // Returns the same for the block's first column, as if all segments had one length.
    __device__ unsigned guess(unsigned segments_a_block) const
    {
        if (pack.batch < BLOCK_THREADS) return 0;
        unsigned in_front = (unsigned)((unsigned long long)blockIdx.x * segments_a_block >> 16);
        return in_front - min(in_front, SLACK);
    }
};

struct __align__(16) Segment {
    unsigned end;  // of its keys
    // UTE = ute_end - min(keys_after + 1, ute_len): the segment's last row end and its rows; where it
    // sees all of itself, its first row and 0.
    unsigned ute_end, ute_len;
    unsigned row_end;  // of its subtree
};

// Segments in a row, in shared memory.
struct Window {
    Segment at[BLOCK_THREADS];
    int parent[BLOCK_THREADS];
    unsigned q_end[BLOCK_THREADS];
    unsigned begins[WARPS + 1];  // the segment of each warp's first column, and of the next block's
    unsigned start;              // the first key of the first segment
    unsigned has_far;            // whether some subtree ends far away
    int minima[FEW_RUNS];        // of parents, where segment_minima is not launched
};

// Writes what several threads may write at once if cuts are not valid. The value of any of them will do.
// On a GPU a plain store does that. With atomicExch, and __syncthreads_or for has_far, trees took 0.13
// and 0.2 us more.
__device__ void write_any(unsigned& at, unsigned value)
{
#ifdef __CUDA_ARCH__
    at = value;
#else
    atomicExch(&at, value);
#endif
}

// A block's way through its columns.
struct TreeBlock {
    Forest forest;
    WarpTile tile;
    Window& window;

    // Puts the threads' segments into the window, and finds the segments of the warps' first columns.
    __device__ void block_stage(const LoadedSegment& loaded) const
    {
        bool is_full = loaded.flag != 0;
        unsigned ute_end = is_full ? loaded.q_start : loaded.q_end, ute_len = ute_end - loaded.q_start;
        window.at[threadIdx.x] = {loaded.kv_end, ute_end, ute_len, loaded.q_end};
        window.parent[threadIdx.x] = loaded.parent;
        window.q_end[threadIdx.x] = loaded.q_end;
        // Each warp's first column is in one segment. It is in some segment for any cuts, too: the first
        // segment is taken to start at column 0, and the last to have no end.
        unsigned start = loaded.kv_start, end = loaded.kv_end;
        if (threadIdx.x == 0) {
            window.start = loaded.b == 0 ? 0 : start;
            window.has_far = 0;
            start = 0;
        }
        if (threadIdx.x == BLOCK_THREADS - 1) end = NO_END;
        if (loaded.b > forest.pack.batch) start = NO_END;
        unsigned size = 2 * WARP_THREADS * tile.steps, block = blockIdx.x * WARPS * size - tile.lead;
        for (unsigned warp = 0; warp <= WARPS; ++warp) {
            unsigned column = warp == 0 ? tile.block_columns.first : block + warp * size;
            if (start <= column && column < end) write_any(window.begins[warp], threadIdx.x);
        }
        __syncthreads();
    }

    // Finds the row ends of subtrees that end near, for segments that have columns of the span. Returns
    // whether the subtree of the thread's segment ends far away.
    __device__ bool warp_link_near(const LoadedSegment& loaded, Span span) const
    {
        bool is_in_span = loaded.kv_start <= span.last && loaded.kv_end > span.first;
        bool is_asked = is_in_span && loaded.b < forest.pack.batch;
        if (__ballot_sync(FULL_MASK, is_asked) == 0) return false;
        unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
        unsigned hits = 0, run = 0;  // the nearest run with parents below the segment, and their lanes
        for (unsigned i = 1; i <= NEAR_RUNS; ++i) {
            unsigned r = NEAR_RUNS - i;  // the nearest run comes last, and its hits are kept
            int parent = warp + r < WARPS ? window.parent[threadIdx.x + r * RUN] : INT32_MAX_VALUE;
            unsigned below = warp_lanes_below(parent, loaded.b - lane);
            if (r == 0) below &= (FULL_MASK - 1) << lane;  // only segments behind the thread's
            hits = below != 0 ? below : hits;
            run = below != 0 ? r : run;
        }
        // The last segment of the subtree is the one before the first hit.
        unsigned last = (warp + run) * RUN + (unsigned)__ffs((int)hits) - 2;
        if (hits != 0) window.at[threadIdx.x].row_end = window.q_end[last];
        bool is_far = is_asked && hits == 0;
        if (is_far) atomicOr(&window.has_far, 1u);
        return is_far;
    }

    // Finds the row ends of subtrees that end far away.
    __device__ void block_link_far(const LoadedSegment& loaded, bool is_far) const
    {
        Segments all = forest.segments;
        unsigned lane = threadIdx.x % WARP_THREADS, first = warp_uniform(loaded.b - lane), from = first;
        if (all.level_1.first) wait_for_launch_before();  // segment_minima, which writes them
        else {
            all.level_1.first = window.minima;
            unsigned run = warp_uniform(loaded.b - threadIdx.x) / RUN;
            block_write_minima(all.parents, run, all.level_1.num, window.minima);
            __syncthreads();
        }
        // The warp's last segment comes first. The subtrees of its ancestors do not end before its own.
        // So one walk finds all ends: 131,072 columns of a chain of 2,048 took 7.3 us rather than 12.4.
#pragma unroll 1
        for (unsigned far = __ballot_sync(FULL_MASK, is_far); far != 0;) {
            unsigned at = WARP_THREADS - 1 - (unsigned)__clz((int)far);
            far ^= 1u << at;
            from = all.warp_subtree_end(first + at, max(from, first + at + 1));
            unsigned row_end = forest.pack.q[from];
            if (lane == at) window.at[threadIdx.x].row_end = row_end;
        }
        __syncthreads();
    }

    // Sets lo to the column's segment, which is among lo .. hi of the window.
    __device__ void find_segment(unsigned& lo, unsigned hi, unsigned column) const
    {
#pragma unroll 1
        for (unsigned num = hi - lo; num > 0; num /= 2) {
            unsigned half = (num + 1) / 2;
            if (window.at[lo + half - 1].end <= column) lo += half;
        }
    }

    // Writes the thread's pairs of the warp's columns, as far as they are in the span. The segments of
    // the span's columns are in the window.
    __device__ void write_pairs(Span span) const
    {
        unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
        unsigned start = tile.start + 2 * lane;
        unsigned column = start - tile.lead;  // first of the pair; -1 in front of a half pair
        unsigned hi = window.begins[warp + 1], lo = min(window.begins[warp], hi);  // min for any cuts
        find_segment(lo, hi, max(start, tile.lead) - tile.lead);
        Segment segment = window.at[lo];
#pragma unroll 1
        for (unsigned step = 0; step < tile.steps; ++step, column += 2 * WARP_THREADS) {
            int2 pair[2];
            bool has[2];
            for (unsigned i = 0; i < 2; ++i) {
                has[i] = column + i - span.first <= span.last - span.first;
                if (has[i] && segment.end <= column + i && lo < hi) {
                    ++lo;  // mostly the next segment, but not if that is empty or short
                    if (window.at[lo].end <= column + i) find_segment(lo, hi, column + i);
                    segment = window.at[lo];
                }
                unsigned rows_from_ute = min(segment.end - (column + i), segment.ute_len);
                pair[i] = make_int2((int)segment.row_end, (int)(segment.ute_end - rows_from_ute));
            }
            store_due(tile.columns, column, has[0], has[1], pair[0], pair[1]);
        }
    }
};

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, BLOCKS_AT_ONCE) void columns_tree(
    const unsigned* cu_seqlens_q,  // (>= batch + 1,) words of stride q_stride
    const unsigned* cu_seqlens_k,  // (batch + 1,) words of stride k_stride
    unsigned q_stride,             // 1 for int32, 2 for int64
    unsigned k_stride,
    unsigned batch,
    const int* parent,             // (batch,) words of stride parent_stride
    unsigned parent_stride,
    const int* minima,             // by segment_minima, or null where it is not launched
    const unsigned char* full,     // (batch,) flags of full_nbytes, or null where none is set
    unsigned full_nbytes,          // 1, 2, 4 or 8
    int2* columns,                 // (column_num,) of (LTS, UTE)
    unsigned column_num,           // in [1, INT32_MAX]
    unsigned steps,                // pairs a thread
    unsigned segments_a_block)     // on average, times 2**16
{
    __shared__ Window window;
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    Forest forest = {pack, segments, {full, full_nbytes}};
    bool is_searched = batch > MOST_GUESSED;
    unsigned first = forest.guess(segments_a_block);
    LoadedSegment loaded = {};
    if (!is_searched) loaded = forest.load(first + threadIdx.x);  // before anything else is known
    TreeBlock block = {forest, warp_tile(columns, column_num, steps), window};
    Span span = block.tile.block_columns;
    while (span.first <= span.last) {  // mostly once; what is left lies behind the window
        if (is_searched) {
            __syncthreads();
            first = forest.block_search(span.first);
            loaded = forest.load(first + threadIdx.x);
        }
        block.block_stage(loaded);
        bool is_far = block.warp_link_near(loaded, span);
        __syncthreads();
        unsigned end = window.at[BLOCK_THREADS - 1].end;
        bool is_held = is_searched || (window.start <= span.first && span.first < end);
        is_searched = true;
        if (!is_held) continue;
        if (window.has_far) block.block_link_far(loaded, is_far);
        unsigned last = end > span.last ? span.last : max(end, span.first + 1) - 1;
        block.write_pairs({span.first, last});
        span.first = last + 1;
    }
    wait_for_launch_before();  // so that no launch behind this one begins before its end
}

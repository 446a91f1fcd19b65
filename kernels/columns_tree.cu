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
// A block writes some columns in a row, from a window of segments in shared memory, one a thread. Of a
// pack of few segments the window holds them all. Of more, it is laid where the columns' segments would
// be if all were of one length, and searched for only if they are not there. Each thread finds the end
// of its segment's subtree among the parents next to it (tree.cuh); where one is farther, the block
// looks for it in minima of the parents. Then each warp writes its columns (column_tiles.cuh).
//
//   segment_minima   a block writes the minima of 32 runs of 32 parents, and their own; reads 4 * B
//                    bytes; not launched where segments are few: a block in need makes its own
//   columns_tree     writes 8 * N bytes
//
// Preconditions: columns is 8-byte aligned; the grids cover all pairs and all segments.

#include "column_tiles.cuh"
#include "tree.cuh"

#ifndef FEW_SEGMENTS
#error "FEW_SEGMENTS: up to so many, segment_minima is not launched"
#endif

#define BLOCKS_AT_ONCE (__CUDA_ARCH__ == 750 ? 4 : 5)  // on a multiprocessor; sm_75 takes 1,024 threads
constexpr int FEW_RUNS = (FEW_SEGMENTS + RUN - 1) / RUN;
constexpr int NEAR_RUNS = 3;                       // the run of a segment and those behind it
constexpr int SLACK = BLOCK_THREADS / 4;           // segments in front of the one that a window is laid for
constexpr int MOST_GUESSED = 16 * BLOCK_THREADS;   // of more segments, a window is searched for at once

extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void segment_minima(
    const int* parent,       // (batch,) words of stride parent_stride
    unsigned parent_stride,  // 1 for int32, 2 for int64
    unsigned batch,          // at least 1
    int* minima)             // (ceil(batch / 32) + ceil(batch / 1024),)
{
    let_next_launch_begin();
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    unsigned run = blockIdx.x * RUN, end = min(run + RUN, segments.level_1.num);
    write_minima(segments.parents, run, end, minima);
    __syncthreads();
    if (warp_index() != 0) return;
    unsigned lane = threadIdx.x % WARP_THREADS;
    int least = warp_min(run + lane < end ? minima[run + lane] : INT32_MAX_VALUE);
    if (lane == 0) minima[segments.level_1.num + blockIdx.x] = least;
}

// A thread's segment as it is read. Nothing is computed of it at once: that would wait for it.
struct Own {
    unsigned b, kv_start, kv_end, q_start, q_end;
    int parent;
};

struct Forest {
    Pack pack;
    Segments segments;

    // Reads segment b; from `batch` on there is the padding, of which each ends its own subtree.
    __device__ Own load(unsigned b) const
    {
        unsigned at = min(b, pack.batch), next = min(b + 1, pack.batch);
        int parent = b < pack.batch ? segments.parents[b] : -1;
        unsigned kv_end = b < pack.batch ? pack.k[next] : NO_END;
        return {b, pack.k[at], kv_end, pack.q[at], pack.q[next], parent};
    }

    // Returns a window's first segment such that the column's is in the window. A whole block.
    __device__ unsigned search(unsigned column) const
    {
        unsigned first = 0, end = pack.batch;
        block_narrow(SequenceEnds{pack.k}, first, end, column, SLACK);
        return first;
    }

    // The same for the block's first column, if all segments are of one length.
    __device__ unsigned guess(unsigned segments_a_block) const
    {
        if (pack.batch < BLOCK_THREADS) return 0;
        unsigned in_front = (unsigned)((unsigned long long)blockIdx.x * segments_a_block >> 16);
        return in_front - min(in_front, SLACK);
    }
};

struct __align__(16) Segment {
    unsigned end;  // of its keys
    unsigned q_end, q_len;
    unsigned row_end;  // of its subtree
};

// Consecutive segments, in shared memory.
struct Window {
    Segment at[BLOCK_THREADS];
    int parent[BLOCK_THREADS];
    unsigned begins[WARPS + 1];   // the segments of the warps' first columns, and of the next block's
    unsigned start;               // of the first segment's keys
    unsigned has_far;             // whether the end of some subtree is far
    int minima[FEW_RUNS];         // of parents, where segment_minima is not launched
};

// Writes what several threads may write where cuts are not valid; the value of any of them will do.
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

    // Puts the threads' segments into the window.
    __device__ void stage(const Own& own) const
    {
        window.at[threadIdx.x] = {own.kv_end, own.q_end, own.q_end - own.q_start, own.q_end};
        window.parent[threadIdx.x] = own.parent;
        // Each warp's first column is one segment's. Of cuts that are any bits it is some segment's too:
        // the first begins in front of all, and the last ends behind all.
        unsigned start = own.kv_start, end = own.kv_end;
        if (threadIdx.x == 0) {
            window.start = own.b == 0 ? 0 : start;
            window.has_far = 0;
            start = 0;
        }
        if (threadIdx.x == BLOCK_THREADS - 1) end = NO_END;
        if (own.b > forest.pack.batch) start = NO_END;
        unsigned size = 2 * WARP_THREADS * tile.steps, block = blockIdx.x * WARPS * size - tile.lead;
        for (unsigned warp = 0; warp <= WARPS; ++warp) {
            unsigned column = warp == 0 ? tile.block_columns.first : block + warp * size;
            if (start <= column && column < end) write_any(window.begins[warp], threadIdx.x);
        }
        __syncthreads();
    }

    // Finds the row ends of the subtrees of segments that have columns of the span. Returns whether the
    // thread's is far.
    __device__ bool link(const Own& own, Span span) const
    {
        bool is_in_span = own.kv_start <= span.last && own.kv_end > span.first;
        bool is_asked = is_in_span && own.b < forest.pack.batch;
        if (__ballot_sync(FULL_MASK, is_asked) == 0) return false;
        unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
        unsigned hits = 0, run = 0;  // lanes of the nearest run with parents below
        for (unsigned i = 1; i <= NEAR_RUNS; ++i) {
            unsigned r = NEAR_RUNS - i;  // the nearest last
            int parent = warp + r < WARPS ? window.parent[threadIdx.x + r * RUN] : INT32_MAX_VALUE;
            unsigned below = lanes_below(parent, own.b - lane);
            if (r == 0) below &= (FULL_MASK - 1) << lane;
            hits = below != 0 ? below : hits;
            run = below != 0 ? r : run;
        }
        // The last of the subtree is in front of the first with a parent below.
        unsigned last = (warp + run) * RUN + (unsigned)__ffs((int)hits) - 2;
        if (hits != 0) window.at[threadIdx.x].row_end = window.at[last].q_end;
        bool is_far = is_asked && hits == 0;
        if (is_far) atomicOr(&window.has_far, 1u);
        return is_far;
    }

    // Finds the row ends that are far.
    __device__ void link_far(const Own& own, bool is_far) const
    {
        Segments all = forest.segments;
        unsigned lane = threadIdx.x % WARP_THREADS, first = warp_uniform(own.b - lane), from = first;
        if (all.level_1.first) wait_for_launch_before();  // which writes the minima
        else {
            all.level_1.first = window.minima;
            unsigned run = warp_uniform(own.b - threadIdx.x) / RUN;
            write_minima(all.parents, run, all.level_1.num, window.minima);
            __syncthreads();
        }
        // From the last on: what is behind one's subtree is behind those of its ancestors, too.
#pragma unroll 1
        for (unsigned far = __ballot_sync(FULL_MASK, is_far); far != 0;) {
            unsigned at = WARP_THREADS - 1 - (unsigned)__clz((int)far);
            far ^= 1u << at;
            from = all.subtree_end(first + at, max(from, first + at + 1));
            unsigned row_end = forest.pack.q[from];
            if (lane == at) window.at[threadIdx.x].row_end = row_end;
        }
        __syncthreads();
    }

    // Finds the segment of a column among lo .. hi of the window, as lo.
    __device__ void find(unsigned& lo, unsigned hi, unsigned column) const
    {
#pragma unroll 1
        for (unsigned num = hi - lo; num > 0; num /= 2) {
            unsigned half = (num + 1) / 2;
            if (window.at[lo + half - 1].end <= column) lo += half;
        }
    }

    // Writes the warp's columns of the span, all in the window.
    __device__ void write(Span span) const
    {
        unsigned lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS;
        unsigned start = tile.start + 2 * lane, column = start - tile.lead;  // -1 in front of a half pair
        unsigned hi = window.begins[warp + 1], lo = min(window.begins[warp], hi);  // of any cuts
        find(lo, hi, max(start, tile.lead) - tile.lead);
        Segment own = window.at[lo];
#pragma unroll 1
        for (unsigned step = 0; step < tile.steps; ++step, column += 2 * WARP_THREADS) {
            int2 pair[2];
            bool has[2];
            for (unsigned i = 0; i < 2; ++i) {
                has[i] = column + i - span.first <= span.last - span.first;
                if (has[i] && own.end <= column + i && lo < hi) {
                    ++lo;
                    if (window.at[lo].end <= column + i) find(lo, hi, column + i);
                    own = window.at[lo];
                }
                unsigned rows_from_ute = min(own.end - (column + i), own.q_len);
                pair[i] = make_int2((int)own.row_end, (int)(own.q_end - rows_from_ute));
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
    int2* columns,                 // (column_num,) of (LTS, UTE)
    unsigned column_num,           // in [1, INT32_MAX]
    unsigned steps,                // pairs a thread
    unsigned segments_a_block)     // on average, times 2**16
{
    __shared__ Window window;
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    Segments segments = segments_of(parent, parent_stride, batch, minima);
    Forest forest = {pack, segments};
    bool is_searched = batch > MOST_GUESSED;
    unsigned first = forest.guess(segments_a_block);
    Own own = {};
    if (!is_searched) own = forest.load(first + threadIdx.x);  // on its way before anything else is known
    TreeBlock block = {forest, warp_tile(columns, column_num, steps), window};
    Span span = block.tile.block_columns;
    while (span.first <= span.last) {  // once, mostly: what is left is behind the window
        if (is_searched) {
            __syncthreads();
            first = forest.search(span.first);
            own = forest.load(first + threadIdx.x);
        }
        block.stage(own);
        bool is_far = block.link(own, span);
        __syncthreads();
        unsigned end = window.at[BLOCK_THREADS - 1].end;
        bool is_held = is_searched || (window.start <= span.first && span.first < end);
        is_searched = true;
        if (!is_held) continue;
        if (window.has_far) block.link_far(own, is_far);
        unsigned last = end > span.last ? span.last : max(end, span.first + 1) - 1;
        block.write({span.first, last});
        span.first = last + 1;
    }
    wait_for_launch_before();  // so that no launch behind this one begins before its end
}

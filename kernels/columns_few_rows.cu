// Intervals of few rows in, [LTS, UTE] per key column out, in one launch: a block finds the sequences of
// its TILE columns, reads all of their rows, and marks them (marks.cuh). Reads up to 8 * Q bytes a block,
// writes 8 * N. 4,096 rows of one sequence took 3.9 us rather than 6.0 with the two launches of
// columns_intervals.cu as they were then, of 32 sequences 3.4 rather than 6.5.
//
// Blocks need no other block. No address depends on an interval.

#include "marks.cuh"

constexpr unsigned LINE = 128;  // bytes of a cache line

__device__ void prefetch_line([[maybe_unused]] const char* at)
{
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// Asks for the block's share of all rows before it knows which it reads: then they come from the L2.
__device__ void prefetch_rows(const Intervals& intervals)
{
    unsigned long long nbytes = (unsigned long long)intervals.row_num * (intervals.is_int64 ? 16 : 8);
    unsigned long long at = (unsigned long long)LINE * (blockIdx.x * BLOCK_THREADS + threadIdx.x);
    for (; at < nbytes; at += (unsigned long long)LINE * gridDim.x * BLOCK_THREADS)
        prefetch_line(static_cast<const char*>(intervals.pairs) + at);
}

// Finds the sequences of the tile's columns and their rows, into shared memory: warp 0 the first, warp 1
// the last.
struct TileSequences {
    unsigned sequence[2], row[2];
};

__device__ void block_find_sequences(
    const Pack& pack, const RowWarp& warp, const SequenceRange& range, ColumnSpan columns,
    TileSequences& found)
{
    for (unsigned which = warp_index(); which < 2; which += WARPS) {
        unsigned column = which ? (unsigned)columns.last : (unsigned)max(columns.first, 0), b;
        if (pack.batch < WARP_THREADS) {  // all are in the warp's window
            bool has_ended = (unsigned)warp.window.lane_sequence.kv_end <= column;
            b = min((unsigned)__popc(__ballot_sync(FULL_MASK, has_ended)), pack.batch);
        } else {
            b = warp_upper_bound(SequenceEnds{pack.k}, range.lo, range.hi, column);
        }
        if (threadIdx.x % WARP_THREADS > 0) continue;
        found.sequence[which] = b;
        found.row[which] = pack.q[which ? min(b + 1, pack.batch) : b];
    }
}

// Marks all rows of the tile's sequences. The warps take turns with the strips.
__device__ void block_mark_rows(const MarkedTile& tile, RowWarp& warp, const Intervals& intervals)
{
    if (!tile.has_rows()) return;
    unsigned strip = tile.first_row / STRIP + warp_index(), last = (tile.row_end - 1) / STRIP;
    if (strip > last) return;
    Four start, end, next_start, next_end;  // two strips are loaded while one is marked
    load_strip(intervals, strip, start, end);
    load_strip(intervals, min(strip + WARPS, last), next_start, next_end);
    warp.window.range = tile.sequences;
    if (warp.window.source.batch >= WARP_THREADS) warp.window.warp_load(tile.sequences.lo);
#pragma unroll 1
    for (; strip <= last; strip += WARPS) {
        Four third_start, third_end;
        load_strip(intervals, min(strip + 2 * WARPS, last), third_start, third_end);
        warp_mark_strip(tile, warp, strip, start, end, true, true);
        start = next_start;
        end = next_end;
        next_start = third_start;
        next_end = third_end;
    }
}

// Turns the block's marks into the threads' bounds, (lts, ute).
__device__ void block_count_rows(
    Four& lts, Four& ute, const ColumnShared& shared, WarpEdges& ute_edges, WarpEdges& lts_edges)
{
    ute = get_four(shared.ute + PER_THREAD * threadIdx.x);
    lts = get_four(shared.lts + PER_THREAD * threadIdx.x);
    warp_running_min_from_right(ute);
    warp_running_max(lts);
    publish_min(ute, ute_edges);
    publish_max(lts, lts_edges);
    __syncthreads();
    fold_min_behind(ute, ute_edges);
    fold_max_before(lts, lts_edges);
    for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);
}

extern "C" __global__ __launch_bounds__(BLOCK_THREADS, 2) void columns_of_few_rows(
    const unsigned* cu_seqlens_q,  // all as for row_staircases
    const unsigned* cu_seqlens_k,
    unsigned q_stride,
    unsigned k_stride,
    unsigned batch,
    const void* attn_mask_kv,
    int is_int64,
    unsigned row_num,
    int2* columns,                 // as for columns_of_staircases
    unsigned column_num)
{
    __shared__ ColumnShared shared;
    __shared__ TileSequences found;
    __shared__ WarpEdges ute_edges, lts_edges;
    if (blockIdx.x * TILE >= column_num + column_lead(columns)) return;
    Intervals intervals = intervals_of(attn_mask_kv, row_num, is_int64);
    prefetch_rows(intervals);
    Pack pack = {{cu_seqlens_q, q_stride}, {cu_seqlens_k, k_stride}, batch};
    RowWarp warp(pack);
    ColumnSpan span = span_of(blockIdx.x, TILE, columns, column_num);
    block_find_sequences(pack, warp, block_narrow_to_columns(pack, span, span), span, found);
    put_four(shared.ute + PER_THREAD * threadIdx.x, {{NO_ROW, NO_ROW, NO_ROW, NO_ROW}});
    put_four(shared.lts + PER_THREAD * threadIdx.x, {});
    __syncthreads();
    MarkedTile tile = {
        span,
        {warp_uniform(found.sequence[0]), warp_uniform(found.sequence[1])},
        warp_uniform(min(found.row[0], row_num)),
        warp_uniform(min(found.row[1], row_num)),
        shared.ute,
        shared.lts};
    mark_sequences<true, BLOCK_THREADS>(tile, pack, intervals);
    block_mark_rows(tile, warp, intervals);
    __syncthreads();
    Four lts, ute;
    block_count_rows(lts, ute, shared, ute_edges, lts_edges);
    unsigned first = (unsigned)span.first + STRIP * warp_index();
    warp_store_columns(lts, ute, columns, first, column_num, shared);
}

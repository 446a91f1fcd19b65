// In which sequences of a pack a warp's positions (rows or columns) are.
//
// A warp looks at a window of 32 sequences in a row, one a lane. It begins with the sequence of the
// warp's first position. A position's sequence is found by counting the lanes whose sequences end at
// or before it:
//
//     cu_seqlens  0  3  3  5  9      lane      0  1  2  3  4...
//                                    end       3  3  5  9  never: the padding
//                                    position  0  1  2  3  4  5
//                                    lane      0  0  0  2  2  3
//
// So the empty sequence 1 holds none. The window moves on with the positions. It is kept in
// registers, and no warp waits for another. No address depends on the value of a cut. Every loop
// ends whatever the cuts are.

#include "search.cuh"

constexpr unsigned NO_END = 0xffffffffu;  // the end of the padding, behind every position

// cu_seqlens of int32 (stride 1) or int64 (stride 2) as 32-bit words: valid values fit in the low one.
struct Cuts {
    const unsigned* words;
    unsigned stride;
    __device__ unsigned operator[](unsigned i) const
    {
        return words[(unsigned long long)i * stride];
    }
};

// The ends of the sequences: ends[b] = cuts[b + 1].
struct SequenceEnds {
    Cuts cuts;
    __device__ unsigned operator[](unsigned b) const { return cuts[b + 1]; }
};

struct Pack {
    Cuts q, k;
    unsigned batch;
};

// Positions first .. last. If there are none, first is behind last.
struct Span {
    unsigned first, last;
};

// The sequences lo .. hi, among which are those of all positions of a block. hi may be the padding.
struct SequenceRange {
    unsigned lo, hi;
};

// Narrows all sequences to those of the block's positions, until they are few or do not get fewer.
// 131,072 columns of 1,024 sequences took 2.03 us, and 2.49 where each warp searched for itself.
template <class Source>
__device__ SequenceRange block_narrow_sequences(const Source& source, Span positions)
{
    SequenceRange range = {0, source.batch};
#pragma unroll 1
    while (range.hi - range.lo > BLOCK_THREADS) {
        unsigned length = range.hi - range.lo;
        unsigned step = (length + BLOCK_THREADS - 1) / BLOCK_THREADS;
        unsigned probe = range.lo + (threadIdx.x + 1) * step - 1;
        unsigned end = probe < range.hi ? source.ends[probe] : NO_END;
        unsigned ended_before_first = __syncthreads_count(end <= positions.first);
        unsigned ended_before_last = __syncthreads_count(end <= positions.last);
        unsigned hi = min(range.hi, range.lo + (ended_before_last + 1) * step - 1);
        range.lo = warp_uniform(range.lo + ended_before_first * step);
        range.hi = warp_uniform(max(range.lo, hi));
        if (range.hi - range.lo > length / 2) break;
    }
    return range;
}

// The window of a warp. Source says what the positions need to know of their sequences:
//   Sequence                       has .end, the first position behind it
//   ends, batch                    the ends of all sequences, and how many there are
//   load(b)                        reads sequence b. Sequence `batch` is the padding
//   warp_shuffle(sequence, lane)   returns the `sequence` that the lane gives
template <class Source>
struct SequenceWindow {
    using Sequence = typename Source::Sequence;

    Source source;
    Sequence lane_sequence;  // one for each lane
    unsigned first;          // the number of lane 0's sequence
    SequenceRange range;     // of the block's positions; set by the user before the first warp_find

    // Up to 31 sequences are loaded before anything else is known: 1,024 columns of one sequence took
    // 1.29 us rather than 1.33. For more, the window begins in front of all sequences, and all its lanes
    // have ended.
    __device__ explicit SequenceWindow(const Source& source)
        : source(source), lane_sequence(), first(0u - WARP_THREADS)
    {
        if (source.batch < WARP_THREADS) warp_load(0);
    }

    // Lays the window over the sequences from b on.
    __device__ void warp_load(unsigned b)
    {
        first = b;
        lane_sequence = source.load(min(first + threadIdx.x % WARP_THREADS, source.batch));
    }

    // Lays the window around the sequence that holds the position, of position_num, if all sequences are
    // of one length. So the load need not wait for a search: 1,024 columns of 64 sequences took 1.30 us
    // rather than 1.47. The batch is at least WARP_THREADS.
    __device__ void warp_load_even(unsigned position, unsigned position_num)
    {
        constexpr unsigned HALF = WARP_THREADS / 2;
        float share = __fdividef((float)position, (float)position_num);
        unsigned middle = (unsigned)(share * (float)source.batch);
        warp_load(min(max(middle, HALF) - HALF, source.batch - (WARP_THREADS - 1)));
    }

    // If the window begins behind the position's sequence, lets it begin in front of all sequences.
    __device__ void warp_require(unsigned position)
    {
        if (first == 0 || warp_count_ended(position) > 0) return;
        first = 0u - WARP_THREADS;
        lane_sequence = {};
    }

    // Returns how many sequences of the window end at or before the position.
    __device__ unsigned warp_count_ended(unsigned position) const
    {
        return __popc(__ballot_sync(FULL_MASK, lane_sequence.end <= position));
    }

    // Lets the window begin with the position's sequence, or with one a little before it.
    __device__ void warp_move_to(unsigned position)
    {
        unsigned passed = warp_count_ended(position), b = first + passed;
        if (passed == WARP_THREADS) {
            b = max(b, range.lo);
            unsigned hi = max(b, range.hi);
            warp_narrow(source.ends, b, hi, position, WARP_THREADS);
        }
        warp_load(b);
    }

    // Finds the sequences of COUNT positions of each lane. Calls visit(i, sequence, holds), where
    // `holds` says whether the sequence holds position i; it is true once for each i. All positions
    // of the warp are in the span, which is not before the span of the call before. Returns the lane
    // that has the sequence of the span's last position.
    template <unsigned COUNT, class Visit>
    __device__ unsigned warp_find(Span span, const unsigned (&position)[COUNT], Visit visit)
    {
        unsigned last_lane = warp_count_ended(span.last);
        if (last_lane == WARP_THREADS) {
            warp_move_to(span.first);
            last_lane = warp_count_ended(span.last);
        }
        if (last_lane == WARP_THREADS) return warp_find_across(span, position, visit);
        unsigned lane[COUNT];
        // The first lane is not behind the last for valid cuts; min makes it so for any.
        warp_find_lanes(min(warp_count_ended(span.first), last_lane), last_lane, position, lane);
        for (unsigned i = 0; i < COUNT; ++i) visit(i, source.warp_shuffle(lane_sequence, lane[i]), true);
        return last_lane;
    }

    // The same, window by window, for a span that goes on behind the window. Kept apart, so that the
    // common case need not test positions: 16 M columns of 131,072 sequences took 34.2 us rather than
    // 37.4.
    template <unsigned COUNT, class Visit>
    __device__ unsigned warp_find_across(Span span, const unsigned (&position)[COUNT], Visit visit)
    {
        while (true) {
            unsigned ended = warp_count_ended(span.last), last_lane = min(ended, WARP_THREADS - 1u);
            unsigned window_end = __shfl_sync(FULL_MASK, lane_sequence.end, WARP_THREADS - 1);
            unsigned next = max(window_end, span.first + 1);
            if (ended < WARP_THREADS) next = NO_END;
            unsigned lane[COUNT];
            warp_find_lanes(min(warp_count_ended(span.first), last_lane), last_lane, position, lane);
            for (unsigned i = 0; i < COUNT; ++i) {
                bool holds = position[i] >= span.first && position[i] < next;
                visit(i, source.warp_shuffle(lane_sequence, lane[i]), holds);
            }
            if (next > span.last) return last_lane;
            span.first = next;
            warp_move_to(next);
        }
    }

    // Finds the lanes that have the positions' sequences, all of which are in the lanes from .. to.
    template <unsigned COUNT>
    __device__ void warp_find_lanes(
        unsigned from, unsigned to, const unsigned (&position)[COUNT], unsigned (&lane)[COUNT]) const
    {
        for (unsigned& each : lane) each = from;
#pragma unroll 1
        for (unsigned b = from; b < to; ++b) {
            unsigned end = __shfl_sync(FULL_MASK, lane_sequence.end, b);
            for (unsigned i = 0; i < COUNT; ++i) lane[i] += end <= position[i];
        }
    }
};

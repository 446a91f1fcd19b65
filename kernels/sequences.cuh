// In which sequences of a pack a warp's positions (rows or columns) are.
//
// A warp looks at a window of 32 sequences in a row, one a lane, from that of its first position on.
// A position's sequence is found by counting the lanes whose sequences end at or before it:
//
//     cu_seqlens  0  3  3  5  9      lane      0  1  2  3  4...
//                                    end       3  3  5  9  never: the padding
//                                    position  0  1  2  3  4  5
//                                    lane      0  0  0  2  2  3
//
// So the empty sequence 1 holds none. The window moves as the positions go on. Nothing is kept in
// shared memory and no warp waits for another. No address depends on a cut's value, and every loop
// ends whatever the cuts are.

#include "search.cuh"

#define NO_END 0xffffffffu  // of the padding: behind every position

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

// Positions first .. last; if there are none, first is behind last.
struct Span {
    unsigned first, last;
};

// Sequences [lo, hi], one of which holds any position of a block; hi may be the padding.
struct SequenceRange {
    unsigned lo, hi;
};

// Narrows all sequences to those of the block's positions, until they are few or do not get fewer.
// All threads of the block probe at once: a round costs one load's time.
template <class Of>
__device__ SequenceRange sequences_of_block(const Of& of, Span positions)
{
    SequenceRange range = {0, of.batch};
#pragma unroll 1
    while (range.hi - range.lo > BLOCK_THREADS) {
        unsigned length = range.hi - range.lo;
        unsigned step = (length + BLOCK_THREADS - 1) / BLOCK_THREADS;
        unsigned probe = range.lo + (threadIdx.x + 1) * step - 1;
        unsigned end = probe < range.hi ? of.ends[probe] : NO_END;
        unsigned ended_before_first = __syncthreads_count(end <= positions.first);
        unsigned ended_before_last = __syncthreads_count(end <= positions.last);
        unsigned hi = min(range.hi, range.lo + (ended_before_last + 1) * step - 1);
        range.lo = of_warp(range.lo + ended_before_first * step);
        range.hi = of_warp(max(range.lo, hi));
        if (range.hi - range.lo > length / 2) break;
    }
    return range;
}

// Of is what the positions need to know of their sequences:
//   Sequence            .end, the first position behind it
//   ends, batch         the ends of all sequences, and how many there are
//   load(b)             reads sequence b; `batch` is the padding. A whole warp, for a window
//   of_lane(own, lane)  what that lane has loaded. A whole warp
template <class Of>
struct SequenceWindow {
    using Sequence = typename Of::Sequence;

    Of of;
    Sequence own;         // this lane's
    unsigned first;       // the sequence of lane 0
    SequenceRange range;  // of all positions

    // A pack of few sequences is on its way before anything else is known. Of more, the window begins
    // in front of them all, with sequences that have ended.
    __device__ explicit SequenceWindow(const Of& of) : of(of), own(), first(0u - WARP_THREADS)
    {
        if (of.batch < WARP_THREADS) load(0);
    }

    __device__ void load(unsigned b)
    {
        first = b;
        own = of.load(min(first + threadIdx.x % WARP_THREADS, of.batch));
    }

    // How many sequences of the window end at or before the position.
    __device__ unsigned ended(unsigned position) const
    {
        return __popc(__ballot_sync(FULL_MASK, own.end <= position));
    }

    // Begins the window with the position's sequence, or with few before it.
    __device__ void move_to(unsigned position)
    {
        unsigned passed = ended(position), b = first + passed;
        if (passed == WARP_THREADS) {
            b = max(b, range.lo);
            unsigned hi = max(b, range.hi);
            narrow<OfWarp>(of.ends, b, hi, position, WARP_THREADS);
        }
        load(b);
    }

    // Finds the sequence of each of a lane's positions: calls use(i, sequence, is_it), where is_it says
    // whether this is that of position i, as it is once. The span is that of the warp's positions, and
    // not before that of the call before. Returns the lane that has the sequence of its last.
    template <unsigned COUNT, class Use>
    __device__ unsigned find(Span span, const unsigned (&position)[COUNT], Use use)
    {
        unsigned of_last = ended(span.last);
        if (of_last == WARP_THREADS) {
            move_to(span.first);
            of_last = ended(span.last);
        }
        if (of_last == WARP_THREADS) return find_across(span, position, use);
        unsigned lane[COUNT];
        // The least of both, since cuts may be any bits.
        find_lanes(min(ended(span.first), of_last), of_last, position, lane);
        for (unsigned i = 0; i < COUNT; ++i) use(i, of.of_lane(own, lane[i]), true);
        return of_last;
    }

    // The same where the window ends before the span does: window by window. By itself because the
    // tests of positions cost the common case 8 % of its time.
    template <unsigned COUNT, class Use>
    __device__ unsigned find_across(Span span, const unsigned (&position)[COUNT], Use use)
    {
        while (true) {
            unsigned ended_last = ended(span.last), of_last = min(ended_last, WARP_THREADS - 1u);
            unsigned next = max(__shfl_sync(FULL_MASK, own.end, WARP_THREADS - 1), span.first + 1);
            if (ended_last < WARP_THREADS) next = NO_END;
            unsigned lane[COUNT];
            find_lanes(min(ended(span.first), of_last), of_last, position, lane);
            for (unsigned i = 0; i < COUNT; ++i) {
                bool is_it = position[i] >= span.first && position[i] < next;
                use(i, of.of_lane(own, lane[i]), is_it);
            }
            if (next > span.last) return of_last;
            span.first = next;
            move_to(next);
        }
    }

    // Finds the lanes of positions whose sequences are those of the lanes from .. to.
    template <unsigned COUNT>
    __device__ void find_lanes(
        unsigned from, unsigned to, const unsigned (&position)[COUNT], unsigned (&lane)[COUNT]) const
    {
        for (unsigned& each : lane) each = from;
#pragma unroll 1
        for (unsigned b = from; b < to; ++b) {
            unsigned end = __shfl_sync(FULL_MASK, own.end, b);
            for (unsigned i = 0; i < COUNT; ++i) lane[i] += end <= position[i];
        }
    }
};

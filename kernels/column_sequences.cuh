// What a rule's kernels ask a SequenceWindow for: the sequences that columns are in.

#include "sequences.cuh"

struct ColumnSequences {
    Pack pack;
    SequenceEnds ends = {pack.k};
    unsigned batch = pack.batch;

    struct Sequence {
        unsigned end;  // of its keys
        unsigned q_end, q_start, kv_start;
    };

    // Reads sequence b; b = batch is the padding, which has no rows. Nothing is computed of what is
    // read, for which a warp would wait here.
    __device__ Sequence load(unsigned b) const
    {
        unsigned next = min(b + 1, batch), kv_end = b < batch ? pack.k[next] : NO_END;
        return {kv_end, pack.q[next], pack.q[b], pack.k[b]};
    }

    __device__ Sequence of_lane(const Sequence& own, unsigned lane, bool with_kv_start = true) const
    {
        return {
            __shfl_sync(FULL_MASK, own.end, lane),
            __shfl_sync(FULL_MASK, own.q_end, lane),
            __shfl_sync(FULL_MASK, own.q_start, lane),
            with_kv_start ? __shfl_sync(FULL_MASK, own.kv_start, lane) : 0};
    }
};

// The sequences of columns as a SequenceWindow's Source, for the kernels of rules.

#include "sequences.cuh"

struct ColumnSequences {
    Pack pack;
    SequenceEnds ends = {pack.k};
    unsigned batch = pack.batch;

    struct Sequence {
        unsigned end;  // of its keys
        unsigned q_end, q_start, kv_start;
    };

    // Reads sequence b. Sequence `batch` is the padding, which has no rows. Only loads are here, no sums
    // with what they give: a sum would make the warp wait for its loads. 1,024 columns of one sequence
    // took 1.137 us rather than 1.245.
    __device__ Sequence load(unsigned b) const
    {
        unsigned next = min(b + 1, batch), kv_end = b < batch ? pack.k[next] : NO_END;
        return {kv_end, pack.q[next], pack.q[b], pack.k[b]};
    }

    __device__ Sequence warp_shuffle(
        const Sequence& sequence, unsigned lane, bool with_kv_start = true) const
    {
        return {
            __shfl_sync(FULL_MASK, sequence.end, lane),
            __shfl_sync(FULL_MASK, sequence.q_end, lane),
            __shfl_sync(FULL_MASK, sequence.q_start, lane),
            with_kv_start ? __shfl_sync(FULL_MASK, sequence.kv_start, lane) : 0};
    }
};

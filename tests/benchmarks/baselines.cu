// What the kernels are compared with: what cannot be done in less, and the published algorithm.
//
//   fill                 a thread writes two columns, 16 bytes; 8 * N bytes
//   read_and_fill        it first reads as much; 16 * N bytes
//   fill_after_loads     it first waits for loads of which each needs the one before: what lookups cost
//   empty                nothing: a launch
//   five_arguments       nothing, of five arguments: what a launch costs the host
//   first_of_two,        nothing, and the second may begin while the first runs, if it is launched so:
//   second_of_two        the least that two dependent launches cost
//   published_causal,    a thread a column finds its sequence, then its first row, one by one
//   published_intervals
//
// Grids of 256 threads cover what there is to write.

#define BLOCK_THREADS 256

__device__ unsigned thread_of_grid()
{
    return blockIdx.x * BLOCK_THREADS + threadIdx.x;
}

extern "C" __global__ void empty() {}

extern "C" __global__ void five_arguments(
    const int* cu_seqlens, int* columns, int batch, unsigned column_num, int steps)
{}

extern "C" __global__ void fill(int4* out, unsigned pair_num)
{
    unsigned i = thread_of_grid();
    if (i < pair_num) out[i] = make_int4(i, i, i, i);
}

extern "C" __global__ void read_and_fill(const int4* in, int4* out, unsigned pair_num)
{
    unsigned i = thread_of_grid();
    if (i >= pair_num) return;
    int4 pair = in[i];
    out[i] = make_int4(pair.x + 1, pair.y, pair.z, pair.w);
}

extern "C" __global__ void fill_after_loads(
    const int* words, unsigned loads, int4* out, unsigned pair_num)
{
    int word = threadIdx.x % 32;
    for (unsigned load = 0; load < loads; ++load) word = words[word];
    unsigned i = thread_of_grid();
    if (i < pair_num) out[i] = make_int4(word, i, i, i);
}

extern "C" __global__ void first_of_two()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

extern "C" __global__ void second_of_two()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Writes (LTS, UTE) of the thread's column as FastDeploy's get_attn_mask_q does: a linear scan of
// the sequences, then of the sequence's rows, up to the first whose keys end behind the column.
// Ends are compared as unsigned, and starts are not read.
template <bool INTERVALS>
__device__ void published(
    const int* cu_seqlens_q, const int* cu_seqlens_k, unsigned batch, const int* attn_mask_kv,
    int2* columns, unsigned column_num)
{
    unsigned column = thread_of_grid();
    if (column >= column_num) return;
    unsigned own = 0;
    for (unsigned b = 0; b < batch; ++b) {
        if (column >= (unsigned)cu_seqlens_k[b] && column < (unsigned)cu_seqlens_k[b + 1]) {
            own = b;
            break;
        }
    }
    unsigned q_start = cu_seqlens_q[own], q_end = cu_seqlens_q[own + 1];
    unsigned kv_start = cu_seqlens_k[own], kv_len = cu_seqlens_k[own + 1] - kv_start;
    unsigned offset = kv_len - (q_end - q_start);
    unsigned row = q_start;
    for (; row < q_end; ++row) {
        unsigned end = INTERVALS ? (unsigned)attn_mask_kv[2 * row + 1] : row - q_start + offset + 1;
        if (column - kv_start < end) break;
    }
    columns[column] = make_int2(q_end, row);
}

extern "C" __global__ void published_causal(
    const int* cu_seqlens_q,  // (batch + 1,)
    const int* cu_seqlens_k,  // (batch + 1,)
    unsigned batch,
    int2* columns,            // (column_num,)
    unsigned column_num)
{
    published<false>(cu_seqlens_q, cu_seqlens_k, batch, nullptr, columns, column_num);
}

extern "C" __global__ void published_intervals(
    const int* cu_seqlens_q,
    const int* cu_seqlens_k,
    unsigned batch,
    const int* attn_mask_kv,  // (cu_seqlens_q[batch], 2)
    int2* columns,
    unsigned column_num)
{
    published<true>(cu_seqlens_q, cu_seqlens_k, batch, attn_mask_kv, columns, column_num);
}

// Programmatic dependent launch: the second launch begins while the first still runs, and waits for
// its end, and for what it wrote, where it first reads that. Elsewhere launches run one by one.
__device__ void let_next_launch_begin()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ void wait_for_launch_before()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The sizes of a block and its warps, and how a warp learns its number: what all kernels share.
//
// The first word of a function says who must call it together: warp_ a whole warp, block_ a whole
// block. Any thread may call the others by itself.

#ifndef BLOCK_THREADS
#error "BLOCK_THREADS: threads of a block, a multiple of 32"
#endif

constexpr int WARP_THREADS = 32;
constexpr int WARPS = BLOCK_THREADS / WARP_THREADS;  // of a block
constexpr unsigned FULL_MASK = 0xffffffffu;          // all lanes of a warp
constexpr int INT32_MAX_VALUE = 0x7fffffff;

static_assert(BLOCK_THREADS % WARP_THREADS == 0, "a block is a whole number of warps");

// Returns the value of lane 0, for a value that is the same in all lanes already. Only by the shuffle
// does the compiler learn that it is the same. Otherwise it guards each shuffle that depends on the
// value against a warp whose lanes have parted.
__device__ unsigned warp_uniform(unsigned value)
{
    return __shfl_sync(FULL_MASK, value, 0);
}

// Returns which warp of its block this is. Through the shuffle the rule's kernel had 320 instructions
// rather than 688: 16 M columns of 131,072 sequences took 37.5 us rather than 44.8. This figure and all
// others in the kernels are from docs/performance.md, where the GPU is named too.
__device__ unsigned warp_index()
{
    return warp_uniform(threadIdx.x / WARP_THREADS);
}

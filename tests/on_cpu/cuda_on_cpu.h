// What the kernels use of CUDA: a block is BLOCK_THREADS threads that meet, and SLOTS blocks run at once,
// each in its own copy of the kernel, so that `__shared__` can be a static variable of it. Shared memory
// is declared in kernels only.

#pragma once

#include "threads.h"

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#define __device__ inline
#define __global__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#define threadIdx self->thread
#define blockIdx self->block
#define gridDim self->grid

struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz((unsigned)bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
template <class T>
T atomicMax(T* at, T value)
{
    std::atomic_ref<T> cell(*at);
    T old = cell.load();
    while (old < value && !cell.compare_exchange_weak(old, value)) {
    }
    return old;
}
template <class T>
T atomicMin(T* at, T value)
{
    std::atomic_ref<T> cell(*at);
    T old = cell.load();
    while (value < old && !cell.compare_exchange_weak(old, value)) {
    }
    return old;
}
template <class T>
T atomicAdd(T* at, T value)
{
    return std::atomic_ref<T>(*at).fetch_add(value);
}
inline unsigned atomicExch(unsigned* at, unsigned value)
{
    return std::atomic_ref<unsigned>(*at).exchange(value);
}
inline unsigned atomicOr(unsigned* at, unsigned bits)
{
    return std::atomic_ref<unsigned>(*at).fetch_or(bits);
}

constexpr unsigned SLOTS = 2;
constexpr unsigned LANES = 32;
constexpr unsigned BLOCK_WARPS = BLOCK_THREADS / LANES;

// Two buffers in turn: who writes one again has passed the barrier behind everyone's reading of it.
template <unsigned THREADS>
struct Exchange {
    Meeting<THREADS> meeting;
    uint32_t values[2][THREADS] = {};

    const uint32_t* all(unsigned index, unsigned& turn, uint32_t value)
    {
        uint32_t* buffer = values[turn++ % 2];
        buffer[index] = value;
        meeting.arrive_and_wait();
        return buffer;
    }
};

struct Block {
    Exchange<BLOCK_THREADS> threads;
    Exchange<LANES> warps[BLOCK_WARPS];
};
inline Block blocks[SLOTS];

inline Exchange<LANES>& own_warp() { return blocks[self->slot].warps[threadIdx.x / LANES]; }
inline const uint32_t* warp_values(uint32_t value)
{
    return own_warp().all(threadIdx.x % LANES, self->warp_turn, value);
}

inline void __syncthreads() { blocks[self->slot].threads.meeting.arrive_and_wait(); }
inline int __syncthreads_count(int predicate)
{
    const uint32_t* all = blocks[self->slot].threads.all(threadIdx.x, self->block_turn, predicate != 0);
    int count = 0;
    for (unsigned i = 0; i < BLOCK_THREADS; ++i) count += (int)all[i];
    return count;
}
inline void __syncwarp() { own_warp().meeting.arrive_and_wait(); }
inline unsigned __ballot_sync(unsigned, int predicate)
{
    const uint32_t* all = warp_values(predicate != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < LANES; ++i) bits |= all[i] << i;
    return bits;
}
template <class T>
T __shfl_sync(unsigned, T value, unsigned lane)
{
    return (T)warp_values((uint32_t)value)[lane % LANES];
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance)
{
    unsigned lane = threadIdx.x % LANES;
    const uint32_t* all = warp_values((uint32_t)value);
    return (T)all[lane < distance ? lane : lane - distance];
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned distance)
{
    unsigned lane = threadIdx.x % LANES;
    const uint32_t* all = warp_values((uint32_t)value);
    return (T)all[lane + distance < LANES ? lane + distance : lane];
}

// Kernels by name, a copy a slot, called with arguments as 64-bit words.
struct Kernel {
    std::string name;
    unsigned slot;
    void (*call)(const uint64_t* arguments);
};
inline std::vector<Kernel>& kernels()
{
    static std::vector<Kernel> all;
    return all;
}

template <class T>
T argument(uint64_t word)
{
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(word);
    else return static_cast<T>(word);
}
template <auto KERNEL, class... P, size_t... I>
void call_with(void (*)(P...), const uint64_t* words, std::index_sequence<I...>)
{
    KERNEL(argument<P>(words[I])...);
}
template <auto KERNEL, class... P>
constexpr auto arity(void (*)(P...))
{
    return std::index_sequence_for<P...>{};
}
template <auto KERNEL>
void call(const uint64_t* words)
{
    call_with<KERNEL>(KERNEL, words, arity<KERNEL>(KERNEL));
}
#define REGISTER(name, kernel, slot) \
    static bool registered_##kernel = (kernels().push_back({name, slot, call<&kernel>}), true);

// The threads of the blocks, and how they meet. They are fibers, of which one runs until it waits for
// others: 300 packs took 0.7 s rather than 22 with the system's threads. Those are used under the thread
// sanitizer, and on processors whose stacks this file cannot switch.

#pragma once

#include <cstdio>
#include <cstdlib>

struct Index {
    unsigned x;
};

// What a thread knows of itself.
struct Thread {
    Index thread, block, grid;
    unsigned slot, block_turn, warp_turn;
    void (*body)();
};

#if defined(__SANITIZE_THREAD__) || !defined(__x86_64__)
#include <barrier>
#include <memory>
#include <thread>
#include <vector>

inline thread_local Thread* self;

template <unsigned THREADS>
struct Meeting {
    std::barrier<> barrier{THREADS};
    void arrive_and_wait() { barrier.arrive_and_wait(); }
};

// Threads that begin at once. All have returned when the last has been told to.
struct Threads {
    std::vector<std::thread> all;

    void start(Thread thread)
    {
        all.emplace_back([thread]() mutable {
            self = &thread;
            thread.body();
        });
    }
    void end(void (*tell)())
    {
        tell();
        for (std::thread& thread : all) thread.join();
    }
};
#else
#include <deque>
#include <list>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(kept, bottom, size)
#define __sanitizer_finish_switch_fiber(kept, bottom, size)
#endif

// Keeps the registers that a call must keep on the stack, the stack's pointer at `from`, and goes on with
// those of another stack.
extern "C" void switch_stack(void** from, void* to);
asm(R"(
.text
.type switch_stack, @function
switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
constexpr size_t KEPT_REGISTERS = 6;

struct Fiber : Thread {
    void* stack_pointer;
    std::unique_ptr<void*[]> memory;  // none of main's, whose stack is there
    const void* stack;
    size_t stack_bytes;
    void* fake_stack;  // the address sanitizer's
};

constexpr size_t STACK_BYTES = 1 << 18;
inline Fiber main_fiber;
inline Fiber* self = &main_fiber;
inline Fiber* before_switch;
inline std::deque<Fiber*> ready;

inline void has_switched()
{
    [[maybe_unused]] Fiber& from = *before_switch;
    __sanitizer_finish_switch_fiber(self->fake_stack, &from.stack, &from.stack_bytes);
}

// Lets another thread run, until this one is ready and it is its turn.
inline void wait_until_ready()
{
    if (ready.empty()) {
        fprintf(stderr, "threads wait for others that do not come\n");
        _Exit(4);
    }
    before_switch = self;
    self = ready.front();
    ready.pop_front();
    __sanitizer_start_switch_fiber(&before_switch->fake_stack, self->stack, self->stack_bytes);
    switch_stack(&before_switch->stack_pointer, self->stack_pointer);
    has_switched();
}

template <unsigned THREADS>
struct Meeting {
    std::vector<Fiber*> waiting;
    bool backward = false;

    // In one order and then in the other, so that no kernel can rely on one.
    void arrive_and_wait()
    {
        if (waiting.size() + 1 < THREADS) {
            waiting.push_back(self);
            wait_until_ready();
            return;
        }
        if (backward) ready.insert(ready.end(), waiting.rbegin(), waiting.rend());
        else ready.insert(ready.end(), waiting.begin(), waiting.end());
        backward = !backward;
        waiting.clear();
    }
};

// Threads that begin when main waits first. They wait when the process ends.
struct Threads {
    std::list<Fiber> all;

    static void enter()
    {
        has_switched();
        self->body();
        abort();
    }
    void start(Thread thread)
    {
        Fiber& fiber = all.emplace_back();
        static_cast<Thread&>(fiber) = thread;
        fiber.memory.reset(new void*[STACK_BYTES / sizeof(void*)]);
        fiber.stack = fiber.memory.get();
        fiber.stack_bytes = STACK_BYTES;
        // As if `enter` had been called there: its address is where the first switch returns to, and
        // behind it is where `enter` itself would return to.
        void** top = fiber.memory.get() + STACK_BYTES / sizeof(void*) - 4;
        *top = reinterpret_cast<void*>(enter);
        fiber.stack_pointer = top - KEPT_REGISTERS;
        ready.push_back(&fiber);
    }
    void end(void (*)()) {}
};
#endif

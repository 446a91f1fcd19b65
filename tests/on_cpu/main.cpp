// Runs a script of launches from standard input, and prints the buffers it asks for.
//
// A buffer lies between guards: a byte of them that has changed at the end is an error, and under
// the address sanitizer so is every access to them.
//
//   B bytes offset  + data    a buffer of exactly these bytes, `offset` past a 16-byte boundary
//   L name grid count + words a launch; a word is a value, or a buffer's address + byte offset
//   R buffer                  the buffer's bytes to standard output

#include "cuda_on_cpu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif

constexpr size_t GUARD_BYTES = 1024;
constexpr char GUARD = 0x5c;

struct Buffer {
    std::unique_ptr<char[]> memory;
    size_t bytes, before;  // of the buffer, and of the guard in front of it
    size_t all() const { return before + bytes + GUARD_BYTES; }
    char* data() const { return memory.get() + before; }
    char* end() const { return data() + bytes; }

    Buffer(size_t bytes, size_t offset)
        : memory(new char[GUARD_BYTES + offset + bytes + GUARD_BYTES]), bytes(bytes),
          before(GUARD_BYTES + offset)
    {
        std::fill_n(memory.get(), all(), GUARD);
        ASAN_POISON_MEMORY_REGION(memory.get(), before / 8 * 8);  // by whole words of 8 bytes
        ASAN_POISON_MEMORY_REGION(end(), GUARD_BYTES);
    }
    bool guards_are_intact() const
    {
        ASAN_UNPOISON_MEMORY_REGION(memory.get(), all());
        auto intact = [](char c) { return c == GUARD; };
        return std::all_of(memory.get(), data(), intact) && std::all_of(end(), end() + GUARD_BYTES, intact);
    }
};

struct Launch {
    void (*call[SLOTS])(const uint64_t*);
    std::vector<uint64_t> words;
    unsigned grid;
    bool quit;
};

static Launch launch;
static Meeting<SLOTS * BLOCK_THREADS + 1> gate;

static void run_thread()
{
    for (;;) {
        gate.arrive_and_wait();
        if (launch.quit) return;
        gridDim.x = launch.grid;
        for (unsigned block = self->slot; block < launch.grid; block += SLOTS) {
            blockIdx.x = block;
            launch.call[self->slot](launch.words.data());
            __syncthreads();  // the next block reuses the shared memory
        }
        gate.arrive_and_wait();
    }
}

static uint64_t number()
{
    unsigned long long value;
    if (scanf("%llu", &value) != 1) abort();
    return value;
}

static void run(const char* name, unsigned grid, std::vector<uint64_t> words)
{
    launch = {{}, std::move(words), grid, false};
    for (const Kernel& kernel : kernels())
        if (kernel.name == name) launch.call[kernel.slot] = kernel.call;
    if (!launch.call[0]) {
        fprintf(stderr, "no kernel %s\n", name);
        exit(2);
    }
    gate.arrive_and_wait();
    gate.arrive_and_wait();
}

int main()
{
    Threads threads;
    for (unsigned slot = 0; slot < SLOTS; ++slot)
        for (unsigned t = 0; t < BLOCK_THREADS; ++t) threads.start({{t}, {}, {}, slot, 0, 0, run_thread});
    std::vector<Buffer> buffers;
    char command, name[64];
    while (scanf(" %c", &command) == 1) {
        if (command == 'B') {
            size_t bytes = number(), offset = number();
            getchar();  // the newline before the data
            buffers.emplace_back(bytes, offset);
            if (fread(buffers.back().data(), 1, bytes, stdin) != bytes) abort();
        } else if (command == 'L') {
            if (scanf(" %63s", name) != 1) abort();
            unsigned grid = (unsigned)number();
            std::vector<uint64_t> words(number());
            for (uint64_t& word : words) {
                char kind;
                if (scanf(" %c", &kind) != 1) abort();
                word = number();
                if (kind == 'p') word = (uint64_t)(buffers[word].data() + number());
            }
            run(name, grid, std::move(words));
        } else if (command == 'R') {
            Buffer& buffer = buffers[number()];
            fwrite(buffer.data(), 1, buffer.bytes, stdout);
        }
    }
    threads.end([] {
        launch.quit = true;
        gate.arrive_and_wait();
    });
    for (size_t i = 0; i < buffers.size(); ++i)
        if (!buffers[i].guards_are_intact()) {
            fprintf(stderr, "the guards of buffer %zu were written to\n", i);
            return 3;
        }
}

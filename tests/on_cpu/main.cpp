// Runs a script of launches from standard input on threads, and prints the buffers it asks for.
//
//   B bytes offset  + data    a buffer of exactly these bytes, `offset` past a 16-byte boundary
//   L name grid count + words a launch; a word is a value, or a buffer's address + byte offset
//   R buffer                  the buffer's bytes to standard output
//   F                         free all buffers

#include "cuda_on_cpu.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

struct Buffer {
    std::unique_ptr<char[]> memory;
    size_t bytes, offset;
    char* data() { return memory.get() + offset; }
};

struct Launch {
    void (*call[SLOTS])(const uint64_t*);
    std::vector<uint64_t> words;
    unsigned grid;
    bool quit;
};

static Launch launch;
static std::barrier<> gate(SLOTS* BLOCK_THREADS + 1);

static void thread_of_block(unsigned own_slot, unsigned thread)
{
    slot = own_slot;
    threadIdx.x = thread;
    for (;;) {
        gate.arrive_and_wait();
        if (launch.quit) return;
        gridDim.x = launch.grid;
        for (unsigned block = slot; block < launch.grid; block += SLOTS) {
            blockIdx.x = block;
            launch.call[slot](launch.words.data());
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
    std::vector<std::thread> threads;
    for (unsigned s = 0; s < SLOTS; ++s)
        for (unsigned t = 0; t < BLOCK_THREADS; ++t) threads.emplace_back(thread_of_block, s, t);
    std::vector<Buffer> buffers;
    char command, name[64];
    while (scanf(" %c", &command) == 1) {
        if (command == 'B') {
            size_t bytes = number(), offset = number();
            getchar();  // the newline before the data
            buffers.push_back({std::make_unique<char[]>(bytes + offset), bytes, offset});
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
        } else if (command == 'F') {
            buffers.clear();
        }
    }
    launch.quit = true;
    gate.arrive_and_wait();
    for (std::thread& thread : threads) thread.join();
}

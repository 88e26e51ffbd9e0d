// The machine under the host twin: a block runs as fibers on one thread. Compiled without instrumentation
// (runtime.cpp, warp.cpp), so that sanitizers see the kernels and not the machinery.
#pragma once
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace simt {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// Where in a kernel something stands; the default arguments of the twin's functions fill it in.
struct Site {
  const char* file = "";
  int line = 0;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
inline bool operator==(const Site& a, const Site& b) { return a.file == b.file && a.line == b.line; }

namespace runtime {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;

[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The running thread of the running block.
struct Place {
  int thread = 0, threads = 0;
  Grid block, grid;
};
extern __thread const Place* running;  // not thread_local, whose every use is a call
inline const Place& place() { return *running; }

// Runs every block of the grid; body(context) is one thread's work. OpenMP threads share the blocks.
void run(const void* kernel, Grid grid, int threads, int shared_bytes, void (*body)(void*), void* context);

void barrier(Site site);
void warp_barrier(Site site);

// Every lane of the warp hands in `in`; the last to arrive runs op over the 32 inputs; each leaves with its output.
using Meeting = void (*)(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride);
void meet(Site site, Meeting op, const void* in, size_t in_size, void* out, size_t out_size);
Meeting shuffle_op(size_t size);                                     // in: the value, then the source lane as int32
extern const Meeting ballot_op;                                      // in: uint32 0 or 1, out: uint32
extern const Meeting mma_tf32_op, mma_bf16_op, mma_f16_op;           // in: d[4], a[4], b[2]; out: d[4]
extern const Meeting load_matrices_op, load_matrices_transposed_op;  // in: 16 bytes; out: four words

// Shared memory, poisoned at the start of a block, with red zones between arrays. `key` tells static arrays apart;
// nullptr: the next dynamic one, counted by the caller in `taken`.
void* shared_array(Site site, const void* key, size_t bytes, int* taken);

struct Copy {
  void* to;
  const void* from;
  int width, bytes;
};
void copy_async(const Copy& copy);
void copy_commit();
// The next copy that lands when at most `pending` groups may be under way, or nullptr.
const Copy* copy_landing(int pending);

enum class Space { global_load, global_store, shared };
extern bool counting;
void add_flops(int many);
inline void count_flops(int many) {
  if (counting) add_flops(many);
}
void count_access(Site site, Space space, const void* address, int bytes);
inline void count(Site site, Space space, const void* address, int bytes) {
  if (counting) count_access(site, space, address, bytes);
}
inline void check_aligned(Site site, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) != 0)
    fail(site, "misaligned access: %p is not a multiple of %d bytes", address, bytes);
}

}  // namespace runtime

// --- what tests read and set --------------------------------------------------------------------------------

// Accesses of one line of a kernel, in requests of a warp.
struct Count {
  const void* kernel;
  Site site;
  runtime::Space space;
  int64_t requests, sectors, least_sectors;  // 32-byte sectors moved, and the fewest that hold the bytes asked for
  int worst_ways;                            // shared: most words of one bank in one pass (1: no conflict)
};
void count_accesses(bool on);  // clears what was counted
int counted(const Count** counts);

// A launch as the host asked for it, and what was counted in it where accesses are counted.
struct Argument {
  const char* type;  // as typeid names it
  std::vector<unsigned char> bytes;
};
struct Launch {
  const void* kernel;
  Grid grid;
  int threads, shared_bytes;
  std::vector<Argument> arguments;
  int64_t flops = 0, loaded = 0, stored = 0;  // of simt::fma and mma; bytes that lanes asked of global memory
};
enum class Recording { off, with_run, instead_of_run };  // instead: kernels do not run, so pointers may lead nowhere
void record_launches(Recording how);                     // forgets what was recorded
const std::vector<Launch>& recorded();
namespace runtime {
extern Recording recording;
void record(Launch launch);
}  // namespace runtime

void set_shared_limit(int bytes);  // what shared_limit() says; starts at an H100's
int64_t launches();                // so far
std::set<const void*> launched();  // the kernels

}  // namespace simt

// The machine under the host twin: a block runs as fibers on one thread. Compiled without instrumentation
// (runtime.cpp, shared.cpp, warp.cpp), so that sanitizers see the kernels and not the machinery.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace simt {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// A source location in a kernel; the default arguments of the twin's functions fill it in.
struct Site {
  const char* file = "";
  int line = 0;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
inline bool operator==(const Site& a, const Site& b) { return a.file == b.file && a.line == b.line; }

namespace runtime {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kMaxCluster = 8;

[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The running thread of the running block.
struct Place {
  int thread = 0, threads = 0;
  Grid block, grid;
  int rank = 0, cluster = 1;  // of the block in its cluster; blocks per cluster
  bool waited[kMaxThreads];   // by thread: it has waited for earlier launches
};
extern __thread const Place* running;  // not thread_local, whose every use is a call
inline const Place& place() { return *running; }

// Runs every block of the grid; body(context) is one thread's work. OpenMP threads share the blocks, or clusters of so
// many neighbouring blocks; the blocks of a cluster run in turn on one thread.
void run(const void* kernel, Grid grid, int cluster, int threads, int shared_bytes, void (*body)(void*), void* context);

void wait_for_earlier_launches();
// Accesses of global memory come behind that call. They are checked if they go through a function of simt.cuh; of others
// the machine code is looked at (test_kernels.py).
inline void check_order(Site site) {
  if (!place().waited[place().thread]) fail(site, "touches global memory before wait_for_earlier_launches");
}
void count_dependent_launch();

void barrier(Site site);
void warp_barrier(Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
// The address in the shared memory of block `rank` that `address` has in this block's. Every use is a read before the
// caller's next cluster_arrive: the other block may not return before it has waited for that.
const void* peer(Site site, const void* address, int bytes, int rank);

// A warp collective: every lane passes `in`, the last lane to arrive runs op over the 32 inputs, and each lane returns
// with its output.
using Collective = void (*)(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride);
void meet(Site site, Collective op, const void* in, size_t in_size, void* out, size_t out_size);
Collective shuffle_op(size_t size);                                     // in: the value, then the source lane as int32
extern const Collective ballot_op;                                      // in: uint32 0 or 1, out: uint32
extern const Collective mma_tf32_op, mma_bf16_op, mma_f16_op;           // in: d[4], a[4], b[2]; out: d[4]
extern const Collective load_matrices_op, load_matrices_transposed_op;  // in: 16 bytes; out: four words

// Shared memory, NaN at the start of a block, with red zones between arrays. `key` distinguishes static arrays;
// nullptr: the next dynamic one, counted by the caller in `used`.
void* shared_array(Site site, const void* key, size_t bytes, int* used);

struct Copy {
  void* to;
  const void* from;
  int width, bytes;
};
void copy_async(const Copy& copy);
void copy_commit();
// The next copy that lands when at most `pending` groups may be in flight, or nullptr.
const Copy* copy_landing(int pending);

enum class Space { global_load, global_store, shared };
extern bool counting;
void add_flops(int many);
inline void count_flops(int many) {
  if (counting) add_flops(many);
}
void count_access(Site site, Space space, const void* address, int bytes);
inline void count(Site site, Space space, const void* address, int bytes) {
  if (space != Space::shared) check_order(site);
  if (counting) count_access(site, space, address, bytes);
}
inline void check_aligned(Site site, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) != 0)
    fail(site, "misaligned access: %p is not a multiple of %d bytes", address, bytes);
}

}  // namespace runtime

// --- for tests -----------------------------------------------------------------------------------------------

// Accesses of one line of a kernel, in requests of a warp.
struct Count {
  const void* kernel;
  Site site;
  runtime::Space space;
  int64_t requests, sectors,
      least_sectors;  // 32-byte sectors moved, and the fewest that hold the bytes of the requests
  int worst_ways;     // shared: most words of one bank in one pass (1: no conflict)
};
void count_accesses(bool on);  // clears the counts
int counted(const Count** counts);

// The arguments of one launch, and its counts if accesses are counted.
struct Argument {
  const char* type;  // as typeid names it
  std::vector<unsigned char> bytes;
};
struct Launch {
  const void* kernel;
  Grid grid;
  int threads, shared_bytes;
  std::vector<Argument> arguments;
  int64_t flops = 0, loaded = 0, stored = 0;  // of simt::fma and mma; bytes of the requests to global memory
};
enum class Recording { off, with_run, instead_of_run };  // instead: kernels do not run, so pointers may lead nowhere
void record_launches(Recording how);                     // clears the record
const std::vector<Launch>& recorded();
namespace runtime {
extern Recording recording;
void record(Launch launch);
}  // namespace runtime

void set_shared_limit(int bytes);      // the result of shared_limit(); an H100's by default
void set_clusters(bool on);            // the result of has_clusters(); true by default
int64_t launches();                    // so far
int64_t dependent_launches();          // of these, on a Stream that asks for them
std::set<const void*> launched();      // the kernels
void name_launches(const char* name);  // of the kernels launched from here on; nullptr: none
std::map<std::string, std::set<const void*>> named_launches();

}  // namespace simt

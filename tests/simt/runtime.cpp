// The block machine: fibers, barriers, warp collectives, shared memory, async copies.
#include "runtime.h"

#include <omp.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "counts.h"
#include "fiber.h"

namespace simt::runtime {
namespace {

constexpr size_t kSlot = 64, kRedZone = 64, kArena = 1 << 20;

struct Lane {
  Fiber fiber;
  enum State { collective, waiting, done } state = done;  // the reason why the lane cannot run
  Site site;
  std::vector<Copy> copies;     // issued, the first `landed` of them landed
  std::vector<size_t> commits;  // the end of each group; the first `waited` of them have been waited for
  size_t landed = 0, waited = 0;
};

struct Warp {
  unsigned ready = 0, arrived = 0;
  Site site;
  Collective op = nullptr;
  unsigned barriers = 0;
  char sync[2] = {};  // see Machine
  alignas(16) unsigned char in[kWarp * kSlot], out[kWarp * kSlot];
};

struct Array {
  const void* key;
  void* memory;
  size_t bytes;
};

struct Machine {
  Place place;
  Fiber main;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  Lane lanes[kMaxThreads];
  int created = 0;  // of the lanes' stacks
  Warp warps[kMaxThreads / kWarp];
  int arrived = 0, finished = 0;
  Site site;              // of the current barrier
  unsigned barriers = 0;  // passed so far
  // Used alternately: the last thread to arrive continues, and its later accesses are not ordered before the others
  // leave this barrier.
  char sync[2] = {};
  // Per block, used alternately. The end of one thread does not order a thread of its block that starts later.
  char ends[2] = {};
  unsigned blocks = 0;  // run here so far
  unsigned char* arena = nullptr;
  size_t used = 0, dynamic_used = 0, dynamic_limit = 0;
  std::vector<Array> fixed, dynamic;
  const void* kernel = nullptr;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  BlockCounts counts;
};

__thread Machine* machine = nullptr;  // the one whose block runs
__thread Machine* machines[2];
char launch_sync = 0;  // orders the host before a launch before all of its blocks
std::atomic<int> limit{232448};
std::atomic<int64_t> launched{0};
std::mutex kernels_mutex;
std::set<const void*> kernels;
std::map<std::string, std::set<const void*>> named;
const char* name_of_launches = nullptr;

Lane& self() { return machine->lanes[machine->place.thread]; }

// Switches to another thread of the block that can run, of this warp if there is one.
void yield() {
  Machine& m = *machine;
  const int me = m.place.thread, warps = (m.place.threads + 31) / 32;
  for (int i = 0, w = me / 32; i < warps; ++i, w = w + 1 < warps ? w + 1 : 0) {
    if (m.warps[w].ready == 0) continue;
    const int next = w * 32 + __builtin_ctz(m.warps[w].ready);
    m.place.thread = next;
    Lane& to = m.lanes[next];
    if (next != me) switch_fiber(m.lanes[me].fiber, to.fiber, to.fiber.stack, kStack);
    return;
  }
  if (m.finished == m.place.threads) {
    switch_fiber(m.lanes[me].fiber, m.main, m.main_bottom, m.main_size);
    return;
  }
  // No thread can run: some wait for threads that will never arrive.
  int waits = 0;
  while (m.lanes[waits].state == Lane::done) ++waits;
  const Lane& stuck = m.lanes[waits];
  const bool warp_only = stuck.state == Lane::collective;
  const int end = warp_only ? waits / 32 * 32 + 32 : m.place.threads;
  int other = warp_only ? waits / 32 * 32 : 0;
  for (; other < end; ++other) {
    const Lane& o = m.lanes[other];
    if (o.state != stuck.state || !(o.site == stuck.site)) break;
  }
  m.place.thread = waits;
  const char* what = stuck.state == Lane::waiting ? "barrier" : "warp collective";
  if (other == end) fail(stuck.site, "missing threads at a %s", what);
  const Lane& o = m.lanes[other];
  if (o.state == Lane::done) fail(stuck.site, "missing at a %s: thread %d has returned from the kernel", what, other);
  fail(stuck.site, "divergent %s: thread %d waits at %s:%d", what, other, o.site.file, o.site.line);
}

void wake_all(Machine& m) {
  for (int w = 0; w < m.place.threads / 32; ++w) m.warps[w].ready = 0xffffffffu;
}

void stop(Lane::State state, Site site) {
  Lane& lane = self();
  lane.state = state;
  lane.site = site;
  machine->warps[machine->place.thread / 32].ready &= ~(1u << (machine->place.thread % 32));
}

void fiber_entry() {
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    // Thread 0 is started from the machine's own stack: the only place to learn its bounds.
    if (machine->place.thread == 0) {
      machine->main_bottom = bottom;
      machine->main_size = size;
    }
  }
  for (;;) {
    if (__tsan_acquire) {
      __tsan_acquire(&launch_sync);
      __tsan_acquire(&machine->ends[(machine->blocks + 1) % 2]);
    }
    machine->body(machine->context);
    Lane& lane = self();
    if (lane.landed < lane.copies.size()) fail(Site::here(), "an async copy was never waited for");
    lane.copies.clear();
    lane.commits.clear();
    lane.landed = lane.waited = 0;
    if (__tsan_release) __tsan_release(&machine->ends[machine->blocks % 2]);
    stop(Lane::done, {});
    ++machine->finished;
    yield();
  }
}

void start_block(Machine& m, Grid index) {
  m.place.block = index;
  m.arrived = m.finished = 0;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(m.arena, kArena);
  // No memset: ThreadSanitizer would see it, and it is no access of the kernel.
  volatile uint64_t* const words = reinterpret_cast<volatile uint64_t*>(m.arena);
  for (size_t i = 0; i < m.used / 8; ++i) words[i] = ~uint64_t(0);
  if (__asan_poison_memory_region) __asan_poison_memory_region(m.arena, kArena);
  m.used = kRedZone;
  m.dynamic_used = 0;
  m.fixed.clear();
  m.dynamic.clear();
  for (Warp& warp : m.warps) warp.ready = warp.arrived = 0;
  wake_all(m);
}

void run_block(int which, const void* kernel, Grid grid, Grid index, int threads, int shared_bytes, void (*body)(void*),
               void* context) {
  machine = machines[which];
  if (!machine) {
    machine = machines[which] = new Machine;  // never freed, like the stacks of its threads
    machine->arena = static_cast<unsigned char*>(aligned_alloc(64, kArena));
    machine->used = kArena;
  }
  Machine& m = *machine;
  if (__tsan_get_current_fiber) m.main.tsan = __tsan_get_current_fiber();
  m.place.threads = threads;
  m.place.grid = grid;
  m.kernel = kernel;
  m.body = body;
  m.context = context;
  m.dynamic_limit = static_cast<size_t>(shared_bytes);
  running = &m.place;
  for (; m.created < threads; ++m.created) create(m.lanes[m.created].fiber, &fiber_entry);
  start_block(m, index);
  m.place.thread = 0;
  void* fake = nullptr;
  Fiber& first = m.lanes[0].fiber;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake, first.stack, kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(first.tsan, 1);
#if defined(__x86_64__)
  simt_switch(&m.main.sp, first.sp);
#else
  swapcontext(&m.main.context, &first.context);
#endif
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  ++m.blocks;
  if (counting) m.counts.fold(m.kernel);
}

}  // namespace

__thread const Place* running = nullptr;

void fail(const Site& site, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const Place p = machine ? machine->place : Place{};
  std::fprintf(stderr, "simt: %s:%d: block (%u, %u, %u), thread %d of %d: %s\n", site.file, site.line, p.block.x,
               p.block.y, p.block.z, p.thread, p.threads, text);
  std::fflush(nullptr);
  std::_Exit(70);
}

void run(const void* kernel, Grid grid, int threads, int shared_bytes, void (*body)(void*), void* context) {
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  if (threads < 1 || threads > int(kMaxThreads) || threads % 32 != 0 || blocks < 1 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes < 0 || shared_bytes > limit)
    fail(Site::here(),
         "a launch no GPU takes: grid (%u, %u, %u), %d threads (expected a multiple of 32), %d bytes shared", grid.x,
         grid.y, grid.z, threads, shared_bytes);
  ++launched;
  {
    const std::lock_guard<std::mutex> guard(kernels_mutex);
    kernels.insert(kernel);
    if (name_of_launches) named[name_of_launches].insert(kernel);
  }
  const auto block = [&](int64_t i, int which) {
    const Grid index{unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    run_block(which, kernel, grid, index, threads, shared_bytes, body, context);
  };
  if (!__tsan_create_fiber) {
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
    for (int64_t i = 0; i < blocks; ++i) block(i, 0);
    return;
  }
  // Under ThreadSanitizer there is one thread, and blocks alternate between two machines without an order between them.
  // Two blocks an odd distance apart that access one address then race.
  __tsan_release(&launch_sync);
  for (int64_t i = 0; i < blocks; ++i) block(i, int(i % 2));
  for (Machine* m : machines)
    for (int end = 0; m && end < 2; ++end) __tsan_acquire(&m->ends[end]);
}

void barrier(Site site) {
  Machine& m = *machine;
  if (m.arrived > 0 && !(m.site == site))
    fail(site, "divergent barrier: another thread waits at %s:%d", m.site.file, m.site.line);
  m.site = site;
  char* const sync = &m.sync[m.barriers % 2];
  if (__tsan_release) __tsan_release(sync);
  if (++m.arrived == m.place.threads) {
    m.arrived = 0;
    ++m.barriers;
    wake_all(m);
  } else {
    stop(Lane::waiting, site);
    yield();
  }
  if (__tsan_acquire) __tsan_acquire(sync);
}

// A call of memcpy would take longer than these few words do.
inline void copy_words(void* to, const void* from, size_t bytes) {
  typedef uint32_t __attribute__((may_alias)) Word;
  for (size_t i = 0; i < bytes / sizeof(Word); ++i) static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[i];
}

void meet(Site site, Collective op, const void* in, size_t in_size, void* out, size_t out_size) {
  Machine& m = *machine;
  const int me = m.place.thread, lane = me % 32;
  Warp& warp = m.warps[me / 32];
  if (in_size > kSlot || out_size > kSlot || (in_size | out_size) % 4)
    fail(site, "a warp collective of more than %zu bytes per lane, or of no whole words", kSlot);
  if (warp.arrived != 0 && (warp.op != op || !(warp.site == site)))
    fail(site, "divergent warp collective: another lane waits at %s:%d", warp.site.file, warp.site.line);
  warp.op = op;
  warp.site = site;
  copy_words(warp.in + lane * kSlot, in, in_size);
  warp.arrived |= 1u << lane;
  if (warp.arrived == 0xffffffffu) {
    warp.arrived = 0;
    if (op) op(warp.in, kSlot, warp.out, kSlot);
    warp.ready = 0xffffffffu;
  } else {
    stop(Lane::collective, site);
    yield();
  }
  copy_words(out, warp.out + lane * kSlot, out_size);
}

void warp_barrier(Site site) {
  Warp& warp = machine->warps[machine->place.thread / 32];
  char* const sync = &warp.sync[warp.barriers % 2];
  if (__tsan_release) __tsan_release(sync);
  if ((warp.arrived | 1u << (machine->place.thread % 32)) == 0xffffffffu) ++warp.barriers;
  meet(site, nullptr, nullptr, 0, nullptr, 0);
  if (__tsan_acquire) __tsan_acquire(sync);
}

void* shared_array(Site site, const void* key, size_t bytes, int* used) {
  Machine& m = *machine;
  std::vector<Array>& arrays = key ? m.fixed : m.dynamic;
  const size_t rounded = (bytes + 15) / 16 * 16;
  if (key) {
    for (const Array& array : arrays)
      if (array.key == key) return array.memory;
  } else {
    const size_t index = static_cast<size_t>((*used)++);
    if (index < arrays.size()) {
      if (arrays[index].bytes != bytes)
        fail(site, "threads disagree on a shared array: %zu and %zu bytes", arrays[index].bytes, bytes);
      return arrays[index].memory;
    }
    m.dynamic_used += rounded;
    if (m.dynamic_used > m.dynamic_limit)
      fail(site, "out of shared memory: %zu bytes used, %zu launched with", m.dynamic_used, m.dynamic_limit);
  }
  if (m.used + rounded + kRedZone > kArena) fail(site, "out of shared memory: the arena is full");
  unsigned char* memory = m.arena + m.used;
  m.used += rounded + kRedZone;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory, bytes);
  arrays.push_back({key, memory, bytes});
  return memory;
}

void copy_async(const Copy& copy) { self().copies.push_back(copy); }

void copy_commit() { self().commits.push_back(self().copies.size()); }

const Copy* copy_landing(int pending) {
  Lane& lane = self();
  while (lane.waited + static_cast<size_t>(pending) < lane.commits.size()) {
    if (lane.landed < lane.commits[lane.waited]) return &lane.copies[lane.landed++];
    ++lane.waited;
  }
  if (lane.waited == lane.commits.size() && lane.landed == lane.copies.size()) {
    lane.copies.clear();
    lane.commits.clear();
    lane.landed = lane.waited = 0;
  }
  return nullptr;
}

void count_access(Site site, Space space, const void* address, int bytes) {
  machine->counts.add(site, space, machine->place.thread, address, bytes);
}

}  // namespace simt::runtime

namespace simt {
void set_shared_limit(int bytes) { runtime::limit = bytes; }
int shared_limit() { return runtime::limit; }
int64_t launches() { return runtime::launched; }
std::set<const void*> launched() { return runtime::kernels; }
void name_launches(const char* name) { runtime::name_of_launches = name; }
std::map<std::string, std::set<const void*>> named_launches() { return runtime::named; }
}  // namespace simt

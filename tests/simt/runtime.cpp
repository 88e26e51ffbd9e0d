// Runs kernels block by block: fibers, barriers, warp collectives. Its state is in machine.h; shared.cpp has the memory of
// a block.
#include "runtime.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "machine.h"

namespace simt::runtime {

__thread Machine* machine = nullptr;

namespace {

__thread Cluster* clusters_in_turn[2];
char launch_sync = 0;  // orders the host before a launch before all of its blocks
std::atomic<int> limit{232448};
std::atomic<bool> clusters{true};
std::atomic<int64_t> launched{0}, dependent{0};
std::mutex kernels_mutex;
std::set<const void*> kernels;
std::map<std::string, std::set<const void*>> named;
const char* name_of_launches = nullptr;

// Switches to a thread of block m that can run, of warp `first` if there is one. False: there is none.
bool run_in(Machine& m, int first, Fiber& from, const Lane* me) {
  const int warps = (m.place.threads + 31) / 32;
  for (int i = 0, w = first; i < warps; ++i, w = w + 1 < warps ? w + 1 : 0) {
    if (m.warps[w].ready == 0) continue;
    const int next = w * 32 + __builtin_ctz(m.warps[w].ready);
    m.place.thread = next;
    machine = &m;
    running = &m.place;
    Lane& to = m.lanes[next];
    if (&to != me) switch_fiber(from, to.fiber, to.fiber.stack, kStack);
    return true;
  }
  return false;
}

const char* name_of(Lane::State state) {
  return state == Lane::waiting ? "barrier" : state == Lane::cluster ? "cluster barrier" : "warp collective";
}

// No thread of block m can run, and some wait for threads that will never arrive.
[[noreturn]] void report_stuck(Machine& m) {
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
  machine = &m;
  m.place.thread = waits;
  const char* const what = name_of(stuck.state);
  for (int rank = 0; other == end && stuck.state == Lane::cluster && rank < m.cluster->count; ++rank) {
    const Machine& block = *m.cluster->blocks[rank];
    for (int t = 0; t < block.place.threads; ++t) {
      const Lane& o = block.lanes[t];
      if (o.state == Lane::done && o.arrives <= m.cluster->passed)
        fail(stuck.site, "missing at a cluster barrier: thread %d of block %d of the cluster has returned", t, rank);
      if (o.state != Lane::done && o.state != Lane::cluster)
        fail(stuck.site, "missing at a cluster barrier: thread %d of block %d of the cluster waits at %s:%d", t, rank,
             o.site.file, o.site.line);
    }
  }
  if (other == end) fail(stuck.site, "missing threads at a %s", what);
  const Lane& o = m.lanes[other];
  if (o.state == Lane::done) fail(stuck.site, "missing at a %s: thread %d has returned from the kernel", what, other);
  fail(stuck.site, "divergent %s: thread %d waits at %s:%d", what, other, o.site.file, o.site.line);
}

// Switches to another thread that can run: of this warp, of this block, of the next block of the cluster.
void yield() {
  Machine& m = *machine;
  Cluster& cluster = *m.cluster;
  Lane& me = m.lanes[m.place.thread];
  if (run_in(m, m.place.thread / 32, me.fiber, &me)) return;
  bool all_finished = true, can_wait = m.finished == m.place.threads;
  for (int i = 0; i < cluster.count; ++i) {
    const Machine& block = *cluster.blocks[i];
    all_finished = all_finished && block.finished == block.place.threads;
  }
  if (all_finished) {
    switch_fiber(me.fiber, cluster.main, cluster.main_bottom, cluster.main_size);
    return;
  }
  // Only a cluster barrier makes a block wait for another.
  for (int t = 0; t < m.place.threads; ++t) can_wait = can_wait || m.lanes[t].state == Lane::cluster;
  if (!can_wait) report_stuck(m);
  for (int i = 1; i < cluster.count; ++i)
    if (run_in(*cluster.blocks[(m.place.rank + i) % cluster.count], 0, me.fiber, &me)) return;
  for (int i = 0; i < cluster.count; ++i)
    if (cluster.blocks[i]->finished < cluster.blocks[i]->place.threads) report_stuck(*cluster.blocks[i]);
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

// A block returns. What other blocks of its cluster have read of its shared memory must be behind a cluster barrier.
void check_readers(const Machine& m) {
  unsigned waits = 0;
  for (int t = 0; t < m.place.threads; ++t) waits = std::max(waits, m.lanes[t].waits);
  if (m.needed > waits)
    fail(m.reader, "block %d of the cluster returns while another may still read its shared memory", m.place.rank);
}

void fiber_entry() {
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    // Thread 0 of the first block is started from the machine's own stack: the only place to learn its bounds.
    if (machine->place.thread == 0 && machine->place.rank == 0) {
      machine->cluster->main_bottom = bottom;
      machine->cluster->main_size = size;
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
    if (!machine->place.waited[machine->place.thread])
      fail(Site::here(), "a thread has returned without wait_for_earlier_launches");
    lane.copies.clear();
    lane.commits.clear();
    lane.landed = lane.waited = 0;
    if (__tsan_release) __tsan_release(&machine->ends[machine->blocks % 2]);
    stop(Lane::done, {});
    if (++machine->finished == machine->place.threads) check_readers(*machine);
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
  volatile bool* const waited = m.place.waited;
  for (int t = 0; t < m.place.threads; ++t) waited[t] = false;
  if (__asan_poison_memory_region) __asan_poison_memory_region(m.arena, kArena);
  m.used = kRedZone;
  m.dynamic_used = 0;
  m.fixed.clear();
  m.dynamic.clear();
  for (Warp& warp : m.warps) warp.ready = warp.arrived = 0;
  for (Lane& lane : m.lanes) lane.arrives = lane.waits = 0;
  m.needed = 0;
  wake_all(m);
}

Machine* make_machine(Cluster* cluster, int rank) {
  Machine* const m = new Machine;
  m->cluster = cluster;
  m->place.rank = rank;
  m->arena = static_cast<unsigned char*>(aligned_alloc(64, kArena));
  m->used = kArena;
  return m;
}

// One kernel's launch.
struct Work {
  const void* kernel;
  Grid grid;
  int cluster, threads, shared_bytes;
  void (*body)(void*);
  void* context;
};

// Runs the blocks from `first` on that form a cluster.
void run_cluster(int which, const Work& work, int64_t first) {
  if (!clusters_in_turn[which]) clusters_in_turn[which] = new Cluster;
  Cluster& cluster = *clusters_in_turn[which];
  cluster.count = work.cluster;
  cluster.arrived = 0;
  cluster.passed = 0;
  if (__tsan_get_current_fiber) cluster.main.tsan = __tsan_get_current_fiber();
  for (int rank = 0; rank < work.cluster; ++rank) {
    if (!cluster.blocks[rank]) cluster.blocks[rank] = make_machine(&cluster, rank);
    Machine& m = *cluster.blocks[rank];
    m.place.threads = work.threads;
    m.place.grid = work.grid;
    m.place.cluster = work.cluster;
    m.kernel = work.kernel;
    m.body = work.body;
    m.context = work.context;
    m.dynamic_limit = static_cast<size_t>(work.shared_bytes);
    for (; m.created < work.threads; ++m.created) create(m.lanes[m.created].fiber, &fiber_entry);
    const int64_t i = first + rank;
    const Grid& grid = work.grid;
    start_block(m, {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)});
  }
  Machine& m = *cluster.blocks[0];
  machine = &m;
  running = &m.place;
  m.place.thread = 0;
  void* fake = nullptr;
  Fiber& thread = m.lanes[0].fiber;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake, thread.stack, kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(thread.tsan, 1);
#if defined(__x86_64__)
  simt_switch(&cluster.main.sp, thread.sp);
#else
  swapcontext(&cluster.main.context, &thread.context);
#endif
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  for (int rank = 0; rank < work.cluster; ++rank) {
    ++cluster.blocks[rank]->blocks;
    if (counting) cluster.blocks[rank]->counts.fold(work.kernel);
  }
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

void run(const void* kernel, Grid grid, int cluster, int threads, int shared_bytes, void (*body)(void*),
         void* context) {
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  if (threads < 1 || threads > int(kMaxThreads) || threads % 32 != 0 || blocks < 1 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes < 0 || shared_bytes > limit)
    fail(Site::here(),
         "a launch no GPU takes: grid (%u, %u, %u), %d threads (expected a multiple of 32), %d bytes shared", grid.x,
         grid.y, grid.z, threads, shared_bytes);
  if (cluster < 1 || cluster > int(kMaxCluster) || grid.x % unsigned(cluster) != 0 || (cluster > 1 && !clusters))
    fail(Site::here(), "a launch no GPU takes: clusters of %d blocks (expected 1 to %u) in a grid of %u", cluster,
         kMaxCluster, grid.x);
  ++launched;
  {
    const std::lock_guard<std::mutex> guard(kernels_mutex);
    kernels.insert(kernel);
    if (name_of_launches) named[name_of_launches].insert(kernel);
  }
  const Work work{kernel, grid, cluster, threads, shared_bytes, body, context};
  if (!__tsan_create_fiber) {
#pragma omp parallel for schedule(dynamic) if (blocks > cluster)
    for (int64_t i = 0; i < blocks; i += cluster) run_cluster(0, work, i);
    return;
  }
  // Under ThreadSanitizer there is one thread, and blocks alternate between two machines without an order between them.
  // Two blocks (or clusters) an odd distance apart that access one address then race.
  __tsan_release(&launch_sync);
  for (int64_t i = 0; i < blocks; i += cluster) run_cluster(int(i / cluster % 2), work, i);
  for (Cluster* each : clusters_in_turn)
    for (unsigned rank = 0; each && rank < kMaxCluster; ++rank)
      for (int end = 0; each->blocks[rank] && end < 2; ++end) __tsan_acquire(&each->blocks[rank]->ends[end]);
}

void wait_for_earlier_launches() { machine->place.waited[machine->place.thread] = true; }
void count_dependent_launch() { ++dependent; }

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

void cluster_arrive(Site site) {
  Cluster& cluster = *machine->cluster;
  Lane& lane = self();
  if (lane.arrives != lane.waits) fail(site, "arrived twice at a cluster barrier without a wait between");
  if (__tsan_release) __tsan_release(&cluster.sync[cluster.passed % 2]);
  ++lane.arrives;
  if (++cluster.arrived < cluster.count * machine->place.threads) return;
  cluster.arrived = 0;
  ++cluster.passed;
  for (int rank = 0; rank < cluster.count; ++rank) {
    Machine& block = *cluster.blocks[rank];
    for (int t = 0; t < block.place.threads; ++t)
      if (block.lanes[t].state == Lane::cluster && block.lanes[t].waits < cluster.passed) {
        block.lanes[t].state = Lane::collective;
        block.warps[t / 32].ready |= 1u << (t % 32);
      }
  }
}

void cluster_wait(Site site) {
  Machine& m = *machine;
  Cluster& cluster = *m.cluster;
  Lane& lane = self();
  if (lane.arrives == lane.waits) fail(site, "waits at a cluster barrier without having arrived there");
  char* const sync = &cluster.sync[lane.waits % 2];
  if (cluster.passed == lane.waits) {
    stop(Lane::cluster, site);
    yield();
  }
  ++lane.waits;
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

void count_access(Site site, Space space, const void* address, int bytes) {
  machine->counts.add(site, space, machine->place.thread, address, bytes);
}

}  // namespace simt::runtime

namespace simt {
void set_shared_limit(int bytes) { runtime::limit = bytes; }
void set_clusters(bool on) { runtime::clusters = on; }
bool has_clusters() { return runtime::clusters; }
int shared_limit() { return runtime::limit; }
int64_t launches() { return runtime::launched; }
int64_t dependent_launches() { return runtime::dependent; }
std::set<const void*> launched() { return runtime::kernels; }
void name_launches(const char* name) { runtime::name_of_launches = name; }
std::map<std::string, std::set<const void*>> named_launches() { return runtime::named; }
}  // namespace simt

// What is known of a block that runs on the host, of its threads and warps, and of its cluster.
#pragma once
#include <cstddef>
#include <vector>

#include "counts.h"
#include "fiber.h"

namespace simt::runtime {

constexpr size_t kSlot = 64, kRedZone = 64, kArena = 1 << 20;

struct Lane {
  Fiber fiber;
  enum State { collective, waiting, cluster, done } state = done;  // the reason why the lane cannot run
  Site site;
  std::vector<Copy> copies;     // issued, the first `landed` of them landed
  std::vector<size_t> commits;  // the end of each group; the first `waited` of them have been waited for
  size_t landed = 0, waited = 0;
  unsigned arrives = 0, waits = 0;  // at cluster barriers
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

struct Machine;

// Blocks that run together on this thread: one block, or all of a cluster.
struct Cluster {
  Fiber main;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  Machine* blocks[kMaxCluster] = {};  // never freed, like the stacks of their threads
  int count = 1;
  unsigned passed = 0;  // cluster barriers
  int arrived = 0;      // at the current one
  char sync[2] = {};    // see Machine
};

struct Machine {
  Place place;
  Cluster* cluster = nullptr;
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
  // Before this block returns, it must have waited at so many cluster barriers, since another block reads its shared
  // memory at `reader`.
  unsigned needed = 0;
  Site reader;
};

extern __thread Machine* machine;  // the one whose block runs
inline Lane& self() { return machine->lanes[machine->place.thread]; }

}  // namespace simt::runtime

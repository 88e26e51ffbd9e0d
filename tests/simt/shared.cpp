// The shared memory of the running block, and async copies to it.
#include "machine.h"
#include "runtime.h"

namespace simt::runtime {

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

const void* peer(Site site, const void* address, int bytes, int rank) {
  Machine& m = *machine;
  if (rank < 0 || rank >= m.cluster->count)
    fail(site, "reads shared memory of block %d in a cluster of %d", rank, m.cluster->count);
  Machine& other = *m.cluster->blocks[rank];
  const auto find = [&](const std::vector<Array>& mine, const std::vector<Array>& there) -> const void* {
    const char* const p = static_cast<const char*>(address);
    for (size_t i = 0; i < mine.size(); ++i) {
      const char* const begin = static_cast<const char*>(mine[i].memory);
      if (p < begin || p + bytes > begin + mine[i].bytes) continue;
      for (size_t k = 0; k < there.size(); ++k)
        if (mine[i].key ? there[k].key == mine[i].key : k == i)
          return static_cast<const char*>(there[k].memory) + (p - begin);
      fail(site, "block %d of the cluster has not started: a cluster barrier must come first", rank);
    }
    return nullptr;
  };
  const void* found = find(m.fixed, other.fixed);
  if (!found) found = find(m.dynamic, other.dynamic);
  if (!found) fail(site, "%p is no shared memory of this block", address);
  if (other.finished == other.place.threads)
    fail(site, "block %d of the cluster has returned, and its shared memory with it", rank);
  const unsigned arrives = self().arrives + 1;
  if (&other != &m && other.needed < arrives) {
    other.needed = arrives;
    other.reader = site;
  }
  return found;
}

}  // namespace simt::runtime

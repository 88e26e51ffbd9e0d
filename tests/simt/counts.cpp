#include "counts.h"

#include <algorithm>
#include <mutex>
#include <set>

namespace simt {
namespace runtime {
bool counting = false;
Recording recording = Recording::off;
namespace {

std::mutex mutex;
std::map<std::tuple<const void*, const char*, int, Space>, Count> totals;
std::vector<Launch> launches_recorded;
thread_local int64_t flops = 0;  // of the current block
std::vector<Count> listed;

template <class Request>
void add_sectors(const Request& request, Count& count) {
  std::set<uintptr_t> sectors, addresses;
  int bytes = 0;
  for (const auto& access : request) {
    if (access.bytes == 0) continue;
    for (uintptr_t s = access.address / 32; s <= (access.address + unsigned(access.bytes) - 1) / 32; ++s)
      sectors.insert(s);
    if (addresses.insert(access.address).second) bytes += access.bytes;
  }
  count.sectors += int64_t(sectors.size());
  count.least_sectors += (bytes + 31) / 32;
}

// 32 banks of 4 bytes; a request of 8 or 16 bytes per lane takes 2 or 4 passes.
template <class Request>
int ways_of(const Request& request) {
  int width = 4;
  for (const auto& access : request) width = std::max(width, access.bytes);
  const unsigned lanes = 32u / (unsigned(width) / 4u);
  int worst = 0;
  for (unsigned first = 0; first < kWarp; first += lanes) {
    std::array<std::set<uintptr_t>, 32> banks;
    for (unsigned lane = first; lane < first + lanes; ++lane)
      for (int b = 0; b < request[lane].bytes; b += 4) {
        const uintptr_t word = request[lane].address / 4 + unsigned(b) / 4;
        banks[word % 32].insert(word);
      }
    for (const auto& bank : banks) worst = std::max(worst, int(bank.size()));
  }
  return worst;
}

}  // namespace

void BlockCounts::add(Site site, Space space, int thread, const void* address, int bytes) {
  Line& line = lines[{site.file, site.line, space}];
  auto& requests = line.warps[size_t(thread) / kWarp];
  const unsigned k = line.passed[size_t(thread)]++;
  if (requests.size() <= k) requests.resize(k + 1);
  requests[k][size_t(thread) % kWarp] = {reinterpret_cast<uintptr_t>(address), bytes};
}

void add_flops(int many) { flops += many; }

void BlockCounts::fold(const void* kernel) {
  const std::lock_guard<std::mutex> guard(mutex);
  Launch* const launch = recording == Recording::off ? nullptr : &launches_recorded.back();
  if (launch) launch->flops += flops;
  flops = 0;
  for (const auto& [key, line] : lines) {
    const auto& [file, number, space] = key;
    Count& count =
        totals.insert({{kernel, file, number, space}, Count{kernel, {file, number}, space, 0, 0, 0, 0}}).first->second;
    for (const auto& requests : line.warps)
      for (const Request& request : requests) {
        ++count.requests;
        if (launch && space != Space::shared)
          for (const Access& access : request)
            (space == Space::global_load ? launch->loaded : launch->stored) += access.bytes;
        if (space == Space::shared)
          count.worst_ways = std::max(count.worst_ways, ways_of(request));
        else
          add_sectors(request, count);
      }
  }
  lines.clear();
}

}  // namespace runtime

void runtime::record(Launch launch) { launches_recorded.push_back(std::move(launch)); }
void record_launches(Recording how) {
  runtime::recording = how;
  runtime::launches_recorded.clear();
}
const std::vector<Launch>& recorded() { return runtime::launches_recorded; }

void count_accesses(bool on) {
  runtime::counting = on;
  if (on) runtime::totals.clear();
}

int counted(const Count** counts) {
  runtime::listed.clear();
  for (const auto& [key, count] : runtime::totals) runtime::listed.push_back(count);
  *counts = runtime::listed.data();
  return int(runtime::listed.size());
}

}  // namespace simt

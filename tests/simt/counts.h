// The accesses of one block, grouped into requests of a warp: the k-th execution of a line by each lane is one request.
#pragma once
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "runtime.h"

namespace simt::runtime {

class BlockCounts {
 public:
  void add(Site site, Space space, int thread, const void* address, int bytes);
  void fold(const void* kernel);  // adds this block's counts to the program's, and clears them

 private:
  struct Access {
    uintptr_t address = 0;
    int bytes = 0;  // 0: the lane took no part
  };
  using Request = std::array<Access, kWarp>;
  struct Line {
    std::array<std::vector<Request>, kMaxThreads / kWarp> warps;
    std::array<unsigned, kMaxThreads> passed{};
  };
  std::map<std::tuple<const char*, int, Space>, Line> lines;
};

}  // namespace simt::runtime

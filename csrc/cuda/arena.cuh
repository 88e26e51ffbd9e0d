// Workspace on the device, sized and laid out by the same calls; every part starts at a multiple of 16 bytes from the first.
#pragma once
#include <cstdint>

namespace ssdd::cuda {

template <class T>
struct Arena {
  T* memory = nullptr;  // nullptr: only count
  int64_t used = 0;
  T* take(int64_t count) {
    T* part = memory ? memory + used : nullptr;
    used += (count + 3) / 4 * 4;
    return part;
  }
};

}  // namespace ssdd::cuda

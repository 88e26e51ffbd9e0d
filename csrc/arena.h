// Allocates arrays from one workspace. With memory == nullptr it only counts, so that one function both sizes a
// workspace and lays it out. Every array starts at a multiple of 16 elements from the first, so that whole vectors are
// aligned on the CPU and on a device.
#pragma once
#include <cstdint>

namespace ssdd {

template <class T>
struct Arena {
  T* memory;
  int64_t used = 0;
  T* take(int64_t elements) {
    T* start = memory ? memory + used : nullptr;
    used += (elements + 15) / 16 * 16;
    return start;
  }
};

}  // namespace ssdd

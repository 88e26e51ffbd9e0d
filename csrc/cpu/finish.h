// The epilogue of predictions.
#pragma once
#include <cstdint>

#include "../tensor.h"

namespace ssdd::cpu {

// The epilogue of a tile of predictions: add the bias row, subtract the targets. Either may be absent.
template <class T>
struct Finish {
  const T* row;       // [C] or nullptr
  View<const T> y_q;  // p == nullptr: no targets, predictions only
};

template <class T>
void apply_finish(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld) {
  const auto& f = *static_cast<const Finish<T>*>(context);
  for (int y = 0; y < m; ++y) {
    T* out = c + y * ld;
    if (f.row)
      for (int x = 0; x < n; ++x) out[x] += f.row[j + x];
    if (!f.y_q.p) continue;
    const T* target = &f.y_q(i + y, j);
    if (f.y_q.cs == 1)  // a separate loop, so that the compiler can use vectors
      for (int x = 0; x < n; ++x) out[x] -= target[x];
    else
      for (int x = 0; x < n; ++x) out[x] -= target[x * f.y_q.cs];
  }
}

}  // namespace ssdd::cpu

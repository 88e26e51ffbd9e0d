// Products of strided matrices on a team of threads. Everything else on the CPU is built on them.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../tensor.h"
#include "micro.h"

namespace ssdd::cpu {

// The threads that work on one problem. Inside an OpenMP region with `size` threads all of them call every team
// function with the same arguments; size 1 needs no region.
struct Team {
  int rank = 0, size = 1;
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
  // This rank's part [begin, end) of `count` items, in multiples of `grain`.
  void share(int64_t count, int64_t grain, int64_t* begin, int64_t* end) const {
    const int64_t blocks = (count + grain - 1) / grain;
    *begin = std::min(count, blocks * rank / size * grain);
    *end = std::min(count, blocks * (rank + 1) / size * grain);
  }
};

// Memory for packed operands, from the caller: packing_elements(widest N, threads) elements.
template <class T>
struct Packing {
  T* shared;
  T* own;  // rank r's part starts at own + r * own_elements()
  int64_t columns;
};
int64_t packing_elements(int64_t widest, int threads);
template <class T>
Packing<T> packing(T* memory, int64_t widest, int threads);

// Applied to each finished tile c[m, n] (row stride ld) at position (i, j) of the output while it is in cache.
template <class T>
struct Epilogue {
  void (*apply)(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld);
  const void* context;
};

template <class T>
struct Product {
  int64_t m, n, k;
  View<const T> a;  // [m, k]
  View<const T> b;  // [k, n]
  T* c;             // [m, n], row stride ldc; aliases neither
  int64_t ldc;
  T alpha = T(1), beta = T(0);
  bool lower = false;  // only c(i, j) with j <= i is computed and written
  Inner inner = Inner::dot;
  View<const T> x = {};  // Inner::difference, sign: [m, n], c = beta c + alpha sum_k a(i, k) (b(k, j) - x(i, j))
  const Epilogue<T>* epilogue = nullptr;
};

// Computes c = beta c + alpha f(a, b), then the epilogue. It ends with a barrier of the team. The order of each sum
// depends only on the shapes and the size of the team.
template <class T>
void product(const Team& team, const Packing<T>& packing, const Product<T>& p);

}  // namespace ssdd::cpu

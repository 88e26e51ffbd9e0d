// The problems that share a vector: where they lie, and which thread solves them.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "../tensor.h"
#include "factor.h"
#include "lanes.h"
#include "workers.h"

namespace ssdd::cpu {

// The first whole cache line of the memory.
template <class T>
T* aligned(T* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return memory + (64 - address % 64) % 64 / sizeof(T);
}

// The problems of one vector. Lanes beyond the last problem repeat it and are not stored.
struct Group {
  int64_t first;
  int count, width;
  int64_t problem(int lane) const { return first + std::min(lane, count - 1); }
};

template <class T>
struct Sources {
  const T* p[kMostLanes];
  Sources(const Group& g, Batch<const T> batch) {
    for (int l = 0; l < kMostLanes; ++l) p[l] = batch.p + g.problem(l) * batch.bs;
  }
  Sources(const Group& g, const T* dense, int64_t elements) : Sources(g, Batch<const T>{dense, elements, 0, 1}) {}
  Sources& shift(int64_t elements) {
    for (const T*& source : p) source += elements;
    return *this;
  }
};

template <class T>
struct Targets {
  T* p[kMostLanes];
  Targets(const Group& g, T* dense, int64_t elements) {
    for (int l = 0; l < kMostLanes; ++l) p[l] = dense + g.problem(l) * elements;
  }
};

// With fewer multiply-adds of whole vectors than this (about 40 us), a batch is not worth the start of a second thread.
constexpr double kWorthThreads = 1e5;

// f(group, worker) for every vector of problems, shared over the threads. `multiply_adds`: of whole vectors, per group.
template <class T, class F>
void for_groups(int64_t batch, double multiply_adds, int threads, F f) {
  const int width = lanes<T>().width;
  const int64_t groups = (batch + width - 1) / width;
  Workers workers(groups, multiply_adds, threads, 0);
  workers.team_size = 1;
  if (multiply_adds * static_cast<double>(groups) < kWorthThreads) workers.count = 1;
  workers.run(groups, [&](const Team&, int64_t group, int worker) {
    const int64_t first = group * width;
    f(Group{first, static_cast<int>(std::min<int64_t>(width, batch - first)), width}, worker);
  });
}

template <class T>
void fill_nan(int64_t count, T* out) {
  for (int64_t i = 0; out && i < count; ++i) out[i] = std::numeric_limits<T>::quiet_NaN();
}

template <class T>
void pad(int64_t n, int64_t columns, int width, T* x) {
  std::fill(x + n * columns * width, x + lane_rows(n) * columns * width, T(0));
}

// L_ii of all lanes.
template <class T>
T* diagonal_of(int64_t i, int width, T* panels) {
  return panels + (8 * (i / kLaneRows) * (i / kLaneRows + 1) + kLaneRows * i + i % kLaneRows) * width;
}

// lambda on the diagonal; tr(A) and lambda into aux.
template <class T>
void add_ridge(const Group& g, RidgeKind ridge, const Hyper<T>& hyper, int64_t n, T* panels, T* aux, T* jitter) {
  const Lanes<T>& table = lanes<T>();
  double trace[kMostLanes] = {}, lambda[kMostLanes] = {};
  table.trace(n, panels, trace);
  if (hyper.count) {
    for (int l = 0; l < g.width; ++l)
      lambda[l] = ridge_amount(ridge, hyper.get(g.problem(l), hyper.count - 1), trace[l], n);
    table.shift(n, lambda, panels);
  }
  for (int l = 0; l < g.count; ++l) {
    T* of = aux + 3 * g.problem(l);
    of[0] = static_cast<T>(trace[l]);
    of[1] = static_cast<T>(lambda[l]);
    of[2] = jitter[g.problem(l)] = T(0);
  }
}

}  // namespace ssdd::cpu

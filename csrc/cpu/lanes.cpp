// Cholesky, solve and its backward for batches of small problems, one problem per lane of a vector.
#include "lanes.h"

#include "../arena.h"
#include "kernel.h"
#include "lanes_group.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kMostOrder = 128;  // two triangles of 16 lanes fill half of a second-level cache of 1 MiB
constexpr int64_t kLeastBatch = 2;
constexpr int64_t kColumns = 32;  // right-hand sides at a time

template <class T>
struct Work {
  T *panels, *inverse, *status, *x, *u;
  int64_t total;
};

template <class T>
Work<T> layout(int64_t n, int64_t c, T* memory) {
  Arena<T> arena{memory};
  Work<T> w;
  const int64_t vectors = lane_rows(n) * std::min(c, kColumns);
  w.panels = arena.take((lane_triangle(n) + kLaneRows * kMostLanes) * kMostLanes);  // see store_lower
  w.inverse = arena.take(lane_rows(n) * kMostLanes);
  w.status = arena.take(kMostLanes);
  w.x = arena.take(vectors * kMostLanes);
  w.u = arena.take(vectors * kMostLanes);
  w.total = arena.used + 16;
  return w;
}

double work_of(int64_t n, int64_t c) {
  const double order = static_cast<double>(n);
  return order * order * (order / 6 + static_cast<double>(c) + 8);  // 8: loads and stores of a matrix
}

// Status of every problem, and NaN over the results of those that failed.
template <class T>
void finish(const SolveArgs<T>& a, const Group& g, const T* status) {
  for (int l = 0; l < g.count; ++l) {
    const int64_t b = g.problem(l);
    const bool valid = ridge_valid(a.hyper, b);
    a.status[b] = valid ? static_cast<int32_t>(status[l]) : kBadParameter;
    if (a.status[b] == 0) continue;
    fill_nan(valid ? 1 : 3, a.aux + 3 * b + valid);  // a trace or a jitter that is known stays
    fill_nan(a.s * a.s, a.factor + b * a.s * a.s);
    for (int64_t i = 0; i < a.s; ++i) std::fill_n(a.factor + (b * a.s + i) * a.s + i + 1, a.s - i - 1, T(0));
    if (a.x) fill_nan(a.s * a.c, a.x + b * a.s * a.c);
  }
}

}  // namespace

bool lanes_fit(int64_t batch, int64_t n) { return batch >= kLeastBatch && n >= 1 && n <= kMostOrder; }

int64_t lanes_workspace(int64_t batch, int64_t n, int64_t c, int threads) {
  return layout<float>(n, c, nullptr).total * std::min<int64_t>(batch, threads) + 16;
}

template <class T>
void solve_by_lanes(const SolveArgs<T>& a) {
  const Lanes<T>& table = lanes<T>();
  const int64_t n = a.s, stride = layout<T>(n, a.c, nullptr).total;
  for_groups<T>(a.batch, work_of(n, a.c), a.threads, [&](const Group& g, int worker) {
    const Work<T> w = layout(n, a.c, aligned(a.work + worker * stride));
    table.load_lower(Sources<T>(g, a.a).p, a.a.rs, a.a.cs, n, false, w.panels);
    add_ridge(g, a.ridge, a.hyper, n, w.panels, a.aux, a.jitter);
    table.factor(n, w.panels, w.inverse, w.status);
    table.store_lower(w.panels, n, false, false, g.count, Targets<T>(g, a.factor, n * n).p);
    for (int64_t c0 = 0; a.x && c0 < a.c; c0 += kColumns) {
      const int64_t columns = std::min(kColumns, a.c - c0);
      table.load(Sources<T>(g, a.y).shift(c0 * a.y.cs).p, a.y.rs, a.y.cs, n, columns, w.x, columns);
      pad(n, columns, g.width, w.x);
      table.solve(n, columns, w.panels, w.inverse, w.x);
      table.store(w.x, n, columns, a.c, g.count, Targets<T>(g, a.x + c0, n * a.c).p);
    }
    finish(a, g, w.status);
  });
}

template <class T>
void solve_backward_by_lanes(const SolveBackwardArgs<T>& a) {
  const Lanes<T>& table = lanes<T>();
  const int64_t n = a.s, c = a.c, stride = layout<T>(n, c, nullptr).total;
  for_groups<T>(a.batch, work_of(n, 2 * c), a.threads, [&](const Group& g, int worker) {
    const Work<T> w = layout(n, c, aligned(a.work + worker * stride));
    table.load_lower(Sources<T>(g, a.factor, n * n).p, n, 1, n, false, w.panels);
    table.invert_diagonal(n, w.panels, w.inverse);
    double lambda_bar[kMostLanes] = {};
    for (int64_t c0 = 0; c0 < c; c0 += kColumns) {
      const int64_t columns = std::min(kColumns, c - c0);
      table.load(Sources<T>(g, a.grad).shift(c0 * a.grad.cs).p, a.grad.rs, a.grad.cs, n, columns, w.u, columns);
      pad(n, columns, g.width, w.u);
      table.solve(n, columns, w.panels, w.inverse, w.u);
      table.store(w.u, n, columns, c, g.count, Targets<T>(g, a.grad_y + c0, n * c).p);
      if (!a.grad_a && !a.grad_v) continue;
      table.load(Sources<T>(g, a.x, n * c).shift(c0).p, c, 1, n, columns, w.x, columns);
      for (int64_t e = 0; e < n * columns; ++e)
        for (int l = 0; l < g.width; ++l)
          lambda_bar[l] -= static_cast<double>(w.u[e * g.width + l]) * static_cast<double>(w.x[e * g.width + l]);
    }
    if (a.grad_a) {
      // The panels are free now; with more columns than fit at a time, u and x are read again.
      for (int64_t c0 = 0; c0 < c; c0 += kColumns) {
        const int64_t columns = std::min(kColumns, c - c0);
        if (c > kColumns) {
          table.load(Sources<T>(g, a.grad_y, n * c).shift(c0).p, c, 1, n, columns, w.u, columns);
          table.load(Sources<T>(g, a.x, n * c).shift(c0).p, c, 1, n, columns, w.x, columns);
          pad(n, columns, g.width, w.u);
        }
        pad(n, columns, g.width, w.x);
        table.outer(n, columns, T(-0.5), c0 == 0, w.u, w.x, w.panels);
      }
      for (int l = 0; l < g.width && a.hyper.count; ++l) {
        const double v = static_cast<double>(a.hyper.get(g.problem(l), a.hyper.count - 1));
        const double through_trace = ridge_trace_slope(a.ridge, a.detach, v, n) * lambda_bar[l];
        for (int64_t i = 0; i < n && through_trace != 0; ++i)
          diagonal_of(i, g.width, w.panels)[l] += static_cast<T>(through_trace);
      }
      table.store_lower(w.panels, n, true, false, g.count, Targets<T>(g, a.grad_a, n * n).p);
    }
    for (int l = 0; l < g.count; ++l) {
      const int64_t b = g.problem(l);
      const T* aux = a.aux + 3 * b;
      if (a.grad_v) a.grad_v[b] = static_cast<T>(lambda_bar[l] * ridge_slope(a.ridge, static_cast<double>(aux[0]), n));
      if (!std::isnan(aux[1])) continue;
      fill_nan(n * c, a.grad_y + b * n * c);
      if (a.grad_a) fill_nan(n * n, a.grad_a + b * n * n);
      if (a.grad_v) fill_nan(1, a.grad_v + b);
    }
  });
}

template void solve_by_lanes(const SolveArgs<float>&);
template void solve_by_lanes(const SolveArgs<double>&);
template void solve_backward_by_lanes(const SolveBackwardArgs<float>&);
template void solve_backward_by_lanes(const SolveBackwardArgs<double>&);

}  // namespace ssdd::cpu

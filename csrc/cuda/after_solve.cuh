// After the backward's solve, in the same launch as the solve or in one of its own: u becomes NaN if the problem
// failed. lbar = -<u, x> is summed in double, in one fixed order, and the scalars that depend on it are set
// (scalars.cuh). The pack is written; neighbouring pairs of its parts are operands of products.
#pragma once
#include "join.cuh"
#include "scalars.cuh"

namespace ssdd::cuda {

template <class T>
struct AfterSolve {
  int64_t batch, rows, columns;
  const T* x;  // alpha or w, [batch, rows, columns]
  T* u;        // the same
  T* pack;     // [batch, rows, 3 columns] = [-u | x | -u], or nullptr
  const T* aux;
  RidgeKind ridge;
  bool detach;
  int64_t order;  // of the mean trace
  T* scalars;     // nullptr: no scalars are set
  T* partial;     // after_solve_room(batch, rows, columns)
  int* counters;  // [batch], all 0, before and after
};
int64_t after_solve_room(int64_t batch, int64_t rows, int64_t columns);
template <class T>
void after_solve(const AfterSolve<T>& s, simt::Stream stream);

constexpr int kNarrowColumns = 8;  // columns per block of the narrowest solve; each block has one part of the sum

// Packs element e of u and x, which is in column j, and stores u itself if it is new. Returns their product.
template <class T>
SIMT_DEVICE double pack_element(const AfterSolve<T>& s, int64_t e, int64_t j, T u, bool is_new) {
  const T x = simt::load(s.x + e);
  simt::store_if(is_new, s.u + e, u);
  if (s.pack) {
    T* const to = s.pack + 3 * (e - j) + j;
    simt::store(to, -u);
    simt::store(to + s.columns, x);
    simt::store(to + 2 * s.columns, -u);
  }
  return static_cast<double>(u) * static_cast<double>(x);
}

template <class T>
SIMT_DEVICE bool failed(const T* aux, int64_t b) {
  return aux[3 * b + 1] != aux[3 * b + 1];
}

// Adds up <u, x> over the blocks of a problem and sets the scalars. sum: the part of this thread of block `part` of
// `parts`.
template <int Threads, class T>
SIMT_DEVICE void set_lambda_bar(const AfterSolve<T>& s, int64_t b, int64_t part, int64_t parts, double sum) {
  if (!sum_of_blocks<Threads>(sum, part, parts, s.partial + b * parts, s.counters + b) || simt::thread() != 0) return;
  T* const out = s.scalars + b * kScalars;
  const T lambda_bar = static_cast<T>(-sum);
  const T through =
      static_cast<T>(ridge_trace_slope(s.ridge, s.detach, static_cast<double>(out[kRidge]), s.order)) * lambda_bar;
  out[kLambdaBar] = lambda_bar;
  out[kThroughTrace] = through;
  out[kTraceScale] = T(2) * through * out[kScale];
}

}  // namespace ssdd::cuda

// The kernels of the KRR backward that are neither products nor solves nor copies. krr_backward.cu launches them; its
// head has their costs.
#pragma once
#include "../krr.h"
#include "join.cuh"
#include "krr_work.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Rows {
  Source<T> x;
  int64_t count;
};
template <class T>
struct HyperArgs {
  int64_t c, s, strips;  // strips of 32 columns: blocks per problem
  Rows<T> e, u, alpha;   // their columns are summed
  RidgeKind ridge;
  const T *scalars, *aux;
  T* parts;       // [batch, strips]
  int* counters;  // [batch], all 0, before and after
  int count;      // of hyper-parameters
  T* out;
};

// The linear kernel's gradients to (scale, bias, v). K and lambda scale together, so <Kbar, K> = -lambda lbar:
//   bbar0 = (1^T Pbar - 1^T U).(1^T alpha)   sbar = (-lambda lbar - bias bbar0) / scale + c lbar |X_s|^2
template <class T>
SIMT_KERNEL(kThreads)
void hyper_kernel(HyperArgs<T> a) {
  const int64_t b = simt::block().x / a.strips, strip = simt::block().x % a.strips, j = strip * 32 + simt::lane();
  const T* own = a.scalars + b * kScalars;
  const double p_sum = column_sum<kThreads>(a.e.x[b], a.e.count, a.c, j),
               u_sum = column_sum<kThreads>(a.u.x[b], a.u.count, a.c, j);
  const double alpha_sum = column_sum<kThreads>(a.alpha.x[b], a.alpha.count, a.c, j);
  double bias_bar = simt::warp() == 0 ? (static_cast<double>(own[kGamma]) * p_sum - u_sum) * alpha_sum : 0;
  if (!sum_of_blocks<kThreads>(bias_bar, strip, a.strips, a.parts + b * a.strips, a.counters + b) ||
      simt::thread() != 0)
    return;
  const double trace = a.aux[3 * b],
               lambda = static_cast<double>(a.aux[3 * b + 1]) + static_cast<double>(a.aux[3 * b + 2]);
  const double scale = own[kScale], bias = own[kBias], lambda_bar = own[kLambdaBar], through = own[kThroughTrace];
  const double order = static_cast<double>(a.s), squares = (trace - bias * order) / scale;
  const double bad = failed(a.aux, b) ? simt::nan<double>() : 0;
  T* const out = a.out + b * a.count;
  out[0] = static_cast<T>((-lambda * lambda_bar - bias * bias_bar) / scale + through * squares + bad);
  out[1] = static_cast<T>(bias_bar + through * order + bad);
  out[a.count - 1] = static_cast<T>(lambda_bar * ridge_slope(a.ridge, trace, a.s) + bad);
}

// Computes 1^T alpha of the primal from the border's weight: w_b / sqrt(bias), or 1^T (Y - Phi w) / lambda if the bias
// is 0.
template <class T>
SIMT_KERNEL(kThreads)
void alpha_sum_kernel(int64_t c, const T* scalars, const T* aux, const T* border, int64_t border_bs, const T* residual,
                      int64_t width, T* out) {
  const int64_t b = simt::block().x;
  const T root = scalars[b * kScalars + kRootBias], lambda = aux[3 * b + 1] + aux[3 * b + 2];
  for (int64_t j = simt::thread(); j < c; j += kThreads)
    out[b * width + j] = root > T(0) ? border[b * border_bs + j] / root : residual[b * width + j] / lambda;
}

// One of a problem's two matrices, K_ss or a chunk of K_qs, and where its slopes and their sums go.
template <class T>
struct SlopeArgs {
  int64_t rows, columns;
  bool square;  // K_ss: only j > i of k is read, since K lies above the factor's diagonal; G is 0 on the diagonal
  const T* k;
  int64_t k_bs;
  T* k_bar;  // [batch, rows, columns], Kbar before, G after
  int64_t bar_bs;
  const T* scalars;
  T *row_sums, *row_parts;  // [batch, rows] each: sums of G, and parts of the total
  int* counters;            // [batch], all 0, before and after
  T* total;                 // [batch], sum_ij Kbar dk/dl
  bool add;                 // the sum is added to the value in `total`
};

// Turns one row of Kbar per block into G = Kbar dk/dr, and writes the sum of the row and the total of the problem.
// RBF: dk/dr = -k / (2 l^2), dk/dl = -2 k log k / l.
template <class T>
SIMT_KERNEL(kThreads)
void slope_kernel(SlopeArgs<T> a) {
  const int64_t b = simt::block().x / a.rows, i = simt::block().x % a.rows;
  const T* const k = a.k + b * a.k_bs + i * a.columns;
  T* const k_bar = a.k_bar + b * a.bar_bs + i * a.columns;
  const T l = a.scalars[b * kScalars + kLengthscale], map = a.scalars[b * kScalars + kMap];
  double sum = 0, part = 0;
  for (int64_t j = simt::thread(); j < a.columns; j += kThreads) {
    if (a.square && j <= i) {
      if (j == i) simt::store(k_bar + j, T(0));
      continue;
    }
    const T value = simt::load(k + j), bar = simt::load(k_bar + j);
    const T log_slope = value > T(0) ? T(-2) * value * simt::logarithm(value) / l : T(0);
    part += static_cast<double>(bar) * static_cast<double>(log_slope);
    const T g = bar * value * map;
    sum += static_cast<double>(g);
    simt::store(k_bar + j, g);
  }
  sum = block_sum<kThreads>(sum);
  if (simt::thread() == 0) a.row_sums[simt::block().x] = static_cast<T>(sum);
  simt::barrier();  // the sums of the warps are read
  if (!sum_of_blocks<kThreads>(part, i, a.rows, a.row_parts + b * a.rows, a.counters + b) || simt::thread() != 0)
    return;
  a.total[b] = static_cast<T>(part + (a.add ? static_cast<double>(a.total[b]) : 0.0));
}

template <class T>
SIMT_KERNEL(kThreads)
void rbf_hyper_kernel(int64_t batch, int64_t s, RidgeKind ridge, const T* scalars, const T* aux, const T* parameter,
                      int count, T* out) {
  const int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (b >= batch) return;
  const T bad = failed(aux, b) ? simt::nan<T>() : T(0);
  for (int i = 0; i < count - 1; ++i) out[b * count + i] = parameter[i * batch + b] + bad;
  out[b * count + count - 1] = static_cast<T>(static_cast<double>(scalars[b * kScalars + kLambdaBar]) *
                                              ridge_slope(ridge, static_cast<double>(aux[3 * b]), s)) +
                               bad;
}

// Where the reach of a problem's points goes: of the support points, which is stored, or of these and some queries.
template <class T>
struct Reach {
  const T* scalars;
  T *support, *parts;  // [batch], [batch, rows]
  int* counters;
  int32_t *near, *far;
  bool queries, always_far;
};

// Shifts the points to a common origin, so that points far from 0 cancel before the products. One block per row. It
// also finds how far they reach from the origin; the last of a problem's blocks then chooses between the two forms of
// krr.h.
template <class T>
SIMT_KERNEL(kThreads)
void shift_kernel(int64_t rows, int64_t d, Source<T> x, Source<T> origin, T* out, Reach<T> reach) {
  const int64_t b = simt::block().x / rows, i = simt::block().x % rows;
  double most = 0;
  for (int64_t j = simt::thread(); j < d; j += kThreads) {
    const T v = x[b](i, j) - origin[b](0, j);
    const double size = static_cast<double>(v < T(0) ? -v : v);
    most = size > most ? size : most;
    simt::store(out + (b * rows + i) * d + j, v);
  }
  most = block_most<kThreads>(most);
  T* const parts = reach.parts + b * rows;
  if (simt::thread() == 0) simt::store(parts + i, static_cast<T>(most));
  if (!last_to_arrive(reach.counters + b, rows)) return;
  most = 0;
  for (int64_t e = simt::thread(); e < rows; e += kThreads) {
    const double part = static_cast<double>(simt::load(parts + e));
    most = part > most ? part : most;
  }
  most = block_most<kThreads>(most);
  if (simt::thread() != 0) return;
  if (reach.queries)
    most = static_cast<double>(reach.support[b]) > most ? static_cast<double>(reach.support[b]) : most;
  else
    reach.support[b] = static_cast<T>(most);
  const double length = static_cast<double>(reach.scalars[b * kScalars + kLengthscale]);
  const bool far = reach.always_far || most * simt::square_root(static_cast<double>(d)) > kReach * length;
  reach.far[b] = far ? 1 : 0;
  reach.near[b] = far ? 0 : 1;
}

}  // namespace
}  // namespace ssdd::cuda

// Scalars per problem on the device, [batch, kScalars]: products read hyper-parameters that the host does not know. A
// hyper-parameter out of range makes all of a problem's scalars NaN, and so everything that is computed from them.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

enum Scalar {
  // The linear kernel: its scale s and bias b, their roots, and sqrt(s b).
  kScale,
  kBias,
  kRootScale,
  kRootBias,
  kRootBoth,
  // Kernels of a distance: the lengthscale l, and the factor of the argument, -1 / (2 l^2) for rbf. The second
  // parameter of a kernel is kBias. A polynomial has its scale in kScale.
  kLengthscale,
  kMap,
  // The ridge's v, or 0.
  kRidge,
  // gamma = 2 gbar / (Q C) or 1, and gamma times s, sqrt(s) and b.
  kGamma,
  kGammaScale,
  kGammaRootScale,
  kGammaBias,
  // Set by after_solve: lbar, c lbar and 2 s c lbar.
  kLambdaBar,
  kThroughTrace,
  kTraceScale,
  // 1 if the hyper-parameters are in range, else 0.
  kValid
};
static_assert(kValid < kScalars, "a row holds them all");

template <class T>
struct ScalarArgs {
  int64_t batch;
  Hyper<T> hyper;
  KernelKind kernel;
  int parameters;    // of the kernel, before the ridge
  Batch<const T> g;  // [batch, 1, 1] or absent
  double g_factor;
  T* out;
  int* counters = nullptr;  // arrival counters of later launches, set to 0 here
  int64_t counter_count = 0;
  // If column_sums is set: column_sums[b, j] = gamma bias sum_i e(b, i, j).
  Source<T> e = {};
  int64_t e_rows = 0, e_columns = 0;
  T* column_sums = nullptr;
  int64_t sums_bs = 0;
};
template <class T>
void set_scalars(const ScalarArgs<T>& args, simt::Stream stream);

// The hyper-parameters of a problem. bad: NaN if one is out of range, else 0.
template <class T>
struct HyperParameters {
  T first, bias, ridge, gamma, bad;
  SIMT_DEVICE HyperParameters(const ScalarArgs<T>& a, int64_t b) {
    first = a.parameters > 0 ? a.hyper.get(b, 0) : T(1);
    bias = a.parameters > 1 ? a.hyper.get(b, 1) : T(0);
    // Constant indices only: a run-time index would put the values into local memory.
    const int last = a.hyper.count > a.parameters ? a.hyper.count - 1 : -1;
    ridge = last == 0 ? a.hyper.get(b, 0) : last == 1 ? a.hyper.get(b, 1) : last == 2 ? a.hyper.get(b, 2) : T(0);
    const bool in_range = a.kernel == KernelKind::rational_quadratic ? bias > T(0) : bias >= T(0);
    const bool squared = of_distance(a.kernel) && !of_one_norm(a.kernel);
    const bool positive =
        first > T(0) && simt::finite(first) && (!squared || square_in_range(first)) && in_range && simt::finite(bias);
    bad = positive && ridge >= T(0) && simt::finite(ridge) ? T(0) : simt::nan<T>();
    gamma = a.g ? static_cast<T>(a.g_factor * static_cast<double>(a.g[b](0, 0))) : T(1);
  }
};

// Makes the kernel function the epilogue of a product. If keeps_argument(kind), the product gives the arguments, which
// map_arguments (kernel_functions.cuh) maps.
template <class T>
void apply_kernel(Product<T>& p, KernelKind kind, const T* scalars) {
  if (of_distance(kind)) p.inner = of_one_norm(kind) ? Inner::absolute : Inner::distance;
  if (kind == KernelKind::linear) {
    p.alpha_of = scalars + kScale;
    p.plus_of = scalars + kBias;
  } else if (kind == KernelKind::rbf) {
    p.map_of = scalars + kMap;
  }
}

// d lambda / d v, and d lambda / d trace if the trace is not detached.
SIMT_DEVICE double ridge_slope(RidgeKind kind, double trace, int64_t order) {
  if (kind == RidgeKind::absolute) return 1;
  return kind == RidgeKind::trace ? trace : trace * simt::reciprocal(static_cast<double>(order));
}
SIMT_DEVICE double ridge_trace_slope(RidgeKind kind, bool detach, double v, int64_t order) {
  if (detach || kind == RidgeKind::absolute) return 0;
  return kind == RidgeKind::trace ? v : v * simt::reciprocal(static_cast<double>(order));
}

}  // namespace ssdd::cuda

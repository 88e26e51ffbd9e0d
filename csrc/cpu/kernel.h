// The kernel functions as epilogues of a product: r -> k, one row at a time while a tile is in cache, and the slope in
// the backward. A kernel of the squared distance r = |x - z|^2 needs its three functions here and a row in the two
// switches.
#pragma once
#include <cmath>

#include "micro.h"
#include "product.h"

namespace ssdd::cpu {

// k = exp(-r / (2 l^2)); from k: dk/dr = -k / (2 l^2), dk/dl = k r / l^3 with r = -2 l^2 log k.
template <class T>
struct Rbf {
  T lengthscale;
  void values(int n, T* r) const { micro<T>().exponential(n, T(-0.5) / (lengthscale * lengthscale), r); }
  T slope(T k) const { return k * (T(-0.5) / (lengthscale * lengthscale)); }
  T parameter_slope(T k) const { return k > T(0) ? T(-2) * k * std::log(k) / lengthscale : T(0); }
};

template <class T, class Kernel>
void apply_kernel(const void* context, int64_t, int64_t, int m, int n, T* c, int64_t ld) {
  const Kernel& kernel = *static_cast<const Kernel*>(context);
  for (int i = 0; i < m; ++i) kernel.values(n, c + i * ld);
}

template <class T>
void apply_bias(const void* context, int64_t, int64_t, int m, int n, T* c, int64_t ld) {
  const T bias = *static_cast<const T*>(context);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) c[i * ld + j] += bias;
}

inline int parameter_count(KernelKind kind) { return kind == KernelKind::linear ? 2 : 1; }

// True if the parameters of problem b are in range. A tensor's values are not checked earlier, since that would
// synchronise.
template <class T>
bool parameters_valid(KernelKind kind, const Hyper<T>& hyper, int64_t b) {
  const T first = hyper.get(b, 0);
  if (!(first > T(0)) || !std::isfinite(first)) return false;
  if (kind != KernelKind::linear) return true;
  const T bias = hyper.get(b, 1);
  return bias >= T(0) && std::isfinite(bias);
}

template <class T>
bool ridge_valid(const Hyper<T>& hyper, int64_t b) {
  if (hyper.count == 0) return true;
  const T v = hyper.get(b, hyper.count - 1);
  return v >= T(0) && std::isfinite(v);
}

// Computes c [m, n] = k(x_i, z_j). p has the shapes, operands and output; this function sets its product, scale and
// epilogue.
template <class T>
void kernel_product(const Team& team, const Packing<T>& packing, KernelKind kind, const Hyper<T>& hyper, int64_t b,
                    Product<T> p) {
  if (kind == KernelKind::linear) {
    const T bias = hyper.get(b, 1);
    const Epilogue<T> epilogue{&apply_bias<T>, &bias};
    p.alpha = hyper.get(b, 0);
    if (bias != T(0)) p.epilogue = &epilogue;
    product(team, packing, p);
  } else {
    const Rbf<T> kernel{hyper.get(b, 0)};
    const Epilogue<T> epilogue{&apply_kernel<T, Rbf<T>>, &kernel};
    p.inner = Inner::distance;
    p.epilogue = &epilogue;
    product(team, packing, p);
  }
}

// The backward of one row: kbar[j] <- kbar[j] * dk/dr. Returns sum_j kbar[j] dk/dparameter if `wanted`, which costs a
// logarithm per element, else 0.
template <class T>
double kernel_row_backward(KernelKind, const Hyper<T>& hyper, int64_t b, bool parameter, int64_t n, const T* k,
                           T* kbar) {
  const Rbf<T> kernel{hyper.get(b, 0)};
  double sum = 0;
  for (int64_t j = 0; parameter && j < n; ++j)
    sum += static_cast<double>(kbar[j]) * static_cast<double>(kernel.parameter_slope(k[j]));
  for (int64_t j = 0; j < n; ++j) kbar[j] *= kernel.slope(k[j]);
  return sum;
}

}  // namespace ssdd::cpu

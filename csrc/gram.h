// Gram matrices K = k(x, z).
//
//   linear       k = scale * x.z + bias                    parameters (scale, bias)
//   rbf          k = exp(-|x - z|^2 / (2 lengthscale^2))   parameters (lengthscale)
//   matern_1, _3, _5          k = e, (1 + s) e, (1 + s + s^2 / 3) e with e = exp(-s), s = sqrt(2 nu) |x - z| /
//                             lengthscale, nu = 1/2, 3/2, 5/2    parameters (lengthscale)
//   rational_quadratic        k = (1 + |x - z|^2 / (2 alpha lengthscale^2))^-alpha    parameters (lengthscale, alpha)
//   laplace_1    k = exp(-|x - z|_1 / lengthscale)    parameters (lengthscale)
//   polynomial   k = (scale * x.z + bias)^order            parameters (scale, bias)
//   arc_cosine_0, _1          k = kappa_0, |x| |z| kappa_1 of the angle t between x and z; no parameters
//                             kappa_0 = 1 - t / pi, kappa_1 = cos t + (sin t - t cos t) / pi
//   nngp, ntk    the covariance k and the tangent kernel t of a ReLU network of `order` hidden layers:
//                k = w^2 x.z / D + b^2, t = k, then per layer k' = w^2 / 2 sqrt(k_x k_z) kappa_1 + b^2,
//                t <- w^2 / 2 kappa_0 t + k'                parameters (w, b)
//
// A lengthscale of a kernel of |x - z|^2 is out of range unless square_in_range (tensor.h).
//
// Apart from the linear one, a kernel function is one of the argument |x - z|^2, |x - z|_1 or x.z, and of |x|^2 and
// |z|^2 for the last four. Those are functions of an angle, which near 0 has half the digits of its cosine: they exist in
// double only, and the caller widens float points (ssdd_ext/ops). angles.h has them, for the CPU and the GPU.
//
// x [B, S, D] and z [B, Q, D] have any strides and may alias; k [B, S, Q] is dense and row-major and aliases neither.
// z.p == nullptr: k(x, x), one triangle computed and mirrored, the diagonal that of a point with itself, which for a
// function of the distance is exactly 1.
// Workspace: gram_workspace(...) elements, uninitialised. Work: 2 S Q D flops (half of it if z is x); traffic at
// least (S + Q) D + S Q elements. Same inputs and threads, same bits.
#pragma once
#include "device.h"
#include "tensor.h"

namespace ssdd {

template <class T>
struct GramArgs {
  int64_t batch, s, q, d;
  Batch<const T> x, z;
  T* k;
  Hyper<T> hyper;
  KernelKind kernel;
  T* work;
  int threads;
  Element x_element = Element::own, z_element = Element::own;
  int order = 0;                          // the degree of a polynomial, the hidden layers of a network
  bool halves = false, products = false;  // as in KrrShape (krr.h)
};

// The numbers of a network's kernel for points of so many features: w^2 / D, b^2, h = w^2 / 2, 1 / D, 2 w, 2 b.
struct NetworkNumbers {
  double c[6];
  constexpr NetworkNumbers(double w, double b, int64_t features)
      : c{w * w / static_cast<double>(features > 0 ? features : 1), b * b, w * w / 2,
          1.0 / static_cast<double>(features > 0 ? features : 1),   2 * w, 2 * b} {}
};

// The gradients of any kernel but the linear one, on the CPU, from grad [B, S, Q] with any strides. The arguments are
// computed again; memory is for as many rows as `chunk` at a time, if z is not x. grad_x [B, S, D], grad_z [B, Q, D] and
// grad_hyper [B, count] are dense; each may be nullptr. Parameters out of range give NaN.
template <class T>
struct GramBackwardArgs {
  int64_t batch, s, q, d, chunk;
  Batch<const T> x, z, grad;
  T *grad_x, *grad_z, *grad_hyper;
  Hyper<T> hyper;
  KernelKind kernel;
  int order;
  T* work;
  int threads;
};

namespace cpu {
int64_t gram_workspace(KernelKind kernel, int64_t batch, int64_t s, int64_t q, int64_t d, int threads);
template <class T> void gram(const GramArgs<T>& args);
int64_t gram_backward_workspace(KernelKind kernel, int64_t batch, int64_t s, int64_t q, int64_t d, int64_t chunk,
                                bool symmetric, int threads);
template <class T> void gram_backward(const GramBackwardArgs<T>& args);
}  // namespace cpu
namespace cuda {
int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int64_t d, bool products = false);
template <class T> void gram(const GramArgs<T>& args, Stream stream);
}  // namespace cuda

}  // namespace ssdd

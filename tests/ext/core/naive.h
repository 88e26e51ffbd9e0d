// The formulas of the contracts, written out in fp64.
#pragma once
#include <complex>

#include "tensor.h"
#include "test_core.h"

namespace test {

// A kernel function of the argument, of the squared lengths of its points and of its two hyper-parameters. With complex
// numbers, f(x + h i) = f(x) + h f'(x) i gives derivatives without cancellation.
struct Kernel {
  ssdd::KernelKind kind;
  double first, bias;  // scale and bias, the lengthscale (and alpha), w and b
  int order = 0;

  bool of_distance() const { return ssdd::of_distance(kind); }

  template <class Z>
  Z function(Z a, Z x, Z z, Z one, Z two, int64_t features, bool same) const {
    using std::exp, std::pow, std::sqrt;
    switch (kind) {
      case ssdd::KernelKind::linear:
        return one * a + two;
      case ssdd::KernelKind::rbf:
        return exp(-a / (2.0 * one * one));
      case ssdd::KernelKind::laplace_1:
        return exp(-a / one);
      case ssdd::KernelKind::matern_1:
        return a == 0.0 ? Z(1) : exp(-sqrt(a) / one);
      case ssdd::KernelKind::matern_3:
      case ssdd::KernelKind::matern_5: {
        const bool three = kind == ssdd::KernelKind::matern_3;
        const Z s = sqrt(three ? 3.0 : 5.0) * (a == 0.0 ? Z(0) : sqrt(a)) / one;
        return (three ? 1.0 + s : 1.0 + s + s * s / 3.0) * exp(-s);
      }
      case ssdd::KernelKind::rational_quadratic:
        return pow(1.0 + a / (2.0 * two * one * one), -two);
      case ssdd::KernelKind::polynomial:
        return pow(one * a + two, double(order));
      case ssdd::KernelKind::arc_cosine_0:
        return kappa(a, x, z, 0, same);
      case ssdd::KernelKind::arc_cosine_1:
        return sqrt(x * z) * kappa(a, x, z, 1, same);
      default:
        break;
    }
    const Z over = one * one / double(features), half = one * one / 2.0, b = two * two;
    Z k = over * a + b, k_x = over * x + b, k_z = over * z + b, t = k;
    for (int l = 0; l < order; ++l) {
      const Z next = half * sqrt(k_x * k_z) * kappa(k, k_x, k_z, 1, same) + b;
      t = t * half * kappa(k, k_x, k_z, 0, same) + next;
      k_x = half * k_x + b, k_z = half * k_z + b, k = next;
    }
    return kind == ssdd::KernelKind::nngp ? k : t;
  }

  // The same with the derivatives of `function` in its five arguments. The argument 0 of a distance has none.
  double slopes(double a, double x, double z, int64_t features, bool same, double* out) const {
    using Z = std::complex<double>;
    const double h = 1e-100;
    for (int i = 0; i < 5; ++i) {
      Z v[] = {a, x, z, first, bias};
      v[i] += Z(0, h);
      out[i] = of_distance() && a == 0 ? 0 : function(v[0], v[1], v[2], v[3], v[4], features, same).imag() / h;
    }
    return function(a, x, z, first, bias, features, same);
  }

  double argument(const Matrix& x, int64_t i, const Matrix& z, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < x.columns; ++k) {
      const double a = x(i, k), b = z(j, k);
      sum += ssdd::of_one_norm(kind) ? std::fabs(a - b) : of_distance() ? (a - b) * (a - b) : a * b;
    }
    return sum;
  }
  // d argument / d a of coordinates a of one point and b of the other.
  double argument_slope(double a, double b) const {
    if (ssdd::of_one_norm(kind)) return a > b ? 1 : a < b ? -1 : 0;
    return of_distance() ? 2 * (a - b) : b;
  }
  static double square(const Matrix& x, int64_t i) {
    double sum = 0;
    for (int64_t k = 0; k < x.columns; ++k) sum += x(i, k) * x(i, k);
    return sum;
  }
  double operator()(const Matrix& x, int64_t i, const Matrix& z, int64_t j) const {
    return function(argument(x, i, z, j), square(x, i), square(z, j), first, bias, x.columns, &x == &z && i == j);
  }

 private:
  template <class Z>
  static Z kappa(Z k, Z k_x, Z k_z, int which, bool same) {
    const double pi = std::acos(-1.0);
    if (same) return Z(1);
    const Z c = k / std::sqrt(k_x * k_z), angle = std::acos(c);
    return which == 0 ? 1.0 - angle / pi : (std::sqrt(1.0 - c * c) + (pi - angle) * c) / pi;
  }
};

inline Matrix naive_gram(const Kernel& kernel, const Matrix& x, const Matrix& z) {
  Matrix k(x.rows, z.rows);
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < z.rows; ++j) k(i, j) = kernel(x, i, z, j);
  return k;
}

// d lambda / d v, and d lambda / d tr K if the trace is not detached.
inline double ridge_slope(ssdd::RidgeKind kind, double trace, int64_t s) {
  if (kind == ssdd::RidgeKind::absolute) return 1;
  return kind == ssdd::RidgeKind::trace ? trace : trace / double(s);
}

inline double trace_slope(ssdd::RidgeKind kind, double v, int64_t s) {
  if (kind == ssdd::RidgeKind::absolute) return 0;
  return kind == ssdd::RidgeKind::trace ? v : v / double(s);
}

inline const char* name(ssdd::KernelKind kind) {
  static const char* const names[ssdd::kKernelKinds] = {
      "linear",     "rbf",          "matern_1",     "matern_3", "matern_5", "rational_quadratic",
      "polynomial", "arc_cosine_0", "arc_cosine_1", "nngp",     "ntk",      "laplace_1"};
  return names[static_cast<int>(kind)];
}

// All kernel functions that have an argument to keep, with hyper-parameters for points of d numbers in (-1, 1).
inline std::vector<Kernel> kernel_functions(int64_t d) {
  using K = ssdd::KernelKind;
  const double root = std::sqrt(double(d)), over = 1 / double(d);
  return {{K::matern_1, root, 0},        {K::matern_3, root, 0},
          {K::matern_5, root, 0},        {K::rational_quadratic, root, 0.7},
          {K::polynomial, over, 0.5, 3}, {K::arc_cosine_0, 0, 0},
          {K::arc_cosine_1, 0, 0},       {K::nngp, 1.4, 0.3, 2},
          {K::ntk, 1.4, 0.3, 3},         {K::laplace_1, double(d), 0}};
}

// Its hyper-parameters, in the order of the core.
inline std::vector<double> parameters(const Kernel& kernel) {
  std::vector<double> both{kernel.first, kernel.bias};
  both.resize(size_t(ssdd::parameter_count(kernel.kind)));
  return both;
}
inline const char* name(ssdd::RidgeKind kind) {
  static const char* const names[] = {"absolute", "trace", "mean_trace"};
  return names[static_cast<int>(kind)];
}

// Hyper-parameters as numbers, or as a tensor with one row per problem (with a gap between the rows).
template <class T>
struct Hypers {
  std::vector<T> memory;
  ssdd::Hyper<T> hyper;
  Hypers(const std::vector<std::vector<double>>& rows, bool tensor) {
    hyper.count = static_cast<int>(rows.empty() ? 0 : rows[0].size());
    if (tensor) {
      hyper.bs = hyper.count + 1;
      memory.assign(rows.size() * size_t(hyper.bs), std::numeric_limits<T>::quiet_NaN());
      for (size_t b = 0; b < rows.size(); ++b)
        for (size_t i = 0; i < rows[b].size(); ++i) memory[b * size_t(hyper.bs) + i] = static_cast<T>(rows[b][i]);
      hyper.tensor = memory.data();
    } else {
      for (size_t i = 0; !rows.empty() && i < rows[0].size(); ++i) hyper.values[i] = rows[0][i];
    }
  }
  Hypers(const Hypers&) = delete;
};

}  // namespace test

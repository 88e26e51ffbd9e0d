// The formulas of the contracts, written out in fp64.
#pragma once
#include "tensor.h"
#include "test_core.h"

namespace test {

struct Kernel {
  ssdd::KernelKind kind;
  double first, bias;  // scale and bias, or the lengthscale
  double operator()(const Matrix& x, int64_t i, const Matrix& z, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < x.columns; ++k) {
      const double a = x(i, k), b = z(j, k);
      sum += kind == ssdd::KernelKind::linear ? a * b : (a - b) * (a - b);
    }
    return kind == ssdd::KernelKind::linear ? first * sum + bias : std::exp(-sum / (2 * first * first));
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

inline const char* name(ssdd::KernelKind kind) { return kind == ssdd::KernelKind::linear ? "linear" : "rbf"; }
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

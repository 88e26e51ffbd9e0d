// The kernel functions in products: the argument is computed tile by tile, and the function is applied to a tile while it
// is in cache. kernel_functions.h has the functions themselves.
#pragma once
#include <cmath>

#include "../gram.h"
#include "distances.h"
#include "kernel_rows.h"
#include "micro.h"
#include "team.h"

namespace ssdd::cpu {

// A kernel function of problem b, with the numbers of its hyper-parameters.
template <class T>
struct KernelFunction {
  KernelKind kind;
  KernelRow<T> row;

  KernelFunction(KernelKind kernel, int order, const Hyper<T>& hyper, int64_t b, int64_t features)
      : kind(kernel), row{kernel, order, {}, T(0), nullptr, false} {
    const int count = parameter_count(kind);
    const double first = count > 0 ? static_cast<double>(hyper.get(b, 0)) : 0,
                 second = count > 1 ? static_cast<double>(hyper.get(b, 1)) : 0;
    switch (kind) {
      case KernelKind::rbf:
        set(-0.5 / (first * first), 1 / first);
        break;
      case KernelKind::matern_1:
      case KernelKind::matern_3:
      case KernelKind::matern_5:
        // The coefficient is 2 nu: 1, 3, 5.
        set((2 * (static_cast<int>(kind) - static_cast<int>(KernelKind::matern_1)) + 1) / (first * first), -2 / first);
        break;
      case KernelKind::laplace_1:
        set(-1 / first);
        break;
      case KernelKind::rational_quadratic:
        set(0.5 / (second * first * first), -2 / first, second);
        break;
      case KernelKind::nngp:
      case KernelKind::ntk:
        for (int i = 0; i < 6; ++i) row.c[i] = static_cast<T>(NetworkNumbers(first, second, features).c[i]);
        break;
      default:
        set(first, second);
    }
  }

  KernelRow<T> at(T x, const T* z) const {
    KernelRow<T> own = row;
    own.x = x;
    own.z = z;
    return own;
  }

 private:
  void set(double c0, double c1 = 0, double c2 = 0) {
    const double all[] = {c0, c1, c2};
    for (int i = 0; i < 3; ++i) row.c[i] = static_cast<T>(all[i]);
  }
};

// What a product K = k(x_i, z_j) needs beside its operands.
template <class T>
struct KernelEpilogue {
  const KernelFunction<T>* function;  // nullptr: the arguments alone
  const T *x, *z;                     // squared lengths, if of_norms(kind)
  T* arguments;                       // where they are kept, with the row stride of the result; or nullptr
  const Distances<T>* distances;      // nullptr: the product has the arguments
};

template <class T>
void apply_kernel(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld) {
  const auto& e = *static_cast<const KernelEpilogue<T>*>(context);
  const KernelRows<T>& rows = kernel_rows<T>();
  for (int y = 0; y < m; ++y) {
    T* k = c + y * ld;
    if (e.distances) e.distances->finish(i + y, j, n, k);
    if (e.arguments) std::copy(k, k + n, e.arguments + (i + y) * ld + j);
    if (e.function) rows.values(e.x ? e.function->at(e.x[i + y], e.z + j) : e.function->row, n, k, k);
  }
}

template <class T>
void apply_bias(const void* context, int64_t, int64_t, int m, int n, T* c, int64_t ld) {
  const T bias = *static_cast<const T*>(context);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) c[i * ld + j] += bias;
}

// True if the parameters of problem b are in range. A tensor's values are not checked earlier, since that would
// synchronise. The square of a lengthscale must be in range too (gram.h).
template <class T>
bool parameters_valid(KernelKind kind, const Hyper<T>& hyper, int64_t b) {
  const int count = parameter_count(kind);
  if (count == 0) return true;
  const T first = hyper.get(b, 0);
  if (!(first > T(0)) || !std::isfinite(first)) return false;
  if (of_distance(kind) && !of_one_norm(kind) && !square_in_range(first)) return false;
  if (count == 1) return true;
  const T second = hyper.get(b, 1);
  return (kind == KernelKind::rational_quadratic ? second > T(0) : second >= T(0)) && std::isfinite(second);
}

template <class T>
bool ridge_valid(const Hyper<T>& hyper, int64_t b) {
  if (hyper.count == 0) return true;
  const T v = hyper.get(b, hyper.count - 1);
  return v >= T(0) && std::isfinite(v);
}

// Computes the squared lengths of the rows of x, with the rows shared over the team.
template <class T>
void squared_lengths(const Team& team, int64_t rows, int64_t columns, View<const T> x, T* out) {
  int64_t begin, end;
  team.share(rows, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += static_cast<double>(x(i, j)) * static_cast<double>(x(i, j));
    out[i] = static_cast<T>(sum);
  }
  team.barrier();
}

inline Inner inner_of(KernelKind kind) {
  return !of_distance(kind) ? Inner::dot : of_one_norm(kind) ? Inner::absolute : Inner::distance;
}

// The product of a function of the distance: its epilogue gets squared distances in either form, or 1-norms.
template <class T>
void distance_product(const Team& team, const Packing<T>& packing, Inner inner, Product<T> p, KernelEpilogue<T> context,
                      const DistanceWork<T>& work) {
  const Epilogue<T> epilogue{&apply_kernel<T>, &context};
  Distances<T> distances(team, p, work);
  if (!distances.shift_columns()) {
    p.inner = inner;
    if (context.function) p.epilogue = &epilogue;
    return product(team, packing, p);
  }
  context.distances = &distances;
  p.epilogue = &epilogue;
  p.b = distances.columns().t();
  const int64_t rows = distances.rows_at_once();
  for (int64_t i0 = 0; i0 < p.m; i0 += rows) {
    Product<T> part = p;
    part.m = std::min(rows, p.m - i0);
    part.a = distances.shift_rows(i0, part.m);
    part.c = p.c + i0 * p.ldc;
    product(team, packing, part);
    if (context.arguments) context.arguments += rows * p.ldc;
  }
}

// Computes c [m, n] = k(x_i, z_j). p has the shapes, operands and output; this function sets its product, scale and
// epilogue. x, z: squared lengths, for kernels of norms; arguments: where they are kept, or nullptr; work: memory for
// kernels of a distance.
template <class T>
void kernel_product(const Team& team, const Packing<T>& packing, KernelKind kind, int order, const Hyper<T>& hyper,
                    int64_t b, Product<T> p, const T* x = nullptr, const T* z = nullptr, T* arguments = nullptr,
                    const DistanceWork<T>& work = {}) {
  if (kind == KernelKind::linear) {
    const T bias = hyper.get(b, 1);
    const Epilogue<T> epilogue{&apply_bias<T>, &bias};
    p.alpha = hyper.get(b, 0);
    if (bias != T(0)) p.epilogue = &epilogue;
    return product(team, packing, p);
  }
  const KernelFunction<T> function(kind, order, hyper, b, p.k);
  const KernelEpilogue<T> context{&function, x, z, arguments, nullptr};
  if (of_distance(kind)) return distance_product(team, packing, inner_of(kind), p, context, work);
  const Epilogue<T> epilogue{&apply_kernel<T>, &context};
  p.epilogue = &epilogue;
  product(team, packing, p);
}

// Computes the arguments alone.
template <class T>
void argument_product(const Team& team, const Packing<T>& packing, KernelKind kind, Product<T> p,
                      const DistanceWork<T>& work = {}) {
  if (of_distance(kind)) return distance_product(team, packing, inner_of(kind), p, KernelEpilogue<T>{}, work);
  product(team, packing, p);
}

// Sets the diagonal of k(x, x), of squared lengths x, for kernels of norms: the angle of a point with itself is 0.
template <class T>
void set_diagonal(const Team& team, KernelKind kind, int order, const Hyper<T>& hyper, int64_t b, int64_t n,
                  int64_t features, const T* x, T* k) {
  const KernelFunction<T> function(kind, order, hyper, b, features);
  int64_t begin, end;
  team.share(n, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    KernelRow<T> row = function.at(x[i], x + i);
    row.same = true;
    kernel_rows<T>().values(row, 1, x + i, k + i * n + i);
  }
  team.barrier();
}

}  // namespace ssdd::cpu

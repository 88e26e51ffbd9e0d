// Kernel functions on one row of a Gram matrix, one table of functions per instruction set.
//
// k(x, z) = f(a, |x|^2, |z|^2) with the argument a = |x - z|^2 or a = x.z. A kernel function is a small struct in
// kernel_functions.h with its value and its slopes; kernels_*.cpp instantiate all of them. Their formulas are in gram.h.
#pragma once
#include "../tensor.h"

namespace ssdd::cpu {

// A kernel function with its numbers, at the row of one point x.
template <class T>
struct KernelRow {
  KernelKind kind;
  int order;             // the degree of a polynomial, the hidden layers of a network
  T c[6];                // numbers that follow from the hyper-parameters (kernel.h), one meaning per kind
  T x = 0;               // |x|^2, if the function uses it
  const T* z = nullptr;  // [n] |z|^2, likewise
  bool same = false;     // every z is x itself: its angle to x is exactly 0
};

template <class T>
struct KernelRows {
  // k[j] = f(argument[j]), j < n; may be in place.
  void (*values)(const KernelRow<T>& row, int64_t n, const T* argument, T* k);
  // bar[j] <- bar[j] df/da. z_bar[j] += bar[j] df/d|z|^2 and sums[0] += sum_j bar[j] df/d|x|^2 if z_bar is given;
  // sums[1], sums[2] += the same for the hyper-parameters if `parameters`. The argument of the rbf kernel is k itself.
  void (*slopes)(const KernelRow<T>& row, int64_t n, const T* argument, T* bar, T* z_bar, bool parameters,
                 double* sums);
  // For distances.h. squares: x.z_j in c[j] becomes |x - z_j|^2, from the squared lengths; returns how many are below
  // (|x|^2 + |z_j|^2) / kCancelled or NaN. distance: returns |x - z|^2 by differences. shift: out = x - origin, which may
  // be x itself; returns |out|^2.
  int (*squares)(int64_t n, T x_square, const T* z_squares, T* c);
  T (*distance)(int64_t n, const T* x, const T* z);
  T (*shift)(int64_t n, const T* x, const T* origin, T* out);
};

template <class T> const KernelRows<T>& kernel_rows();  // the table in use (dispatch.cpp)
template <class T> const KernelRows<T>* kernels_generic();
template <class T> const KernelRows<T>* kernels_avx2();
template <class T> const KernelRows<T>* kernels_avx512();

// A squared distance by a product loses two bits at this part of |x|^2 + |z|^2; below it differences are used.
constexpr int kCancelled = 4;

// Networks of more hidden layers have no native code.
constexpr int kMostLayers = 16;

}  // namespace ssdd::cpu

// The small passes between products; each runs for all problems of the batch at once.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

// out[b, i, j] = factor factor_of[b] x(b, i, j), out with row stride ld; NaN if status[b] != 0.
template <class T>
struct Copy {
  int64_t batch, rows, columns;
  Batch<const T> x;
  T* out;
  int64_t out_bs, ld;
  double factor = 1;
  const T* factor_of = nullptr;
  const int32_t* status = nullptr;
};
template <class T>
void copy(const Copy<T>& c, simt::Stream stream);

// Copies what lies above the diagonal of each a[b] below it.
template <class T>
void mirror(int64_t batch, int64_t n, T* a, simt::Stream stream);

// out[b, j] = factor factor_of[b] sum_i x(b, i, j), summed in double; out rows out_bs apart.
template <class T>
struct ColumnSums {
  int64_t batch, rows, columns;
  Source<T> x;
  T* out;
  int64_t out_bs;
  double factor = 1;
  const T* factor_of = nullptr;
};
template <class T>
void sum_columns(const ColumnSums<T>& c, simt::Stream stream);

// out[b, ...] = NaN for each problem that failed: status[b] != 0.
template <class T>
void nan_if_failed(int64_t batch, int64_t count, const int32_t* status, T* out, simt::Stream stream);

template <class T>
void fill(int64_t count, double value, T* out, simt::Stream stream);

}  // namespace ssdd::cuda

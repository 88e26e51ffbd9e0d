// The kernel functions other than the linear one and rbf: applied to a matrix of arguments (gram.h), and their slopes in
// the backward. rbf is an epilogue of its product (product.cuh), and its slopes follow from K (backward_kernels.cuh).
#pragma once
#include "../gram.h"
#include "scalars.cuh"

namespace ssdd::cuda {

// k[b, e] = f(arguments[b, e]), e < count; may be in place.
template <class T>
struct KernelMap {
  int64_t batch, count;
  KernelKind kind;
  int order;
  const T* scalars;
  const T* arguments;
  int64_t arguments_bs;
  T* k;
  int64_t k_bs;
};
template <class T>
void map_arguments(const KernelMap<T>& map, simt::Stream stream);

// Turns Kbar [batch, rows, columns] into G = Kbar df/da, with the sums of its rows, and adds sum_ij Kbar df/dp of the
// hyper-parameters to totals [2, batch] (`add`: to what is there). Square: 2 Kbar_ss, of which only j >= i is read; G is
// 0 on the diagonal for functions of the distance, and holds the trace's part too for those of x.z.
template <class T>
struct KernelSlopes {
  int64_t batch, rows, columns;
  KernelKind kind;
  int order;
  const T* scalars;
  const T* arguments;
  int64_t arguments_bs;
  T* k_bar;
  int64_t bar_bs;
  bool square;
  T *row_sums, *row_parts;  // [batch, rows], [2, batch, rows]
  int* counters;            // [batch], all 0, before and after
  bool add;
  T* totals;
};
template <class T>
void slope_arguments(const KernelSlopes<T>& slopes, simt::Stream stream);

}  // namespace ssdd::cuda

// The kernel functions other than the linear one and rbf: applied to a matrix of arguments (gram.h), and their slopes in
// the backward. rbf is an epilogue of its product (product.cuh), and its slopes follow from K (krr_backward_kernels.cu).
#pragma once
#include <type_traits>

#include "../gram.h"
#include "join.cuh"
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

// Stores the sum of row i of problem b, and the sums of its hyper-parameters' slopes; the last of the problem's blocks
// adds the latter to the totals. Slopes: KernelSlopes or AngleSlopes. One block per row.
template <int Threads, class Slopes>
SIMT_DEVICE void sum_slopes(const Slopes& a, int64_t b, int64_t i, double sum, double first, double second) {
  using T = std::remove_pointer_t<decltype(a.totals)>;
  sum = block_sum<Threads>(sum);
  if (simt::thread() == 0) a.row_sums[simt::block().x] = static_cast<T>(sum);
  simt::barrier();  // the sums of the warps are read
  second = block_sum<Threads>(second);
  T* const second_parts = a.row_parts + (a.batch + b) * a.rows;
  if (simt::thread() == 0) simt::store(second_parts + i, static_cast<T>(second));
  simt::barrier();
  if (!sum_of_blocks<Threads>(first, i, a.rows, a.row_parts + b * a.rows, a.counters + b)) return;
  simt::barrier();
  second = 0;
  for (int64_t e = simt::thread(); e < a.rows; e += Threads)
    second += static_cast<double>(simt::load(second_parts + e));
  second = block_sum<Threads>(second);
  if (simt::thread() != 0) return;
  a.totals[b] = static_cast<T>(first + (a.add ? static_cast<double>(a.totals[b]) : 0.0));
  T* const other = a.totals + a.batch;
  other[b] = static_cast<T>(second + (a.add ? static_cast<double>(other[b]) : 0.0));
}

}  // namespace ssdd::cuda

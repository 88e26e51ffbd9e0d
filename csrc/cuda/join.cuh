// Sums over several blocks within their launch. Each block leaves its part in global memory and increments a counter.
// The last block to arrive adds all parts in their order and resets the counter for the next launch. The order does not
// depend on which block is last: same inputs, same bits.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

// True in the last of the `count` blocks to arrive at the counter, in all of its threads. Everything that the other
// blocks wrote before they arrived is then visible.
SIMT_DEVICE bool last_to_arrive(int* counter, int64_t count) {
  SIMT_SHARED(int, last, 1);
  simt::barrier();  // all threads of the block have written
  if (simt::thread() == 0) {
    const bool is = simt::arrive(counter) == count - 1;
    if (is) *counter = 0;
    simt::put(last, is ? 1 : 0);
  }
  simt::barrier();
  return simt::get(last) != 0;
}

// Sums one number per thread, in a fixed order. Thread 0 has the result.
template <int Threads>
SIMT_DEVICE double block_sum(double v) {
  SIMT_SHARED(double, warps, Threads / 32);
#pragma unroll 1
  for (int mask = 16; mask > 0; mask /= 2) v += simt::shuffle_xor(v, mask);
  if (simt::lane() == 0) simt::put(warps + simt::warp(), v);
  simt::barrier();
  double sum = 0;
  if (simt::thread() == 0)
#pragma unroll 1
    for (int w = 0; w < Threads / 32; ++w) sum += simt::get(warps + w);
  return sum;
}

// The largest of one number >= 0 per thread; NaN does not count. Thread 0 has the result.
template <int Threads>
SIMT_DEVICE double block_most(double v) {
  SIMT_SHARED(double, warps, Threads / 32);
#pragma unroll 1
  for (int mask = 16; mask > 0; mask /= 2) {
    const double other = simt::shuffle_xor(v, mask);
    v = other > v ? other : v;
  }
  if (simt::lane() == 0) simt::put(warps + simt::warp(), v);
  simt::barrier();
  double most = 0;
  if (simt::thread() == 0)
#pragma unroll 1
    for (int w = 0; w < Threads / 32; ++w) most = simt::get(warps + w) > most ? simt::get(warps + w) : most;
  return most;
}

// block_sum over the `count` blocks that share the counter. Each leaves its sum at parts[part]. True in the last block;
// its thread 0 then has the sum of all.
template <int Threads, class T>
SIMT_DEVICE bool sum_of_blocks(double& sum, int64_t part, int64_t count, T* parts, int* counter) {
  // The sum of this block, and then that of the parts: one copy of the code for both.
#pragma unroll 1
  for (bool all = count == 1;; all = true) {
    sum = block_sum<Threads>(sum);
    if (all) return true;
    if (simt::thread() == 0) simt::store(parts + part, static_cast<T>(sum));
    if (!last_to_arrive(counter, count)) return false;
    sum = 0;
#pragma unroll 1
    for (int64_t e = simt::thread(); e < count; e += Threads) sum += static_cast<double>(simt::load(parts + e));
  }
}

// sum_i x(i, j): lanes take 32 neighbouring columns (this lane j), warps every so many-th row. The first warp has the
// result, 0 if column j does not exist.
template <int Threads, class T>
SIMT_DEVICE double column_sum(const Source<T>& x, int64_t rows, int64_t columns, int64_t j) {
  SIMT_SHARED(double, sums, Threads);
  double sum = 0;
  if (j < columns)
#pragma unroll 4
    for (int64_t i = simt::warp(); i < rows; i += Threads / 32) sum += static_cast<double>(x(i, j));
  simt::barrier();  // the sums of the previous call have been read
  simt::put(sums + simt::thread(), sum);
  simt::barrier();
  if (simt::warp() == 0)
#pragma unroll 1
    for (int w = 1; w < Threads / 32; ++w) sum += simt::get(sums + w * 32 + simt::lane());
  return sum;
}

}  // namespace ssdd::cuda

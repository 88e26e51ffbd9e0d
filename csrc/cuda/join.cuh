// Sums of several blocks within their launch: each leaves its part in global memory and arrives; who arrives last finds
// all parts there, adds them in their order, whoever it is, and puts the ticket back to 0 for the next launch. Same
// inputs, same bits.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

// Whether all other of the `count` blocks that share the ticket have arrived, each behind what it has written; the
// answer is the whole block's, which then reads what they wrote.
SIMT_DEVICE bool last_to_arrive(int* ticket, int64_t count) {
  SIMT_SHARED(int, last, 1);
  simt::barrier();  // all of the block has written
  if (simt::thread() == 0) {
    const bool is = simt::arrive(ticket) == count - 1;
    if (is) *ticket = 0;
    simt::put(last, is ? 1 : 0);
  }
  simt::barrier();
  return simt::get(last) != 0;
}

// Sums a number of each thread in a fixed order; the result is thread 0's.
template <int Threads>
SIMT_DEVICE double block_sum(double v) {
  SIMT_SHARED(double, warps, Threads / 32);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += simt::shuffle_xor(v, mask);
  if (simt::lane() == 0) simt::put(warps + simt::warp(), v);
  simt::barrier();
  double sum = 0;
  if (simt::thread() == 0)
#pragma unroll 1
    for (int w = 0; w < Threads / 32; ++w) sum += simt::get(warps + w);
  return sum;
}

// The largest of a number >= 0 of each thread, which is thread 0's. NaN does not count.
template <int Threads>
SIMT_DEVICE double block_most(double v) {
  SIMT_SHARED(double, warps, Threads / 32);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const double other = simt::shuffle_xor(v, mask);
    v = other > v ? other : v;
  }
  if (simt::lane() == 0) simt::put(warps + simt::warp(), v);
  simt::barrier();
  double most = 0;
  if (simt::thread() == 0)
    for (int w = 0; w < Threads / 32; ++w) most = simt::get(warps + w) > most ? simt::get(warps + w) : most;
  return most;
}

// block_sum over the `count` blocks that share the ticket: each leaves its sum at parts[part]. true in one block, whose
// thread 0 then has the sum of all.
template <int Threads, class T>
SIMT_DEVICE bool sum_of_blocks(double& sum, int64_t part, int64_t count, T* parts, int* ticket) {
  sum = block_sum<Threads>(sum);
  if (count == 1) return true;
  if (simt::thread() == 0) simt::store(parts + part, static_cast<T>(sum));
  if (!last_to_arrive(ticket, count)) return false;
  sum = 0;
  for (int64_t e = simt::thread(); e < count; e += Threads) sum += static_cast<double>(simt::load(parts + e));
  sum = block_sum<Threads>(sum);
  return true;
}

// sum_i x(i, j), the block's threads on 32 neighbouring columns, lane `lane` on j and the warps on every so many-th
// row: the result is the first warp's, 0 where j is no column.
template <int Threads, class T>
SIMT_DEVICE double column_sum(const Source<T>& x, int64_t rows, int64_t columns, int64_t j) {
  SIMT_SHARED(double, sums, Threads);
  double sum = 0;
  if (j < columns)
    for (int64_t i = simt::warp(); i < rows; i += Threads / 32) sum += static_cast<double>(x(i, j));
  simt::barrier();  // the sums of a call before are read
  simt::put(sums + simt::thread(), sum);
  simt::barrier();
  if (simt::warp() == 0)
    for (int w = 1; w < Threads / 32; ++w) sum += simt::get(sums + w * 32 + simt::lane());
  return sum;
}

}  // namespace ssdd::cuda

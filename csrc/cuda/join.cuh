// Sums of several blocks within their launch: each leaves its part in global memory and arrives; who arrives last finds all parts
// there, adds them in their order, whoever it is, and puts the ticket back to 0 for the next launch. Same inputs, same bits.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

// Whether all other of the `count` blocks that share the ticket have arrived, each behind what it has written; the answer is the
// whole block's, which then reads what they wrote.
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

// The sums of a split product's tile: true in the block that goes on with those of all splits. each(f) calls f(q, four, i, j) for
// every run of four sums of a thread, q counting them, (i, j) the element of the first; a tile's sums lie in memory as
// the threads hold them, [piece][thread], 16 bytes each, and pieces that begin beyond the matrix are neither written nor read.
// One block reads at most 16 splits of 16 KB (double: 32), which takes it about 350 cycles a split, 3.2 us for 16: what a launch of
// its own would cost, and then that would read and write too. Tiles of few rows or columns have less.
template <int Threads, class T, class Each>
SIMT_DEVICE bool join_splits(const Product<T>& p, const Tiling& t, const Part& part, const Each& each) {
  constexpr int kWide = 16 / sizeof(T), kPieces = 4 / kWide, kWhole = kTile * kTile;
  const int64_t tile = part.b * t.tiles + part.tile;
  T* first = p.split + tile * t.splits * kWhole + simt::thread() * kWide;
  T* const own = first + part.split * kWhole;
  each([&](int q, T(&four)[4], int64_t i, int64_t j) {
#pragma unroll
    for (int e = 0; e < kPieces; ++e) {
      simt::Vector<T, kWide> v;
#pragma unroll
      for (int w = 0; w < kWide; ++w) v.v[w] = four[e * kWide + w], four[e * kWide + w] = 0;
      simt::store_vector_if<kWide>(i < p.m && j + e * kWide < p.n, own + (q * kPieces + e) * Threads * kWide, v);
    }
  });
  if (!last_to_arrive(p.tickets + tile, t.splits)) return false;
#pragma unroll 2
  for (int s = 0; s < t.splits; ++s, first += kWhole)
    each([&](int q, T(&four)[4], int64_t i, int64_t j) {
#pragma unroll
      for (int e = 0; e < kPieces; ++e) {
        const auto v = simt::load_vector_if<kWide>(i < p.m && j + e * kWide < p.n, first + (q * kPieces + e) * Threads * kWide);
#pragma unroll
        for (int w = 0; w < kWide; ++w) four[e * kWide + w] += v.v[w];
      }
    });
  return true;
}

}  // namespace ssdd::cuda

// Operands of a tile of 64 x 64 in shared memory and their product on the ordinary units; see product_plain.cu.
#pragma once
#include "product.cuh"

namespace ssdd::cuda::plain {

constexpr int kThreads = 256;
// 16 bytes beyond the tile: rows stay aligned for vectors, and a copy along k meets in a bank no more than twice.
template <class T>
constexpr int kPitch = kTile + 16 / sizeof(T);
template <class T>
constexpr int kStage = kDepth * kPitch<T>;

template <class T>
struct Loader {
  Source<T> x;  // from this tile's first row
  int64_t rows;
  bool along_k;

  SIMT_DEVICE Loader(const Source<T>& view, int64_t row, int64_t all_rows)
      : x(view.from(row, 0)), rows(all_rows - row), along_k(view.cs == 1 || view.rs != 1) {}

  SIMT_DEVICE void load(T* stage, int64_t k, int64_t k_end) const {
    const int t = simt::thread();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = along_k ? t / 16 + 16 * r : t % 64, step = along_k ? t % 16 : t / 64 + 4 * r;
      const bool exists = row < rows && k + step < k_end;
      T* const to = stage + step * kPitch<T> + row;
      if (x.element == Element::own)
        simt::copy_async<sizeof(T)>(to, exists ? x.p + row * x.rs + (k + step) * x.cs : x.p, exists ? static_cast<int>(sizeof(T)) : 0);
      else
        simt::put(to, exists ? x(row, k + step) : T(0));
    }
  }
};

template <class T>
SIMT_DEVICE void four(const T* p, T (&v)[4]) {
  constexpr int kWide = 16 / sizeof(T);
#pragma unroll
  for (int e = 0; e < 4; e += kWide) {
    const simt::Vector<T, kWide> part = simt::get_vector<kWide>(p + e);
#pragma unroll
    for (int i = 0; i < kWide; ++i) v[e + i] = part.v[i];
  }
}

// sums += the 4 x 4 x 16 product of one thread and stage. own: the elements of `from`, of differences.
template <bool Distance, bool Difference, class T>
SIMT_DEVICE void multiply(const T* a_stage, const T* b_stage, int row, int column, const T (&own)[4][4], T (&sums)[4][4]) {
  T fresh[4][4] = {};
#pragma unroll
  for (int step = 0; step < kDepth; ++step) {
    T x[4], z[4];
    four(a_stage + step * kPitch<T> + row, x);
    four(b_stage + step * kPitch<T> + column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (Difference) {
          fresh[i][j] = simt::fma(x[i], z[j] - own[i][j], fresh[i][j]);
        } else {
          const T difference = x[i] - z[j];
          fresh[i][j] = Distance ? simt::fma(difference, difference, fresh[i][j]) : simt::fma(x[i], z[j], fresh[i][j]);
        }
      }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] += fresh[i][j];
}

}  // namespace ssdd::cuda::plain

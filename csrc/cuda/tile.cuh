// A product of 64 x 64 x kSteps in one block, with operands in shared memory and sums in registers: on the tensor cores
// for float, else on the ordinary units. The tiled factorisation and solve use it. kSteps is 32 in double, so that a
// block fits the 99 KB of sm_86 and sm_89.
#pragma once
#include "tile_plain.cuh"
#include "tile_tensor.cuh"

namespace ssdd::cuda {

// KMajor: k is the direction of unit stride of the operand.
template <class T>
struct Tile {
  static constexpr int kThreads = plain::kThreads, kSteps = 2 * kDepth;
  static constexpr int kRoom = 2 * plain::kStage<T>;  // elements of one operand
  T sums[4][4];

  template <bool KMajor>
  static SIMT_DEVICE int place(int row, int k) {
    return k / kDepth * plain::kStage<T> + k % kDepth * plain::kPitch<T> + row;
  }
  // Loads x (row, k) asynchronously, zero beyond `rows` and `steps`.
  template <bool KMajor>
  static SIMT_DEVICE void load(View<const T> x, int rows, int steps, bool, T* operand) {
    plain::Loader<T> loader(Source<T>(x.p, 0, x.rs, x.cs), 0, rows, 0);
#pragma unroll 1
    for (int s = 0; s < kSteps / kDepth; ++s) loader.load(operand + s * plain::kStage<T>, steps - s * kDepth);
  }
  template <bool AMajor, bool BMajor>
  SIMT_DEVICE void multiply(const T* a, const T* b) {
    // Columns 16 apart: the threads' accesses to the tile then conflict at most two ways.
    const int row = simt::thread() / 16 * 4, column = simt::thread() % 16;
#pragma unroll 1
    for (int s = 0; s < kSteps / kDepth; ++s, a += plain::kStage<T>, b += plain::kStage<T>) {
      T fresh[4][4] = {};
#pragma unroll
      for (int step = 0; step < kDepth; ++step) {
        T x[4], z[4];
        plain::four(a + step * plain::kPitch<T> + row, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) z[j] = simt::get(b + step * plain::kPitch<T> + column + 16 * j);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) fresh[i][j] = simt::fma(x[i], z[j], fresh[i][j]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += fresh[i][j];
    }
  }
  SIMT_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0;
  }
  // Calls f(row, column, sum) for each sum of this thread.
  template <class F>
  SIMT_DEVICE void each(const F& f) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) f(simt::thread() / 16 * 4 + i, simt::thread() % 16 + 16 * j, sums[i][j]);
  }
};

template <>
struct Tile<float> {
  // A warp has 16 rows of 32 columns: twice the warps of a product that many blocks share, since a tile of a
  // factorisation is waited for.
  static constexpr int kThreads = 256, kSteps = kTile, kRoom = tensor::kStages * tensor::kStage;
  static_assert(tensor::kStages == kTile / kDepth, "an operand of 64 k fills the stages");
  float sums[1][4][4];

  template <bool KMajor>
  static SIMT_DEVICE int place(int row, int k) {
    return tensor::place_of<KMajor>(row, k);
  }
  // vectors: rows (KMajor) or steps are aligned to 16 bytes.
  template <bool KMajor>
  static SIMT_DEVICE void load(View<const float> x, int rows, int steps, bool vectors, float* operand) {
    tensor::Loader<KMajor, kThreads> loader(Source<float>(x.p, 0, x.rs, x.cs), 0, rows, 0, vectors);
#pragma unroll 1
    for (int s = 0; s < kSteps / kDepth; ++s) loader.load(operand + s * tensor::kStage, steps - s * kDepth);
  }
  template <bool AMajor, bool BMajor>
  SIMT_DEVICE void multiply(const float* a, const float* b) {
    const int stages = simt::unknown(kSteps / kDepth);
#pragma unroll 1
    for (int s = 0; s < stages; ++s)
      tensor::multiply<AMajor, BMajor>(a + s * tensor::kStage, b + s * tensor::kStage, warp_row(), warp_column(), sums);
  }
  SIMT_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][j][e] = 0;
  }
  template <class F>
  SIMT_DEVICE void each(const F& f) {
    const int row = warp_row() + simt::lane() / 4, column = warp_column() + simt::lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(row + e / 2 * 8, column + j * 8 + e % 2, sums[0][j][e]);
  }
  static SIMT_DEVICE int warp_row() { return simt::warp() / 2 * 16; }
  static SIMT_DEVICE int warp_column() { return simt::warp() % 2 * 32; }
};

}  // namespace ssdd::cuda

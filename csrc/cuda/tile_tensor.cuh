// Operands of a tile of 64 x 64 in shared memory and their product on the tensor cores; product_tensor.cu explains the
// method.
#pragma once
#include "product.cuh"

namespace ssdd::cuda::tensor {

constexpr int kThreads = 128, kStages = 4, kRowPitch = kDepth + 4, kColumnPitch = kTile + 8;
constexpr int kStage = kTile * kRowPitch;  // floats of one operand's stage: the larger of both layouts
static_assert(kDepth * kColumnPitch <= kStage, "a stage holds either layout");

SIMT_DEVICE int clamp_bytes(int floats) { return floats <= 0 ? 0 : floats >= 4 ? 16 : floats * 4; }

// Loads [64 rows] x [16 k] of one operand into a stage. Each call starts the copies of the next 16 k. KMajor: k is the
// direction of unit stride. A thread copies `kCopies` vectors or `kSingles` elements along the other direction, so that
// its addresses are one cursor and a step.
template <bool KMajor, int Threads = kThreads>
struct Loader {
  static constexpr int kCopies = kTile * kDepth / 4 / Threads, kSingles = kTile * kDepth / Threads;
  // From one copy of a thread to its next, in rows (KMajor) or steps of k.
  static constexpr int kApart = Threads / (KMajor ? kDepth / 4 : kTile / 4);
  static constexpr int kSinglesApart = Threads / (KMajor ? kDepth : kTile);

  const float* cursor;         // this thread's first place at the next k
  int64_t across, along;       // strides between its places, and to the next stage
  int place, row, step, rows;  // in the stage; of its first place; how many of the 64 rows exist
  bool vectors;

  SIMT_DEVICE Loader(const Source<float>& view, int64_t first_row, int64_t all_rows, int64_t k_begin, bool aligned)
      : vectors(aligned) {
    const int t = simt::thread();
    rows = all_rows - first_row < kTile ? static_cast<int>(all_rows - first_row) : kTile;
    if (vectors) {
      row = KMajor ? t / 4 : t % 16 * 4;
      step = KMajor ? t % 4 * 4 : t / 16;
    } else {
      row = KMajor ? t / 16 : t % 64;
      step = KMajor ? t % 16 : t / 64;
    }
    across = (vectors ? kApart : kSinglesApart) * (KMajor ? view.rs : view.cs);
    place = KMajor ? row * kRowPitch + step : step * kColumnPitch + row;
    cursor = view.p + (first_row + row) * view.rs + (k_begin + step) * view.cs;
    along = kDepth * view.cs;
  }

  // left: the number of k that remain.
  SIMT_DEVICE void load(float* stage, int left) {
    constexpr int kPitch = KMajor ? kRowPitch : kColumnPitch;
    if (vectors) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const int outer = r * kApart;
        const int bytes = KMajor ? (row + outer < rows ? clamp_bytes(left - step) : 0)
                                 : (step + outer < left ? clamp_bytes(rows - row) : 0);
        simt::copy_async<16>(stage + place + outer * kPitch, bytes ? cursor + r * across : cursor, bytes);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kSingles; ++r) {
        const int outer = r * kSinglesApart;
        const bool exists = KMajor ? row + outer < rows && step < left : row < rows && step + outer < left;
        simt::copy_async<4>(stage + place + outer * kPitch, cursor + r * across, exists ? 4 : 0);
      }
    }
    cursor += along;
  }
};

// Loads an operand of 16-bit floats: into registers, and widened when stored to the stage, which holds floats. Call
// fetch() before a product and store() after it, so that the loads overlap with the product.
template <bool KMajor>
struct NarrowLoader {
  const uint16_t* cursor;
  int64_t across, along, inner;  // inner: between a place's elements
  int place, row, step, rows;
  bool vectors, half;
  simt::Vector<uint16_t, 4> held[2];

  SIMT_DEVICE NarrowLoader(const Source<float>& view, int64_t first_row, int64_t all_rows, int64_t k_begin,
                           bool aligned)
      : vectors(aligned), half(view.element == Element::f16) {
    const int t = simt::thread();
    rows = all_rows - first_row < kTile ? static_cast<int>(all_rows - first_row) : kTile;
    if (vectors) {
      row = KMajor ? t / 4 : t % 16 * 4;
      step = KMajor ? t % 4 * 4 : t / 16;
      across = KMajor ? 32 * view.rs : 8 * view.cs;
    } else {
      row = KMajor ? t / 16 : t % 64;
      step = KMajor ? t % 16 : t / 64;
      across = KMajor ? 8 * view.rs : 2 * view.cs;
    }
    place = KMajor ? row * kRowPitch + step : step * kColumnPitch + row;
    cursor = reinterpret_cast<const uint16_t*>(view.p) + (first_row + row) * view.rs + (k_begin + step) * view.cs;
    along = kDepth * view.cs;
    inner = KMajor ? view.cs : view.rs;
  }

  SIMT_DEVICE void fetch(int left) {
    if (vectors) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int outer = KMajor ? 32 * r : 8 * r;
        const int exist = KMajor ? (row + outer < rows ? left - step : 0) : (step + outer < left ? rows - row : 0);
        if (exist >= 4) {
          held[r] = simt::load_vector<4>(cursor + r * across);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            held[r].v[e] = simt::load_if(e < exist, cursor + r * across + e * inner, uint16_t(0));
        }
      }
    } else {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int outer = KMajor ? 8 * r : 2 * r;
        const bool exists = KMajor ? row + outer < rows && step < left : row < rows && step + outer < left;
        held[r / 4].v[r % 4] = simt::load_if(exists, cursor + r * across, uint16_t(0));
      }
    }
    cursor += along;
  }

  SIMT_DEVICE void store(float* stage) const {
    constexpr int kPitch = KMajor ? kRowPitch : kColumnPitch;
    if (vectors) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        simt::Vector<float, 4> wide;
#pragma unroll
        for (int e = 0; e < 4; ++e) wide.v[e] = simt::widen(held[r].v[e], half);
        simt::put_vector<4>(stage + place + (KMajor ? 32 * r : 8 * r) * kPitch, wide);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 8; ++r)
        simt::put(stage + place + (KMajor ? 8 * r : 2 * r) * kPitch, simt::widen(held[r / 4].v[r % 4], half));
    }
  }
};

// The loader of either type, with one interface.
template <bool KMajor, bool Narrow>
struct AnyLoader;
template <bool KMajor>
struct AnyLoader<KMajor, false> : Loader<KMajor> {
  using Loader<KMajor>::Loader;
  SIMT_DEVICE void fetch(int) {}
  SIMT_DEVICE void store(float*) const {}
};
template <bool KMajor>
struct AnyLoader<KMajor, true> : NarrowLoader<KMajor> {
  using NarrowLoader<KMajor>::NarrowLoader;
  SIMT_DEVICE void load(float*, int) {}
};

// The offset of (row, k) from the first of several stages.
template <bool KMajor>
SIMT_DEVICE int place_of(int row, int k) {
  return k / kDepth * kStage + (KMajor ? row * kRowPitch + k % kDepth : k % kDepth * kColumnPitch + row);
}

template <bool KMajor>
SIMT_DEVICE float element(const float* stage, int row, int k) {
  return simt::get(stage + (KMajor ? row * kRowPitch + k : k * kColumnPitch + row));
}

// Splits x = big + small. The tensor core truncates the small part to TF32; rounding it would not change the error.
SIMT_DEVICE void split(float x, uint32_t& big, uint32_t& small) {
  big = simt::to_tf32(x);
  small = simt::to_bits(x - simt::from_bits(big));
}

// sums += the product of one warp and stage, 16 x RowTiles rows by 32 columns. Exact: the operand is a TF32 number and
// has no small part.
template <bool AMajor, bool BMajor, bool AExact = false, bool BExact = false, int RowTiles>
SIMT_DEVICE void multiply(const float* a_stage, const float* b_stage, int row, int column,
                          float (&sums)[RowTiles][4][4]) {
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float fresh[RowTiles][4][4] = {};
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    uint32_t a_big[RowTiles][4], a_small[RowTiles][4], b_big[4][2], b_small[4][2];
#pragma unroll
    for (int i = 0; i < RowTiles; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        split(element<AMajor>(a_stage, row + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4), a_big[i][e], a_small[i][e]);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        split(element<BMajor>(b_stage, column + j * 8 + g, k + t + e * 4), b_big[j][e], b_small[j][e]);
    if constexpr (!AExact) {
#pragma unroll
      for (int i = 0; i < RowTiles; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_small[i], b_big[j]);
    }
    if constexpr (!BExact) {
#pragma unroll
      for (int i = 0; i < RowTiles; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big[i], b_small[j]);
    }
#pragma unroll
    for (int i = 0; i < RowTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big[i], b_big[j]);
  }
#pragma unroll
  for (int i = 0; i < RowTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[i][j][e];
}

}  // namespace ssdd::cuda::tensor

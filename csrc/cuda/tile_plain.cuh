// Operands of a tile of 64 x 64 in shared memory and their product on the ordinary units; see product_plain.cu.
#pragma once
#include "product.cuh"

namespace ssdd::cuda::plain {

constexpr int kThreads = 256;
constexpr int kStages = 3;
// 16 bytes of padding: rows stay aligned for vectors, and a copy along k has bank conflicts of at most two ways.
template <class T>
constexpr int kPitch = kTile + 16 / sizeof(T);
template <class T>
constexpr int kStage = kDepth * kPitch<T>;
template <class T>
constexpr int kSharedBytes = 2 * kStages * kStage<T> * static_cast<int>(sizeof(T));

// Loads [64 rows] x [16 k] of one operand into a stage. Each call starts the copies of the next 16 k.
template <class T>
class Loader {
 public:
  // view: [all_rows, k]
  SIMT_DEVICE Loader(const Source<T>& view, int64_t first_row, int64_t all_rows, int64_t k_begin)
      : x(view), along_k(view.cs == 1 || view.rs != 1) {
    const int t = simt::thread();
    rows = all_rows - first_row < kTile ? static_cast<int>(all_rows - first_row) : kTile;
    row = along_k ? t / 16 : t % 64;
    step = along_k ? t % 16 : t / 64;
    across = along_k ? 16 * x.rs : 4 * x.cs;
    offset = (first_row + row) * x.rs + (k_begin + step) * x.cs;
  }

  // left: the number of k that remain.
  SIMT_DEVICE void load(T* stage, int left) {
    T* const to = stage + step * kPitch<T> + row;
    const int apart = along_k ? 16 : 4 * kPitch<T>;
    if (x.element == Element::own) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const bool there = exists(r, left);
        simt::copy_async<sizeof(T)>(to + r * apart, there ? x.p + offset + r * across : x.p,
                                    there ? static_cast<int>(sizeof(T)) : 0);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) simt::put(to + r * apart, exists(r, left) ? x.at(offset + r * across)(0, 0) : T(0));
    }
    offset += kDepth * x.cs;
  }

 private:
  SIMT_DEVICE bool exists(int r, int left) const {
    return along_k ? row + 16 * r < rows && step < left : row < rows && step + 4 * r < left;
  }

  Source<T> x;
  int64_t offset, across;  // this thread's first element of the next stage; stride between its four elements
  int row, step, rows;
  bool along_k;
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

// The terms of a product (Inner in product.cuh). add: returns the sum with the term of x = a(i, k) and z = b(k, j).
// from_own: `own` is from(i, j). unroll: steps of k without a branch, as many as the size of the kernel allows. maps: the
// sum may be the argument of an exponential.
template <bool FromOwn, int Unroll, bool Maps = false>
struct Terms {
  static constexpr bool from_own = FromOwn, maps = Maps;
  static constexpr int unroll = Unroll;
};
struct Dot : Terms<false, kDepth> {
  template <class T>
  static SIMT_DEVICE T add(T sum, T x, T z, T) {
    return simt::fma(x, z, sum);
  }
};
struct Distance : Terms<false, kDepth, true> {
  template <class T>
  static SIMT_DEVICE T add(T sum, T x, T z, T) {
    const T apart = x - z;
    return simt::fma(apart, apart, sum);
  }
};
struct Absolute : Terms<false, kDepth> {
  template <class T>
  static SIMT_DEVICE T add(T sum, T x, T z, T) {
    return sum + simt::absolute(x - z);
  }
};
struct Difference : Terms<true, kDepth> {
  template <class T>
  static SIMT_DEVICE T add(T sum, T x, T z, T own) {
    return simt::fma(x, z - own, sum);
  }
};
struct Sign : Terms<true, 4> {
  template <class T>
  static SIMT_DEVICE T add(T sum, T x, T z, T own) {
    return simt::fma(x, simt::sign(z - own), sum);
  }
};

// sums += the terms of one thread's 4 x 4 elements and one stage. own: this thread's elements of `from`.
template <class Of, class T>
SIMT_DEVICE void multiply(const T* a_stage, const T* b_stage, int row, int column, const T (&own)[4][4],
                          T (&sums)[4][4]) {
  T fresh[4][4] = {};
#pragma unroll Of::unroll
  for (int step = 0; step < kDepth; ++step) {
    T x[4], z[4];
    four(a_stage + step * kPitch<T> + row, x);
    four(b_stage + step * kPitch<T> + column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) fresh[i][j] = Of::add(fresh[i][j], x[i], z[j], own[i][j]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] += fresh[i][j];
}

// Loads this thread's elements of `from` through the stages, so that neighbouring threads read neighbours.
template <class T>
SIMT_DEVICE void load_own(const Product<T>& p, const Part& part, T* stages, T (&own)[4][4]) {
  static_assert(kTile * kTile <= 2 * kStages * kStage<T>, "it fits there");
  const Source<T> from = p.from[part.b];
  const int row = simt::thread() / 16 * 4, column = simt::thread() % 16 * 4;
  for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
    const int64_t r = part.row + e / kTile, c = part.column + e % kTile;
    simt::put(stages + e, r < p.m && c < p.n ? from(r, c) : T(0));
  }
  simt::barrier();
#pragma unroll
  for (int i = 0; i < 4; ++i) four(stages + (row + i) * kTile + column, own[i]);
  simt::barrier();
}

// Sums this thread's 4 x 4 elements over the part's k.
template <class Of, class T>
SIMT_DEVICE void sum_tile(const Product<T>& p, const Part& part, T* stages, const T (&own)[4][4], T (&sums)[4][4]) {
  T *const a_stages = stages, *const b_stages = stages + kStages * kStage<T>;
  Loader<T> a(p.a[part.b], part.row, p.m, part.k_begin), b(p.b[part.b].t(), part.column, p.n, part.k_begin);
  const int row = simt::thread() / 16 * 4, column = simt::thread() % 16 * 4;
  // Each iteration fills a stage and, once all others are full, multiplies the oldest one.
  int left = static_cast<int>(part.k_end - part.k_begin), ahead = left;  // k to multiply, k to load
  int slot = 0, fill = 0;
#pragma unroll 1
  for (int turn = 1 - kStages; left > 0; ++turn) {
    if (turn >= 0) {
      simt::copy_wait<kStages - 2>();
      simt::barrier();
    }
    if (ahead > 0) {
      a.load(a_stages + fill, ahead);
      b.load(b_stages + fill, ahead);
    }
    simt::copy_commit();
    ahead -= kDepth;
    fill = fill + kStage<T> == kStages * kStage<T> ? 0 : fill + kStage<T>;
    if (turn < 0) continue;
    multiply<Of>(a_stages + slot, b_stages + slot, row, column, own, sums);
    left -= kDepth;
    slot = slot + kStage<T> == kStages * kStage<T> ? 0 : slot + kStage<T>;
  }
}

// Puts the sums into the stages, all of which have been read, as a tile [row][column].
template <class T>
SIMT_DEVICE void put_tile(const T (&sums)[4][4], T* tile) {
  static_assert(kTile * kPitch<T> <= 2 * kStages * kStage<T>, "the tile fits the stages");
  constexpr int kWide = 16 / sizeof(T);
  const int row = simt::thread() / 16 * 4, column = simt::thread() % 16 * 4;
  simt::barrier();
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; j += kWide) {
      simt::Vector<T, kWide> v;
#pragma unroll
      for (int e = 0; e < kWide; ++e) v.v[e] = sums[i][j + e];
      simt::put_vector<kWide>(tile + (row + i) * kPitch<T> + column + j, v);
    }
}

}  // namespace ssdd::cuda::plain

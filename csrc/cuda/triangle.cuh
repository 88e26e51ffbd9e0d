// Cholesky and triangular solves of one block of threads on a matrix in shared memory, in panels of 16 columns.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

constexpr int kBlockThreads = 256, kStrip = 16;

// Row pitch: odd, so that 32 rows of one column fall into 32 banks, and such that neither the 8 x 4 elements that a warp
// updates nor 32 of the diagonal meet in a bank more than twice.
constexpr int shared_pitch(int n) {
  int pitch = n;
  for (;; ++pitch) {
    const int r = pitch % 32;
    if (r == 5 || r == 13 || r == 29) return pitch;
  }
}

// Factors the Size x Size (at most) diagonal block at `a` in one warp, lane i holding column i; inverse[i] = 1 / L(i, i).
// Returns the 1-based pivot that failed, or 0, to all lanes.
template <int Size, class T>
SIMT_DEVICE int factor_columns(T (&column)[Size], int size, T& inverse) {
  const int lane = simt::lane();
  int failed = 0;
  inverse = T(1);
#pragma unroll
  for (int k = 0; k < Size; ++k) {
    if (k >= size) break;
    const T pivot = simt::shuffle(column[k], k);
    if (failed == 0 && !(pivot > T(0) && simt::finite(pivot))) failed = k + 1;
    const T root = simt::square_root(pivot), over = T(1) / root;
    if (lane == k) {
      column[k] = root;
      inverse = over;
    }
    T mine = 0;  // L(lane, k), which a lane meets on its way down the column
#pragma unroll
    for (int j = k + 1; j < Size; ++j) {
      const T value = simt::shuffle(column[j], k) * over;
      if (lane == j) mine = value;
      column[j] = lane == k ? value : simt::fma(-value, mine, column[j]);
    }
  }
  return failed;
}

// a [n, n] with row pitch `pitch`: L on and below the diagonal; inverse [n]. *failed: the pivot, shared by the block, 0 before.
template <int Threads = kBlockThreads, class T>
SIMT_DEVICE void factor_shared(T* a, int pitch, int n, T* inverse, int* failed) {
  const int lane = simt::lane();
  for (int p = 0; p < n; p += kStrip) {
    const int size = n - p < kStrip ? n - p : kStrip, below = p + size;
    if (simt::warp() == 0) {
      T column[kStrip], over;
#pragma unroll
      for (int j = 0; j < kStrip; ++j)
        column[j] = simt::get_if(j < size && lane <= j, a + (p + j) * pitch + p + lane, T(0));
      const int bad = factor_columns<kStrip>(column, size, over);
#pragma unroll
      for (int j = 0; j < kStrip; ++j)
        simt::put_if(j < size && lane <= j, a + (p + j) * pitch + p + lane, column[j]);
      if (lane < size) simt::put(inverse + p + lane, over);
      if (bad && lane == 0) *failed = p + bad;
    }
    simt::barrier();
    if (*failed) return;
    // Rows below: x L^T = a, one thread a row.
    for (int i = below + simt::thread(); i < n; i += Threads) {
      T x[kStrip];
#pragma unroll
      for (int k = 0; k < kStrip; ++k) {
        T sum = simt::get(a + i * pitch + p + k);
#pragma unroll
        for (int m = 0; m < k; ++m) sum = simt::fma(-x[m], simt::get(a + (p + k) * pitch + p + m), sum);
        x[k] = sum * simt::get(inverse + p + k);
      }
#pragma unroll
      for (int k = 0; k < kStrip; ++k) simt::put(a + i * pitch + p + k, x[k]);
    }
    simt::barrier();
    // What is left of the triangle, in squares of 32 x 32, one a warp: lanes 8 x 4, each 4 x 8 elements.
    const int squares = (n - below + 31) / 32, li = lane % 8, lj = lane / 8;
    int si = 0, sj = simt::warp();
    for (;;) {
      while (sj > si && si < squares) sj -= ++si;
      if (si >= squares) break;
      const int i0 = below + si * 32 + li, j0 = below + sj * 32 + lj;
      T sums[4][8] = {};
#pragma unroll 4  // more would hold loads of all 16 steps in registers
      for (int k = 0; k < kStrip; ++k) {
        T x[4], z[8];
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r] = simt::get(a + (i0 + 8 * r < n ? i0 + 8 * r : n - 1) * pitch + p + k);
#pragma unroll
        for (int r = 0; r < 8; ++r) z[r] = simt::get(a + (j0 + 4 * r < n ? j0 + 4 * r : n - 1) * pitch + p + k);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int e = 0; e < 8; ++e) sums[r][e] = simt::fma(x[r], z[e], sums[r][e]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int i = i0 + 8 * r, j = j0 + 4 * e;
          const bool inside = i < n && j <= i;
          T* element = a + (inside ? i * pitch + j : 0);
          simt::put_if(inside, element, *element - sums[r][e]);
        }
      sj += Threads / 32;
    }
    simt::barrier();
  }
}

// One step of invert_shared: from the inverses of the blocks of `Size` on the diagonal those of blocks twice as large,
// inverse(21) = -inverse(22) (l(21) inverse(11)). A thread makes 4 rows of Size / 16 columns. What is between the two products
// stands above the diagonal, then zeros.
template <int Size, class T>
SIMT_DEVICE void join_inverses(const T* l, int pitch, T* out, int wide) {
  constexpr int kWide = Size / 16, kEach = 4 * Size;  // threads a pair of blocks
  const int t = simt::thread(), p = t / kEach * 2 * Size, i = t % kEach / 16 * 4, j = t % 16;
  for (int product = 0; product < 2; ++product) {
    const int left_pitch = product == 0 ? pitch : wide;
    const T* left = product == 0 ? l + (p + Size + i) * pitch + p : out + (p + Size + i) * wide + p + Size;
    const T* right = product == 0 ? out + p * wide + p + j : out + p * wide + p + Size + j;
    T* to = product == 0 ? out + (p + i) * wide + p + Size + j : out + (p + Size + i) * wide + p + j;
    if (p < 64) {
      T sums[4][kWide] = {};
#pragma unroll 4
      for (int m = 0; m < Size; ++m) {
        T x[4], z[kWide];
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r] = simt::get(left + r * left_pitch + m);
#pragma unroll
        for (int e = 0; e < kWide; ++e) z[e] = simt::get(right + m * wide + 16 * e);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int e = 0; e < kWide; ++e) sums[r][e] = simt::fma(x[r], z[e], sums[r][e]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int e = 0; e < kWide; ++e) simt::put(to + r * wide + 16 * e, product == 0 ? sums[r][e] : -sums[r][e]);
    }
    simt::barrier();
  }
  if (p < 64) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int e = 0; e < kWide; ++e) simt::put(out + (p + i + r) * wide + p + Size + j + 16 * e, T(0));
  }
  simt::barrier();
}

// out (row pitch `wide`) <- the inverse of the lower triangle of l, zeros above it; both 64 x 64, inverse[i] = 1 / l(i, i).
// At least 128 threads.
template <int Threads, class T>
SIMT_DEVICE void invert_shared(const T* l, int pitch, const T* inverse, T* out, int wide) {
  static_assert(Threads >= 128, "a thread for 4 rows of each column");
  // Blocks of 16 on the diagonal, a thread a column.
  if (simt::thread() < 64) {
    const int p = simt::thread() / kStrip * kStrip, c = simt::thread() % kStrip;
    T x[kStrip];
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      T sum = k == c ? T(1) : T(0);
#pragma unroll
      for (int m = 0; m < k; ++m) sum = simt::fma(-simt::get(l + (p + k) * pitch + p + m), x[m], sum);
      x[k] = sum * simt::get(inverse + p + k);
      simt::put(out + (p + k) * wide + p + c, x[k]);
    }
  }
  simt::barrier();
  join_inverses<16>(l, pitch, out, wide);
  join_inverses<32>(l, pitch, out, wide);
}

// Columns of x, element (i, c) at x[i * row_stride + c * column_stride], in shared or global memory.
template <class T>
struct Columns {
  T* x;
  int64_t row_stride, column_stride;
  int count;
  SIMT_DEVICE T& operator()(int i, int c) const { return x[i * row_stride + c * column_stride]; }
};

// x <- L^-1 x (Transposed: L^-T x) for L [n, n] in shared memory.
template <bool Transposed, class T>
SIMT_DEVICE void substitute(const T* l, int pitch, int n, const T* inverse, const Columns<T>& x) {
  const int strips = (n + kStrip - 1) / kStrip;
  for (int s = 0; s < strips; ++s) {
    const int p = (Transposed ? strips - 1 - s : s) * kStrip, size = n - p < kStrip ? n - p : kStrip;
    for (int c = simt::thread(); c < x.count; c += kBlockThreads) {
      T v[kStrip];
#pragma unroll
      for (int k = 0; k < kStrip; ++k) v[k] = k < size ? x(p + k, c) : T(0);
#pragma unroll
      for (int step = 0; step < kStrip; ++step) {
        const int k = Transposed ? kStrip - 1 - step : step;
        if (k >= size) continue;
        T sum = v[k];
#pragma unroll
        for (int m = 0; m < kStrip; ++m) {
          if (Transposed ? m <= k || m >= size : m >= k) continue;
          sum = simt::fma(-v[m], simt::get(Transposed ? l + (p + m) * pitch + p + k : l + (p + k) * pitch + p + m), sum);
        }
        v[k] = sum * simt::get(inverse + p + k);
      }
#pragma unroll
      for (int k = 0; k < kStrip; ++k)
        if (k < size) x(p + k, c) = v[k];
    }
    simt::barrier();
    const int first = Transposed ? 0 : p + size, rows = Transposed ? p : n - p - size;
    for (int e = simt::thread(); e < rows * x.count; e += kBlockThreads) {
      const int i = first + e / x.count, c = e % x.count;
      T sum = x(i, c);
#pragma unroll
      for (int k = 0; k < kStrip; ++k)
        if (k < size) sum = simt::fma(-simt::get(Transposed ? l + (p + k) * pitch + i : l + i * pitch + p + k), x(p + k, c), sum);
      x(i, c) = sum;
    }
    simt::barrier();
  }
}

}  // namespace ssdd::cuda

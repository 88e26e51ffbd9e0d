// The innermost loops of products with few rows or few columns. They read their long operand once, in place, since
// packing would cost as much as the arithmetic. Included by micro_tile.h; the same rules hold.
#pragma once
#include "micro_vector.h"

namespace ssdd::cpu {
namespace {

// Sums the lanes by halves, in registers.
template <class T, int Bytes>
inline T sum_lanes(typename VectorOf<T, Bytes>::type x) {
  constexpr int lanes = Bytes / sizeof(T);
  if constexpr (lanes == 2) {
    return x[0] + x[1];
  } else {
    typename VectorOf<T, Bytes / 2>::type low, high;
    if constexpr (lanes == 4) {
      low = __builtin_shufflevector(x, x, 0, 1);
      high = __builtin_shufflevector(x, x, 2, 3);
    } else if constexpr (lanes == 8) {
      low = __builtin_shufflevector(x, x, 0, 1, 2, 3);
      high = __builtin_shufflevector(x, x, 4, 5, 6, 7);
    } else {
      low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
      high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    return sum_lanes<T, Bytes / 2>(low + high);
  }
}

template <class T, int Bytes, int Rows, int Columns>
inline void dots_tile(int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T);
  V acc[Rows][Columns];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) acc[i][j] = V{};
  int k = 0;
  for (; k + lanes <= kc; k += lanes) {
    V bv[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) bv[j] = *reinterpret_cast<const L*>(b + j * bs + k);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const V av = *reinterpret_cast<const L*>(a + i * as + k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) acc[i][j] += av * bv[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      T sum = sum_lanes<T, Bytes>(acc[i][j]);
      for (int rest = k; rest < kc; ++rest) sum += a[i * as + rest] * b[j * bs + rest];
      T& c = out[i * ld + j];
      c = beta == T(0) ? alpha * sum : beta * c + alpha * sum;
    }
}

template <class T, int Bytes, int Rows>
inline void dots_rows(int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha,
                      T beta) {
  int j = 0;
  for (; n - j > 4 || n - j == 3;
       j += 3)  // 4 are 2 + 2: a single column would not hide the latency of the multiply-adds
    dots_tile<T, Bytes, Rows, 3>(kc, a, as, b + j * bs, bs, out + j, ld, alpha, beta);
  for (; n - j >= 2; j += 2) dots_tile<T, Bytes, Rows, 2>(kc, a, as, b + j * bs, bs, out + j, ld, alpha, beta);
  if (j < n) dots_tile<T, Bytes, Rows, 1>(kc, a, as, b + j * bs, bs, out + j, ld, alpha, beta);
}

template <class T, int Bytes>
void dots(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha, T beta) {
  int i = 0;
  for (; i + 4 <= m; i += 4) dots_rows<T, Bytes, 4>(n, kc, a + i * as, as, b, bs, out + i * ld, ld, alpha, beta);
  if (m - i >= 2) {
    dots_rows<T, Bytes, 2>(n, kc, a + i * as, as, b, bs, out + i * ld, ld, alpha, beta);
    i += 2;
  }
  if (i < m) dots_rows<T, Bytes, 1>(n, kc, a + i * as, as, b, bs, out + i * ld, ld, alpha, beta);
}

// Processes Depth rows of b at once, so that c is loaded and stored once per Depth multiply-adds.
template <class T, int Bytes, int Depth>
inline void stream_rows(int m, int n, const T* a, const T* b, int64_t bs, T* c, int64_t ld) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T);
  int j = 0;
  for (; j + 2 * lanes <= n; j += 2 * lanes) {
    V b0[Depth], b1[Depth];
#pragma GCC unroll 8
    for (int k = 0; k < Depth; ++k) {
      b0[k] = *reinterpret_cast<const L*>(b + k * bs + j);
      b1[k] = *reinterpret_cast<const L*>(b + k * bs + j + lanes);
      __builtin_prefetch(b + (k + Depth) * bs + j);
    }
    for (int i = 0; i < m; ++i) {
      L* out = reinterpret_cast<L*>(c + i * ld + j);
      V c0 = out[0], c1 = out[1];
#pragma GCC unroll 8
      for (int k = 0; k < Depth; ++k) {
        const T s = a[k * m + i];
        c0 += b0[k] * s;
        c1 += b1[k] * s;
      }
      out[0] = c0;
      out[1] = c1;
    }
  }
  for (; j < n; ++j)
    for (int i = 0; i < m; ++i) {
      T sum = T(0);
      for (int k = 0; k < Depth; ++k) sum += a[k * m + i] * b[k * bs + j];
      c[i * ld + j] += sum;
    }
}

template <class T, int Bytes>
void stream(int m, int n, int kc, const T* a, const T* b, int64_t bs, T* c, int64_t ld) {
  int k = 0;
  for (; k + 6 <= kc; k += 6) stream_rows<T, Bytes, 6>(m, n, a + k * m, b + k * bs, bs, c, ld);
  if (kc - k >= 4) {
    stream_rows<T, Bytes, 4>(m, n, a + k * m, b + k * bs, bs, c, ld);
    k += 4;
  }
  if (kc - k >= 2) {
    stream_rows<T, Bytes, 2>(m, n, a + k * m, b + k * bs, bs, c, ld);
    k += 2;
  }
  if (k < kc) stream_rows<T, Bytes, 1>(m, n, a + k * m, b + k * bs, bs, c, ld);
}

}  // namespace
}  // namespace ssdd::cpu

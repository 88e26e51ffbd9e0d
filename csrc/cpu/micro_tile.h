// One register tile of a product, written once with the compiler's vector extension and instantiated for one vector
// width by each micro_*.cpp. Everything is in an unnamed namespace, and nothing of the standard library is used:
// a function compiled for AVX must never be merged by the linker with its namesake in portable code.
//
// A tile is 4 rows by up to 3 vectors (AVX-512: 8 rows): 12 (24) accumulators, 3 vectors of B, one broadcast of A;
// per k it loads 3 vectors and 4 (8) scalars for 12 (24) multiply-adds.
#pragma once
#include "micro.h"

namespace ssdd::cpu {
namespace {

template <class T, int Bytes>
struct VectorOf;
template <int Bytes>
struct VectorOf<float, Bytes> {
  typedef float type __attribute__((vector_size(Bytes)));
  typedef float loose __attribute__((vector_size(Bytes), aligned(4), may_alias));
};
template <int Bytes>
struct VectorOf<double, Bytes> {
  typedef double type __attribute__((vector_size(Bytes)));
  typedef double loose __attribute__((vector_size(Bytes), aligned(8), may_alias));
};

// Terms that one register sums before it is added to a total: the error of a long sum grows with the length of its
// runs. Squared differences are all of one sign and drift, so theirs are short.
template <Inner F>
constexpr int kRun = F == Inner::dot ? 128 : 16;

template <class T, int Bytes, int Mr, Inner F, int Panels, int Vectors>
inline void tile(int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b, T* out, int64_t ld,
                 T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T), width = lanes * Vectors, rows = Mr * Panels;
  // The output is needed only at the end, and then at once: its lines are asked for now.
  if (beta != T(0))
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      __builtin_prefetch(out + i * ld, 1, 3);
      if constexpr (width * sizeof(T) > 64) __builtin_prefetch(out + i * ld + width - 1, 1, 3);
    }
  V total[rows][Vectors];
  for (int k0 = 0; k0 < kc; k0 += kRun<F>) {
    V acc[rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[i][v] = V{};
    const int stop = kc - k0 < kRun<F> ? kc - k0 : kRun<F>;
    for (int k = 0; k < stop; ++k) {
      V bv[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) bv[v] = *reinterpret_cast<const L*>(b + v * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const T s = a[(i / Mr) * panel_stride + (i % Mr) * rs];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          if constexpr (F == Inner::dot) {
            acc[i][v] += bv[v] * s;
          } else {
            const V d = bv[v] - s;
            acc[i][v] += d * d;
          }
        }
      }
      a += ks;
      b += width;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[i][v] = k0 == 0 ? acc[i][v] : total[i][v] + acc[i][v];
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      L* c = reinterpret_cast<L*>(out + i * ld + v * lanes);
      if (beta == T(0))
        *c = total[i][v] * alpha;
      else
        *c = *c * beta + total[i][v] * alpha;
    }
}

// Packed A has stride 1 between the rows of a panel; the constants let the compiler fold the addresses.
template <class T, int Bytes, int Mr, Inner F, int Panels, int Vectors>
inline void tile_for(int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b, T* out,
                     int64_t ld, T alpha, T beta) {
  if (rs == 1 && ks == Mr)
    tile<T, Bytes, Mr, F, Panels, Vectors>(kc, a, 1, Mr, panel_stride, b, out, ld, alpha, beta);
  else
    tile<T, Bytes, Mr, F, Panels, Vectors>(kc, a, rs, ks, panel_stride, b, out, ld, alpha, beta);
}

template <class T, int Bytes, int Mr, Inner F>
void run(int panels, int width, int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b, T* out,
         int64_t ld, T alpha, T beta) {
  constexpr int lanes = Bytes / sizeof(T);
  if (width == 3 * lanes)
    tile_for<T, Bytes, Mr, F, 1, 3>(kc, a, rs, ks, panel_stride, b, out, ld, alpha, beta);
  else if (width == 2 * lanes)
    tile_for<T, Bytes, Mr, F, 1, 2>(kc, a, rs, ks, panel_stride, b, out, ld, alpha, beta);
  else if (panels == 2)
    tile_for<T, Bytes, Mr, F, 2, 1>(kc, a, rs, ks, panel_stride, b, out, ld, alpha, beta);
  else
    tile_for<T, Bytes, Mr, F, 1, 1>(kc, a, rs, ks, panel_stride, b, out, ld, alpha, beta);
}

// Transposes 4 source columns at a time through registers; the compiler turns the constant shuffles into unpacks.
template <class T>
inline void transpose4(const T* src, int64_t js, T* dst, int width) {
  typedef typename VectorOf<T, 4 * sizeof(T)>::type Q;
  typedef typename VectorOf<T, 4 * sizeof(T)>::loose QL;
  const Q r0 = *reinterpret_cast<const QL*>(src), r1 = *reinterpret_cast<const QL*>(src + js);
  const Q r2 = *reinterpret_cast<const QL*>(src + 2 * js), r3 = *reinterpret_cast<const QL*>(src + 3 * js);
  const Q a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
  const Q c = __builtin_shufflevector(r0, r1, 2, 6, 3, 7), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  *reinterpret_cast<QL*>(dst) = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  *reinterpret_cast<QL*>(dst + width) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  *reinterpret_cast<QL*>(dst + 2 * width) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  *reinterpret_cast<QL*>(dst + 3 * width) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

template <class T, int Bytes>
void pack(const T* src, int64_t ks, int64_t js, int kc, int n, int width, T* dst) {
  if (n < width)
    for (int k = 0; k < kc; ++k)
      for (int j = n; j < width; ++j) dst[int64_t(k) * width + j] = T(0);
  if (js == 1 && n == width && n % (Bytes / sizeof(T)) == 0) {
    using L = typename VectorOf<T, Bytes>::loose;
    constexpr int lanes = Bytes / sizeof(T);
    for (int k = 0; k < kc; ++k, src += ks, dst += width)
      for (int j = 0; j < width; j += lanes) *reinterpret_cast<L*>(dst + j) = *reinterpret_cast<const L*>(src + j);
  } else if (js == 1) {
    for (int k = 0; k < kc; ++k) {
      const T* s = src + k * ks;
      T* d = dst + int64_t(k) * width;
      for (int j = 0; j < n; ++j) d[j] = s[j];
    }
  } else if (ks == 1) {
    const int kq = kc & ~3, nq = n & ~3;
    for (int j = 0; j < nq; j += 4)
      for (int k = 0; k < kq; k += 4) transpose4(src + k + j * js, js, dst + int64_t(k) * width + j, width);
    for (int j = 0; j < n; ++j)
      for (int k = j < nq ? kq : 0; k < kc; ++k) dst[int64_t(k) * width + j] = src[k + j * js];
  } else {
    for (int k = 0; k < kc; ++k)
      for (int j = 0; j < n; ++j) dst[int64_t(k) * width + j] = src[k * ks + j * js];
  }
}

template <class T, int Bytes, int Mr>
const Micro<T>* make(const char* name) {
  constexpr int lanes = Bytes / sizeof(T);
  static const Micro<T> table = {name,
                                 Mr,
                                 3 * lanes,
                                 lanes,
                                 &pack<T, Bytes>,
                                 &run<T, Bytes, Mr, Inner::dot>,
                                 &run<T, Bytes, Mr, Inner::distance>};
  return &table;
}

}  // namespace
}  // namespace ssdd::cpu

// One register tile of a product, written once with the compiler's vector extension and instantiated for one vector
// width by each micro_*.cpp. Everything is in an unnamed namespace, and nothing of the standard library is used:
// a function compiled for AVX must never be merged by the linker with its namesake in portable code.
//
// A tile is 4 rows by up to 3 vectors (AVX-512: 8 rows): 12 (24) accumulators, 3 vectors of B, one broadcast of A;
// per k it loads 3 vectors and 4 (8) scalars for 12 (24) multiply-adds.
#pragma once
#include "micro_solve.h"
#include "micro_thin.h"

namespace ssdd::cpu {
namespace {

// The number of terms that one register sums before it is added to a total: the error of a long sum grows with the
// length of its runs. Squared differences all have one sign, and their error accumulates, so their runs are short.
template <Inner F>
constexpr int kRun = F == Inner::dot                                ? 128
                     : F == Inner::distance || F == Inner::absolute ? 16
                                                                    : 64;

template <class T, int Bytes, int Mr, Inner F, int Panels, int Vectors>
inline void tile(int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b, T* out, int64_t ld,
                 T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T), width = lanes * Vectors, rows = Mr * Panels;
  // The output is needed only at the end, and then all at once: prefetch its lines now.
  if (beta != T(0))
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      __builtin_prefetch(out + i * ld, 1, 3);
      if constexpr (width * sizeof(T) > 64) __builtin_prefetch(out + i * ld + width - 1, 1, 3);
    }
  // This is no lambda: its captures would live in memory, and the loop would reload its own pointers.
  V total[rows][Vectors] = {};
  for (int k0 = 0; k0 < kc; k0 += kRun<F>) {
    V acc[rows][Vectors] = {};
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
          } else if constexpr (F == Inner::absolute) {
            acc[i][v] += absolute_of<T, Bytes>(bv[v] - s);
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
      for (int v = 0; v < Vectors; ++v) total[i][v] += acc[i][v];
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
inline void tile_for(int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b, T* out, int64_t ld,
                     T alpha, T beta) {
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

// a (b - x), or a sign(b - x), for one packed panel. x is read from L1 for each multiply-add: it needs as many registers
// as the sums.
template <class T, int Bytes, int Mr, Inner F, int Vectors>
inline void difference_tile(int kc, const T* a, const T* b, const T* x, T* out, int64_t ld, T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T), width = lanes * Vectors, run = kRun<Inner::difference>;
  V total[Mr][Vectors] = {};
  for (int k0 = 0; k0 < kc; k0 += run) {
    V acc[Mr][Vectors] = {};
    const int stop = kc - k0 < run ? kc - k0 : run;
    for (int k = 0; k < stop; ++k) {
      V bv[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) bv[v] = *reinterpret_cast<const L*>(b + v * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < Mr; ++i) {
        const T s = a[i];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          const V d = bv[v] - *reinterpret_cast<const L*>(x + i * width + v * lanes);
          if constexpr (F == Inner::sign)
            acc[i][v] += times_sign<T, Bytes>(s, d);
          else
            acc[i][v] += d * s;
        }
      }
      a += Mr;
      b += width;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Mr; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[i][v] += acc[i][v];
  }
#pragma GCC unroll 16
  for (int i = 0; i < Mr; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      L* c = reinterpret_cast<L*>(out + i * ld + v * lanes);
      *c = beta == T(0) ? total[i][v] * alpha : *c * beta + total[i][v] * alpha;
    }
}

template <class T, int Bytes, int Mr, Inner F>
void difference(int width, int kc, const T* a, const T* b, const T* x, T* out, int64_t ld, T alpha, T beta) {
  if (width == 2 * static_cast<int>(Bytes / sizeof(T)))
    difference_tile<T, Bytes, Mr, F, 2>(kc, a, b, x, out, ld, alpha, beta);
  else
    difference_tile<T, Bytes, Mr, F, 1>(kc, a, b, x, out, ld, alpha, beta);
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

// Packs whole panels whose columns are contiguous in memory (js = 1), a few panels at a time: each source row is read
// in one long run, and each panel is written as one stream.
template <class T>
inline void pack_rows(const T* src, int64_t ks, int kc, int panels, int width, T* dst) {
  typedef typename VectorOf<T, 4 * sizeof(T)>::loose QL;
  // Panels of one depth lie a power of two apart, and so in one set of L1, which holds eight or twelve lines.
  constexpr int kRun = 192, kStreams = 8, kAhead = 4, kLine = 64 / sizeof(T);
  const int most = kRun / width > 1 ? kRun / width : 1, group = most < kStreams ? most : kStreams;
  for (int p0 = 0; p0 < panels; p0 += group) {
    const int count = panels - p0 < group ? panels - p0 : group;
    const T* row = src + int64_t(p0) * width;
    T* out = dst + int64_t(p0) * width * kc;
    for (int k = 0; k < kc; ++k, row += ks, out += width) {
      for (int j = 0; j < count * width; j += kLine) __builtin_prefetch(row + kAhead * ks + j);
      for (int p = 0; p < count; ++p)
        for (int j = 0; j < width; j += 4)
          *reinterpret_cast<QL*>(out + int64_t(p) * width * kc + j) = *reinterpret_cast<const QL*>(row + p * width + j);
    }
  }
}

// Packs one whole panel whose columns are runs of k in memory (ks = 1).
template <class T>
inline void pack_transposed(const T* src, int64_t js, int kc, int width, T* dst) {
  constexpr int kLine = 64 / sizeof(T);
  const int kq = kc & ~3;
  for (int j = 0; j < width; j += 4) {
    const T* columns = src + j * js;
    for (int k = 0; k < kq; k += 4) {
      if (k % kLine == 0)
        for (int next = 4; next < 8; ++next) __builtin_prefetch(columns + next * js + k);
      transpose4(columns + k, js, dst + int64_t(k) * width + j, width);
    }
    for (int k = kq; k < kc; ++k)
      for (int i = 0; i < 4; ++i) dst[int64_t(k) * width + j + i] = columns[i * js + k];
  }
}

template <class T>
void pack(const T* src, int64_t ks, int64_t js, int kc, int n, int width, int granule, T* dst) {
  const bool fours = width % 4 == 0;  // false for doubles in vectors of two: three vectors are six columns
  const int whole = fours && (js == 1 || ks == 1) ? n / width : 0;
  if (js == 1)
    pack_rows(src, ks, kc, whole, width, dst);
  else if (ks == 1)
    for (int p = 0; p < whole; ++p)
      pack_transposed(src + int64_t(p) * width * js, js, kc, width, dst + int64_t(p) * width * kc);
  for (int j0 = whole * width; j0 < n; j0 += width) {  // the rest: the last columns, or any strides
    const int columns = n - j0 < width ? n - j0 : width;
    const int padded = columns == width ? width : (columns + granule - 1) / granule * granule;
    T* out = dst + int64_t(j0) * kc;
    for (int k = 0; k < kc; ++k)
      for (int j = 0; j < padded; ++j) out[int64_t(k) * padded + j] = j < columns ? src[k * ks + (j0 + j) * js] : T(0);
  }
}

template <class T, int Bytes, int Mr>
const Micro<T>* make(const char* name) {
  constexpr int lanes = Bytes / sizeof(T);
  static const Micro<T> table = {name,
                                 Mr,
                                 3 * lanes,
                                 lanes,
                                 &pack<T>,
                                 &run<T, Bytes, Mr, Inner::dot>,
                                 &run<T, Bytes, Mr, Inner::distance>,
                                 &run<T, Bytes, Mr, Inner::absolute>,
                                 &difference<T, Bytes, Mr, Inner::difference>,
                                 &difference<T, Bytes, Mr, Inner::sign>,
                                 &dots<T, Bytes>,
                                 &stream<T, Bytes>,
                                 &outer<T, Bytes>,
                                 &solve<T, Bytes>};
  return &table;
}

}  // namespace
}  // namespace ssdd::cpu

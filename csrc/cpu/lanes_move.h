// What lanes.h moves: problems into lanes and back, by transposing blocks of one vector width. In an unnamed namespace, as
// micro_tile.h: every file that includes this is compiled for another instruction set.
#pragma once
#include <utility>

#include "lanes.h"
#include "micro_vector.h"

namespace ssdd::cpu {
namespace {

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T, int Bytes>
struct LaneMoves {
  using V = typename VectorOf<T, Bytes>::type;
  using Loose = typename VectorOf<T, Bytes>::loose;
  typedef typename IntegerOf<T>::type Mask __attribute__((vector_size(Bytes)));
  static constexpr int W = Bytes / static_cast<int>(sizeof(T));
  static constexpr int R = static_cast<int>(kLaneRows);

  static V read(const T* p) { return *reinterpret_cast<const Loose*>(p); }
  static void write(T* p, V v) { *reinterpret_cast<Loose*>(p) = v; }
  static V& at(T* p, int64_t e) { return reinterpret_cast<V*>(p)[e]; }
  static const V& at(const T* p, int64_t e) { return reinterpret_cast<const V*>(p)[e]; }

  // --- transposition of W vectors of W elements ------------------------------------------------------------------------

#ifdef __clang__
#define SSDD_SHUFFLE(name, expression)                             \
  template <int... I>                                              \
  static V name##_of(V a, V b, std::integer_sequence<int, I...>) { \
    return __builtin_shufflevector(a, b, (expression)...);         \
  }                                                                \
  static V name(V a, V b) { return name##_of(a, b, std::make_integer_sequence<int, W>()); }
#else
#define SSDD_SHUFFLE(name, expression)                             \
  template <int... I>                                              \
  static V name##_of(V a, V b, std::integer_sequence<int, I...>) { \
    return __builtin_shuffle(a, b, Mask{(expression)...});         \
  }                                                                \
  static V name(V a, V b) { return name##_of(a, b, std::make_integer_sequence<int, W>()); }
#endif
  // Within 128 bits: elements, then pairs, of a and b in turn.
  SSDD_SHUFFLE(low, W == 2 || sizeof(T) == 8 ? (I & 1) * W + (I & ~1) : (I & 1) * W + (I & ~3) + ((I >> 1) & 1))
  SSDD_SHUFFLE(high, W == 2 || sizeof(T) == 8 ? (I & 1) * W + (I | 1) : (I & 1) * W + (I & ~3) + 2 + ((I >> 1) & 1))
  SSDD_SHUFFLE(low_pair, (I & 2) / 2 * W + (I & ~3) + (I & 1))
  SSDD_SHUFFLE(high_pair, (I & 2) / 2 * W + (I & ~3) + 2 + (I & 1))
  // Blocks of 128, then of 256 bits, of a and b in turn.
  static constexpr int kBlock = 16 / static_cast<int>(sizeof(T));
  SSDD_SHUFFLE(low_block, (I & kBlock) == 0 ? I : W + I - kBlock)
  SSDD_SHUFFLE(high_block, (I & kBlock) == 0 ? I + kBlock : W + I)
  SSDD_SHUFFLE(low_half, (I & 2 * kBlock) == 0 ? I : W + I - 2 * kBlock)
  SSDD_SHUFFLE(high_half, (I & 2 * kBlock) == 0 ? I + 2 * kBlock : W + I)
#undef SSDD_SHUFFLE

  static void transpose(V* v) {
    if constexpr (sizeof(T) == 8) {
#pragma GCC unroll 16
      for (int r = 0; r < W; r += 2) {
        const V a = v[r], b = v[r + 1];
        v[r] = low(a, b);
        v[r + 1] = high(a, b);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < W; r += 4) {
        const V a = low(v[r], v[r + 1]), b = high(v[r], v[r + 1]);
        const V c = low(v[r + 2], v[r + 3]), d = high(v[r + 2], v[r + 3]);
        v[r] = low_pair(a, c);
        v[r + 1] = high_pair(a, c);
        v[r + 2] = low_pair(b, d);
        v[r + 3] = high_pair(b, d);
      }
    }
    if constexpr (W > kBlock) {
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        if (r & kBlock) continue;
        const V a = v[r], b = v[r + kBlock];
        v[r] = low_block(a, b);
        v[r + kBlock] = high_block(a, b);
      }
    }
    if constexpr (W > 2 * kBlock) {
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        if (r & 2 * kBlock) continue;
        const V a = v[r], b = v[r + 2 * kBlock];
        v[r] = low_half(a, b);
        v[r + 2 * kBlock] = high_half(a, b);
      }
    }
  }

  static void load_block(const T* const* source, int64_t offset, V* v) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) v[l] = read(source[l] + offset);
    transpose(v);
  }

  static void store_block(V* v, int64_t offset, int count, T* const* target) {
    transpose(v);
    write_lanes(v, offset, count, target);
  }

  // --- loads and stores -------------------------------------------------------------------------------------------------

  // The next vector of problems lies behind this one: while this one is read or written, its lines are prefetched. A
  // problem is a short run of memory, which the hardware's prefetch sees too late.
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  template <class P>
  static int64_t to_next(P const* problem) {
    return 2 * (problem[W / 2] - problem[0]);
  }
  template <class P>
  static void prefetch(P const* problem, int64_t offset) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) __builtin_prefetch(problem[l] + offset);
  }

  // `count` consecutive elements of every problem; the last block overlaps the one before it.
  static void load_run(const T* const* source, int64_t offset, int64_t count, T* out) {
    if (count < W) {
      for (int64_t e = 0; e < count; ++e)
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) out[e * W + l] = source[l][offset + e];
      return;
    }
    V v[W];
    const int64_t next = to_next(source);
    for (int64_t e = 0; e < count; e += W) {
      const int64_t start = least(e, count - W);
      if (e % kLine == 0) prefetch(source, offset + e + next);
      load_block(source, offset + start, v);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) at(out, start + k) = v[k];
    }
  }

  static void store_run(const T* in, int64_t offset, int64_t elements, int count, T* const* target) {
    if (elements < W) {
      for (int64_t e = 0; e < elements; ++e)
        for (int l = 0; l < count; ++l) target[l][offset + e] = in[e * W + l];
      return;
    }
    V v[W];
    const int64_t next = to_next(target);
    for (int64_t e = 0; e < elements; e += W) {
      const int64_t start = least(e, elements - W);
      if (e % kLine == 0) prefetch(target, offset + e + next);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) v[k] = at(in, start + k);
      store_block(v, offset + start, count, target);
    }
  }

  static void load(const T* const* source, int64_t rs, int64_t cs, int64_t rows, int64_t columns, T* out, int64_t ld) {
    if (cs == 1 && rs == columns && ld == columns) return load_run(source, 0, rows * columns, out);
    for (int64_t i = 0; i < rows; ++i) {
      T* row = out + i * ld * W;
      if (cs == 1) {
        load_run(source, i * rs, columns, row);
        continue;
      }
      for (int64_t j = 0; j < columns; ++j)
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) row[j * W + l] = source[l][i * rs + j * cs];
    }
  }

  static void store(const T* in, int64_t rows, int64_t columns, int64_t rs, int count, T* const* target) {
    if (rs == columns) return store_run(in, 0, rows * columns, count, target);
    for (int64_t i = 0; i < rows; ++i) store_run(in + i * columns * W, i * rs, columns, count, target);
  }

  static T* panel(T* panels, int64_t tile) { return panels + 8 * tile * (tile + 1) * W; }
  static const T* panel(const T* panels, int64_t tile) { return panels + 8 * tile * (tile + 1) * W; }
  // Row i: its element k is vector 4 k.
  static T* row_of(T* panels, int64_t i) { return panel(panels, i / R) + i % R * W; }
  static const T* row_of(const T* panels, int64_t i) { return panel(panels, i / R) + i % R * W; }

  static void pad_lower(int64_t n, T* panels) {
    for (int64_t i = n; i < lane_rows(n); ++i) {
      T* row = row_of(panels, i);
      for (int64_t k = 0; k < i; ++k) at(row, R * k) = V{};
      at(row, R * i) = V{} + T(1);
    }
  }

  static void load_lower(const T* const* source, int64_t rs, int64_t cs, int64_t n, bool ahead, T* panels) {
    V v[W];
    const int64_t next = to_next(source);
    for (int64_t i = 0; i < n; ++i) {
      T* row = row_of(panels, i);
      if (cs == 1 && n >= W) {
        for (int64_t j = 0; j <= i; j += W) {
          if (ahead && j % kLine == 0) prefetch(source, i * rs + j + next);
          const int64_t start = least(j, n - W);
          load_block(source, i * rs + start, v);
          const int upto = static_cast<int>(least(W, i + 1 - start));
          for (int k = 0; k < upto; ++k) at(row, R * (start + k)) = v[k];
        }
        continue;
      }
      for (int64_t j = 0; j <= i; ++j)
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) row[j * R * W + l] = source[l][i * rs + j * cs];
    }
    pad_lower(n, panels);
  }

  template <int... I>
  static Mask count_to(std::integer_sequence<int, I...>) {
    return Mask{I...};
  }
  static Mask counting() { return count_to(std::make_integer_sequence<int, W>()); }

  // Columns [start, start + W) of row i of every problem, into v.
  static void lower_window(const T* panels, int64_t i, int64_t start, bool mirrored, V* v) {
    const T* row = row_of(panels, i);
    if (start > i && !mirrored) {
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) v[l] = V{};
      return;
    }
    if (mirrored) {
      for (int k = 0; k < W; ++k)
        v[k] = start + k <= i ? at(row, R * (start + k)) : at(row_of(panels, start + k), R * i);
      return transpose(v);
    }
    // Reads beyond the diagonal, at most W columns behind the last panel, and masks that away.
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) v[k] = at(row, R * (start + k));
    transpose(v);
    if (start + W <= i + 1) return;
    const Mask keep = counting() <= Mask{} + static_cast<typename IntegerOf<T>::type>(i - start);
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) v[l] = (V)((Mask)v[l] & keep);
  }

  static void write_lanes(const V* v, int64_t offset, int count, T* const* target) {
    if (count == W) {
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) write(target[l] + offset, v[l]);
      return;
    }
    for (int l = 0; l < count; ++l) write(target[l] + offset, v[l]);
  }

  static void store_lower(const T* panels, int64_t n, bool mirrored, bool ahead, int count, T* const* target) {
    V v[W];
    if (n < W) {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const T* from = j <= i ? row_of(panels, i) + j * R * W : row_of(panels, j) + i * R * W;
          for (int l = 0; l < count; ++l) target[l][i * n + j] = j <= i || mirrored ? from[l] : T(0);
        }
      return;
    }
    const int64_t next = to_next(target);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; j += W) {
        const int64_t start = least(j, n - W);
        if (ahead && j % kLine == 0) prefetch(target, i * n + j + next);
        lower_window(panels, i, start, mirrored, v);
        write_lanes(v, i * n + start, count, target);
      }
  }
};

}  // namespace
}  // namespace ssdd::cpu

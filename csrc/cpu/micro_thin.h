// The innermost loops of products with few rows or few columns. They read their long operand once, in place, since
// packing would cost as much as the arithmetic. Included by micro_tile.h; the same rules hold.
#pragma once
#include <cstring>
#include <utility>

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

// Adds neighbours: of every group of `Group` elements, units 2 w and 2 w + 1 (of `Unit` elements), first those of a, then
// those of b.
template <class T, int Bytes, int Group, int Unit, int... Lane>
inline auto add_neighbours(typename VectorOf<T, Bytes>::type a, typename VectorOf<T, Bytes>::type b,
                           std::integer_sequence<int, Lane...>) {
  constexpr int lanes = Bytes / sizeof(T), half = Group / Unit / 2;
  constexpr auto from = [](int lane, int second) {
    const int unit = lane % Group / Unit;
    return (unit < half ? 0 : lanes) + lane / Group * Group + (2 * (unit % half) + second) * Unit + lane % Unit;
  };
  return __builtin_shufflevector(a, b, from(Lane, 0)...) + __builtin_shufflevector(a, b, from(Lane, 1)...);
}

// The sums of acc[Rows][Columns]: element j of the 16-byte block r of out[i] is the sum of row i * Blocks + r, column j.
// The rows are combined first, then up to four columns. Columns beyond those that fit a block are left to the caller.
template <class T, int Bytes, int Rows, int Columns>
inline void sums_of_tile(const typename VectorOf<T, Bytes>::type (&acc)[Rows][Columns], int first, int count,
                         typename VectorOf<T, Bytes>::type (&out)[Rows * 16 / Bytes]) {
  using V = typename VectorOf<T, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(T), blocks = Bytes / 16, width = 16 / sizeof(T);
  constexpr auto every = std::make_integer_sequence<int, lanes>();
  for (int i = 0; i < Rows / blocks; ++i) {
    V column[width];
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) {
      const int c = first + (j < count ? j : count - 1);
      const int row = i * blocks;
      if constexpr (blocks == 4)
        column[j] = add_neighbours<T, Bytes, lanes, width>(
            add_neighbours<T, Bytes, lanes, width>(acc[row][c], acc[row + 1][c], every),
            add_neighbours<T, Bytes, lanes, width>(acc[row + 2][c], acc[row + 3][c], every), every);
      else if constexpr (blocks == 2)
        column[j] = add_neighbours<T, Bytes, lanes, width>(acc[row][c], acc[row + 1][c], every);
      else
        column[j] = acc[row][c];
    }
    if constexpr (width == 4)
      out[i] =
          add_neighbours<T, Bytes, width, 1>(add_neighbours<T, Bytes, width, 1>(column[0], column[1], every),
                                             add_neighbours<T, Bytes, width, 1>(column[2], column[3], every), every);
    else
      out[i] = add_neighbours<T, Bytes, width, 1>(column[0], column[1], every);
  }
}

// Rows rows (fewer: the last one is repeated and not stored) by Columns columns. A last vector of k that is not whole is
// read with the elements before it, which are then zeroed. Elements `ahead` of the rows are prefetched.
template <class T, int Bytes, int Rows, int Columns>
inline void dots_tile(int rows, int kc, const T* a, int64_t as, int64_t ahead, const T* b, int64_t bs, T* out,
                      int64_t ld, T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T), blocks = Bytes / 16, width = 16 / sizeof(T);
  const T* row[Rows];
  for (int i = 0; i < Rows; ++i) row[i] = a + (i < rows ? i : rows - 1) * as;
  V acc[Rows][Columns];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < Columns; ++j) acc[i][j] = V{};
  int k = 0;
  for (; k + lanes <= kc; k += lanes) {
    V av[Rows];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      av[i] = *reinterpret_cast<const L*>(row[i] + k);
      __builtin_prefetch(row[i] + ahead + k);
    }
#pragma GCC unroll 6
    for (int j = 0; j < Columns; ++j) {
      const V bv = in_register<V>(*reinterpret_cast<const L*>(b + j * bs + k));
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) acc[i][j] += av[i] * bv;
    }
  }
  if (k < kc) {
    const auto is_new = mask_from<T, Bytes>(k - (kc - lanes));
    k = kc - lanes;
    V av[Rows];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) av[i] = masked<T, Bytes>(*reinterpret_cast<const L*>(row[i] + k), is_new);
#pragma GCC unroll 6
    for (int j = 0; j < Columns; ++j) {
      const V bv = masked<T, Bytes>(*reinterpret_cast<const L*>(b + j * bs + k), is_new);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) acc[i][j] += av[i] * bv;
    }
  }
#pragma GCC unroll 3
  for (int j = 0; j < Columns; j += width) {
    constexpr auto least = [](int x, int y) { return x < y ? x : y; };
    const int count = least(width, Columns - j);
    V sums[Rows / blocks];
    sums_of_tile<T, Bytes, Rows, Columns>(acc, j, count, sums);
    T flat[Rows * width];
    std::memcpy(flat, sums, sizeof(flat));
    for (int i = 0; i < rows; ++i)
      for (int x = 0; x < count; ++x) {
        T& c = out[i * ld + j + x];
        const T sum = flat[i * width + x];
        c = beta == T(0) ? alpha * sum : beta * c + alpha * sum;
      }
  }
}

// Fewer elements than a vector has, or a single sum.
template <class T, int Bytes>
inline void dots_short(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld,
                       T alpha, T beta) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      V even = V{}, odd = V{};
      int k = 0;
      for (; k + 2 * lanes <= kc; k += 2 * lanes) {
        even += *reinterpret_cast<const L*>(a + i * as + k) * *reinterpret_cast<const L*>(b + j * bs + k);
        odd +=
            *reinterpret_cast<const L*>(a + i * as + k + lanes) * *reinterpret_cast<const L*>(b + j * bs + k + lanes);
      }
      for (; k + lanes <= kc; k += lanes)
        even += *reinterpret_cast<const L*>(a + i * as + k) * *reinterpret_cast<const L*>(b + j * bs + k);
      T sum = sum_lanes<T, Bytes>(even + odd);
      for (; k < kc; ++k) sum += a[i * as + k] * b[j * bs + k];
      T& c = out[i * ld + j];
      c = beta == T(0) ? alpha * sum : beta * c + alpha * sum;
    }
}

template <class T, int Bytes, int Rows>
inline void dots_columns(int columns, int rows, int kc, const T* a, int64_t as, int64_t ahead, const T* b, int64_t bs,
                         T* out, int64_t ld, T alpha, T beta) {
  if constexpr (Bytes == 64 || Rows == 2) {
    if (columns == 6) return dots_tile<T, Bytes, Rows, 6>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
    if (columns == 5) return dots_tile<T, Bytes, Rows, 5>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
    if (columns == 4) return dots_tile<T, Bytes, Rows, 4>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
  }
  if (columns == 3) return dots_tile<T, Bytes, Rows, 3>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
  if (columns == 2) return dots_tile<T, Bytes, Rows, 2>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
  dots_tile<T, Bytes, Rows, 1>(rows, kc, a, as, ahead, b, bs, out, ld, alpha, beta);
}

// Tiles of Rows rows by at most Widest columns, all about equally wide.
template <class T, int Bytes, int Rows, int Widest>
inline void dots_rows(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha,
                      T beta) {
  constexpr int64_t kAhead = 8192 / sizeof(T);
  const int64_t step = Rows * as, ahead = step <= 0 ? 0 : step * (1 + kAhead / step);
  for (int i = 0; i < m; i += Rows)
    for (int j = 0, left = (n + Widest - 1) / Widest; left > 0; --left) {
      const int columns = (n - j + left - 1) / left;
      dots_columns<T, Bytes, Rows>(columns, m - i < Rows ? m - i : Rows, kc, a + i * as, as, ahead, b + j * bs, bs,
                                   out + i * ld + j, ld, alpha, beta);
      j += columns;
    }
}

// As many columns as the registers hold: the rows, which come from memory, are then read once. With half the registers
// that is six columns of two rows.
template <class T, int Bytes>
void dots(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha, T beta) {
  constexpr int lanes = Bytes / sizeof(T);
  if (kc < lanes || m * n == 1) return dots_short<T, Bytes>(m, n, kc, a, as, b, bs, out, ld, alpha, beta);
  if constexpr (Bytes == 64) {
    dots_rows<T, Bytes, 4, 6>(m, n, kc, a, as, b, bs, out, ld, alpha, beta);
  } else {
    if (n > 3)
      dots_rows<T, Bytes, 2, 6>(m, n, kc, a, as, b, bs, out, ld, alpha, beta);
    else
      dots_rows<T, Bytes, 4, 3>(m, n, kc, a, as, b, bs, out, ld, alpha, beta);
  }
}

// Processes Depth rows of b at once, so that c is loaded and stored once per Depth multiply-adds; of the columns from `j`
// on as many as are whole vectors. Returns where it ended.
template <class T, int Bytes, int Depth, int Vectors>
inline int stream_vectors(int m, int n, int j, const T* a, const T* b, int64_t bs, T* c, int64_t ld) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T);
  for (; j + Vectors * lanes <= n; j += Vectors * lanes) {
    V right[Depth][Vectors];
#pragma GCC unroll 8
    for (int k = 0; k < Depth; ++k) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) right[k][v] = *reinterpret_cast<const L*>(b + k * bs + j + v * lanes);
      __builtin_prefetch(b + (k + Depth) * bs + j);
    }
    for (int i = 0; i < m; ++i) {
      L* out = reinterpret_cast<L*>(c + i * ld + j);
      V sum[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[v] = out[v];
#pragma GCC unroll 8
      for (int k = 0; k < Depth; ++k) {
        const T s = a[k * m + i];
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[v] += right[k][v] * s;
      }
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) out[v] = sum[v];
    }
  }
  return j;
}

// All columns: pairs of vectors, then one, then narrower ones, then single elements.
template <class T, int Bytes, int Depth>
inline void stream_rows(int m, int n, const T* a, const T* b, int64_t bs, T* c, int64_t ld) {
  int j = stream_vectors<T, Bytes, Depth, 2>(m, n, 0, a, b, bs, c, ld);
  j = stream_vectors<T, Bytes, Depth, 1>(m, n, j, a, b, bs, c, ld);
  if constexpr (Bytes == 64) j = stream_vectors<T, 32, Depth, 1>(m, n, j, a, b, bs, c, ld);
  if constexpr (Bytes >= 32) j = stream_vectors<T, 16, Depth, 1>(m, n, j, a, b, bs, c, ld);
  if constexpr (sizeof(T) == 4) j = stream_vectors<T, 8, Depth, 1>(m, n, j, a, b, bs, c, ld);
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

// One tile of a product of few terms. The next tile of these columns is prefetched: rows of the output are short runs of
// memory.
template <class T, int Bytes, int Rows, int Vectors>
inline void outer_tile(int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, int64_t ahead) {
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  constexpr int lanes = Bytes / sizeof(T);
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(out + i * ld + ahead, 1, 3);
    if constexpr (Vectors * Bytes > 64) __builtin_prefetch(out + i * ld + ahead + 64 / sizeof(T), 1, 3);
    if constexpr (Vectors * Bytes > 128) __builtin_prefetch(out + i * ld + ahead + 128 / sizeof(T), 1, 3);
  }
  V sum[Rows][Vectors] = {};
  for (int k = 0; k < kc; ++k) {
    V right[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const L*>(b + k * bs + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const T left = a[i * as + k];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sum[i][v] += right[v] * left;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) *reinterpret_cast<L*>(out + i * ld + v * lanes) = sum[i][v];
}

// Rows rows of the output. The last vector of a row overlaps the one before it.
template <class T, int Bytes, int Rows>
inline void outer_rows(int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld,
                       int64_t ahead) {
  constexpr int lanes = Bytes / sizeof(T);
  int j = 0;
  for (; j + 3 * lanes <= n; j += 3 * lanes) outer_tile<T, Bytes, Rows, 3>(kc, a, as, b + j, bs, out + j, ld, ahead);
  if (j + 2 * lanes <= n) {
    outer_tile<T, Bytes, Rows, 2>(kc, a, as, b + j, bs, out + j, ld, ahead);
    j += 2 * lanes;
  }
  for (; j < n; j += lanes) {
    const int start = j + lanes <= n ? j : n - lanes;
    outer_tile<T, Bytes, Rows, 1>(kc, a, as, b + start, bs, out + start, ld, ahead);
  }
}

template <class T, int Bytes>
void outer(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld) {
  constexpr int rows = Bytes == 64 ? 8 : 4;
  constexpr int64_t kAhead = 4096 / sizeof(T);
  const int64_t step = rows * ld, ahead = step * (1 + kAhead / step);
  int i = 0;
  for (; i + rows <= m; i += rows) outer_rows<T, Bytes, rows>(n, kc, a + i * as, as, b, bs, out + i * ld, ld, ahead);
  for (; i < m; ++i) outer_rows<T, Bytes, 1>(n, kc, a + i * as, as, b, bs, out + i * ld, ld, 0);
}

}  // namespace
}  // namespace ssdd::cpu

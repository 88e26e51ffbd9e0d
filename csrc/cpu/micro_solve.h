// Triangular solves in double, for right-hand sides of either type. Included by micro_tile.h; the same rules hold.
//
// A few columns of the right-hand sides are one panel of doubles that stays in L1. Four of its rows by up to three vectors
// are sums in registers, as in a tile of a product, while the rows that are already solved are subtracted.
#pragma once
#include "micro_vector.h"

namespace ssdd::cpu {
namespace {

// Rows [i, i + Rows) of the panel x, of `Vectors` vectors per row, from the rows that are solved: those before i, or, of
// L^T, those behind them.
template <int Bytes, bool Transposed, int Rows, int Vectors>
inline void solve_rows(int n, int i, const double* l, const double* inverse, double* x) {
  using V = typename VectorOf<double, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(double), width = lanes * Vectors;
  const auto at = [x](int row, int v) -> V& { return *reinterpret_cast<V*>(x + row * width + v * lanes); };
  V sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = at(i + r, v);
  const int64_t row_step = Transposed ? 1 : n, step = Transposed ? n : 1;
  const double* a = Transposed ? l + int64_t(i + Rows) * n + i : l + int64_t(i) * n;
  const double* b = Transposed ? x + (i + Rows) * width : x;
  const int depth = Transposed ? n - i - Rows : i;
  for (int k = 0; k < depth; ++k, a += step, b += width) {
    V right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const V*>(b + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const double left = a[r * row_step];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] -= right[v] * left;
    }
  }
#pragma GCC unroll 16
  for (int s = 0; s < Rows; ++s) {
    const int r = Transposed ? Rows - 1 - s : s;
#pragma GCC unroll 16
    for (int q = 0; q < Rows; ++q)
      if (Transposed ? q > r : q < r) {
        const double left = Transposed ? l[int64_t(i + q) * n + i + r] : l[int64_t(i + r) * n + i + q];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] -= sum[q][v] * left;
      }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) at(i + r, v) = sum[r][v] *= inverse[i + r];
  }
}

template <int Bytes, bool Transposed, int Vectors>
inline void solve_panel(int n, const double* l, const double* inverse, double* x) {
  constexpr int rows = 4;
  const int whole = n / rows * rows;
  if constexpr (Transposed)
    for (int i = n - 1; i >= whole; --i) solve_rows<Bytes, true, 1, Vectors>(n, i, l, inverse, x);
  for (int i = 0; i < whole; i += rows)
    solve_rows<Bytes, Transposed, rows, Vectors>(n, Transposed ? whole - rows - i : i, l, inverse, x);
  if constexpr (!Transposed)
    for (int i = whole; i < n; ++i) solve_rows<Bytes, false, 1, Vectors>(n, i, l, inverse, x);
}

// Copies columns between a panel and x, whose elements are of another type: whole vectors, then single ones.
template <class T, int Bytes, bool Back>
inline void move_panel(int n, int columns, int width, T* x, int64_t ldx, double* panel) {
  using V = typename VectorOf<double, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(double);
  typedef typename VectorOf<T, lanes * sizeof(T)>::type Own;
  typedef typename VectorOf<T, lanes * sizeof(T)>::loose Loose;
  const int whole = columns / lanes * lanes;
  for (int i = 0; i < n; ++i) {
    T* row = x + i * ldx;
    double* out = panel + i * width;
    for (int j = 0; j < whole; j += lanes) {
      if constexpr (Back)
        *reinterpret_cast<Loose*>(row + j) = __builtin_convertvector(*reinterpret_cast<const V*>(out + j), Own);
      else
        *reinterpret_cast<V*>(out + j) = __builtin_convertvector(*reinterpret_cast<const Loose*>(row + j), V);
    }
    for (int j = whole; j < columns; ++j) {
      if constexpr (Back)
        row[j] = static_cast<T>(out[j]);
      else
        out[j] = static_cast<double>(row[j]);
    }
    if constexpr (!Back)
      for (int j = columns; j < width; ++j) out[j] = 0;
  }
}

template <class T, int Bytes>
void solve(bool transposed, int n, int columns, const double* l, const double* inverse, T* x, int64_t ldx,
           double* panel) {
  constexpr int lanes = Bytes / sizeof(double);
  for (int j = 0; j < columns; j += 3 * lanes) {
    const int count = columns - j < 3 * lanes ? columns - j : 3 * lanes, vectors = (count + lanes - 1) / lanes;
    move_panel<T, Bytes, false>(n, count, vectors * lanes, x + j, ldx, panel);
    if (vectors == 3)
      transposed ? solve_panel<Bytes, true, 3>(n, l, inverse, panel)
                 : solve_panel<Bytes, false, 3>(n, l, inverse, panel);
    else if (vectors == 2)
      transposed ? solve_panel<Bytes, true, 2>(n, l, inverse, panel)
                 : solve_panel<Bytes, false, 2>(n, l, inverse, panel);
    else
      transposed ? solve_panel<Bytes, true, 1>(n, l, inverse, panel)
                 : solve_panel<Bytes, false, 1>(n, l, inverse, panel);
    move_panel<T, Bytes, true>(n, count, vectors * lanes, x + j, ldx, panel);
  }
}

}  // namespace
}  // namespace ssdd::cpu

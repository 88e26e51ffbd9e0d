// The arithmetic of lanes.h for vectors of one width. In an unnamed namespace, as micro_tile.h: every file that includes
// this is compiled for another instruction set.
#pragma once
#include "lanes_move.h"

namespace ssdd::cpu {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

template <class T, int Bytes>
struct LaneLoops : LaneMoves<T, Bytes> {
  using Moves = LaneMoves<T, Bytes>;
  using V = typename Moves::V;
  using Mask = typename Moves::Mask;
  using Moves::at;
  using Moves::panel;
  using Moves::R;
  using Moves::row_of;
  using Moves::W;
  static constexpr int kColumns = Bytes == 64 ? 4 : 2;  // of a register tile: AVX-512 has twice the registers

  static V root(V v) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) v[l] = square_root(v[l]);
    return v;
  }

  // sum[r][c] = sum_{k < depth} a[4 k + r] b[k * step + c], vectors.
  template <int C>
  static void accumulate(int64_t depth, const T* a, const T* b, int64_t step, V (&sum)[R][C]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] = V{};
    for (int64_t k = 0; k < depth; ++k) {
      V left[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) left[r] = at(a, k * R + r);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const V right = at(b, k * step + c);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sum[r][c] += left[r] * right;
      }
    }
  }

  // tile <- tile - rows a times rows b over the first `depth` columns; tile is column by column, as in a panel.
  static void update_tile(int64_t depth, const T* a, const T* b, T* tile) {
#pragma GCC unroll 16
    for (int c0 = 0; c0 < R; c0 += kColumns) {
      V sum[R][kColumns];
      accumulate(depth, a, b + c0 * W, R, sum);
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) at(tile, (c0 + c) * R + r) -= sum[r][c];
    }
  }

  static void factor_tile(int64_t first, T* tile, T* inverse, V& status) {
#pragma GCC unroll 16
    for (int c = 0; c < R; ++c) {
#pragma GCC unroll 16
      for (int k = 0; k < c; ++k) {
        const V left = at(tile, k * R + c);
#pragma GCC unroll 16
        for (int r = c; r < R; ++r) at(tile, c * R + r) -= at(tile, k * R + r) * left;
      }
      const V pivot = at(tile, c * R + c);
      const Mask good = (pivot > V{}) & (pivot - pivot == V{});  // Inf - Inf is NaN
      const Mask fresh = ~good & (status == V{});
      status = fresh ? V{} + static_cast<T>(first + c + 1) : status;
      const V length = root(good ? pivot : V{} + static_cast<T>(__builtin_nanf("")));
      const V over = T(1) / length;
      at(tile, c * R + c) = length;
      at(inverse, c) = over;
#pragma GCC unroll 16
      for (int r = c + 1; r < R; ++r) at(tile, c * R + r) *= over;
    }
  }

  // tile <- tile L^-T for the factored tile on the diagonal.
  static void solve_tile(const T* diagonal, const T* inverse, T* tile) {
    V x[R][R];
#pragma GCC unroll 16
    for (int c = 0; c < R; ++c) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) x[c][r] = at(tile, c * R + r);
#pragma GCC unroll 16
      for (int k = 0; k < c; ++k) {
        const V left = at(diagonal, k * R + c);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) x[c][r] -= x[k][r] * left;
      }
      const V over = at(inverse, c);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) at(tile, c * R + r) = x[c][r] *= over;
    }
  }

  static void factor(int64_t n, T* panels, T* inverse, T* status) {
    V failed = V{};
    for (int64_t j = 0; j < lane_panels(n); ++j) {
      const T* right = panel(panels, j);
      T* diagonal = panel(panels, j) + j * R * R * W;
      update_tile(j * R, right, right, diagonal);
      factor_tile(j * R, diagonal, inverse + j * R * W, failed);
      for (int64_t i = j + 1; i < lane_panels(n); ++i) {
        T* tile = panel(panels, i) + j * R * R * W;
        update_tile(j * R, panel(panels, i), right, tile);
        solve_tile(diagonal, inverse + j * R * W, tile);
      }
    }
    at(status, 0) = failed;
  }

  static void invert_diagonal(int64_t n, const T* panels, T* inverse) {
    for (int64_t i = 0; i < lane_rows(n); ++i) at(inverse, i) = T(1) / at(row_of(panels, i), R * i);
  }

  template <int C>
  static void solve_columns(int64_t n, int64_t ld, const T* panels, const T* inverse, T* x) {
    const int64_t tiles = lane_panels(n);
    for (int64_t i = 0; i < tiles; ++i) {  // L z = x
      const T *left = panel(panels, i), *diagonal = left + i * R * R * W;
      V sum[R][C];
      accumulate(i * R, left, x, ld, sum);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          V value = at(x, (i * R + r) * ld + c) - sum[r][c];
#pragma GCC unroll 16
          for (int k = 0; k < r; ++k) value -= at(diagonal, k * R + r) * sum[k][c];
          at(x, (i * R + r) * ld + c) = sum[r][c] = value * at(inverse, i * R + r);
        }
    }
    for (int64_t i = tiles - 1; i >= 0; --i) {  // L^T x = z
      V sum[R][C];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] = V{};
      for (int64_t j = i + 1; j < tiles; ++j) {
        const T* tile = panel(panels, j) + i * R * R * W;
#pragma GCC unroll 16
        for (int q = 0; q < R; ++q)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
            const V right = at(x, (j * R + q) * ld + c);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sum[r][c] += at(tile, r * R + q) * right;
          }
      }
      const T* diagonal = panel(panels, i) + i * R * R * W;
#pragma GCC unroll 16
      for (int r = R - 1; r >= 0; --r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          V value = at(x, (i * R + r) * ld + c) - sum[r][c];
#pragma GCC unroll 16
          for (int k = r + 1; k < R; ++k) value -= at(diagonal, r * R + k) * sum[k][c];
          at(x, (i * R + r) * ld + c) = sum[r][c] = value * at(inverse, i * R + r);
        }
    }
  }

  static void solve(int64_t n, int64_t columns, const T* panels, const T* inverse, T* x) {
    int64_t c = 0;
    for (; c + kColumns <= columns; c += kColumns) solve_columns<kColumns>(n, columns, panels, inverse, x + c * W);
    if constexpr (kColumns == 4)
      for (; c + 2 <= columns; c += 2) solve_columns<2>(n, columns, panels, inverse, x + c * W);
    for (; c < columns; ++c) solve_columns<1>(n, columns, panels, inverse, x + c * W);
  }

  // One tile of a product: M rows, N columns. N vectors of b and one of a are held beside the M N sums.
  template <int M, int N>
  static void product_tile(int64_t k, T alpha, const T* a, int64_t ra, int64_t ka, const T* b, int64_t kb, int64_t cb,
                           T beta, T* c, int64_t rc, int64_t cc) {
    V sum[M][N];
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[r][j] = V{};
    for (int64_t e = 0; e < k; ++e) {
      V right[N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) right[j] = at(b, e * kb + j * cb);
#pragma GCC unroll 16
      for (int r = 0; r < M; ++r) {
        const V left = at(a, r * ra + e * ka);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) sum[r][j] += left * right[j];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        V& out = at(c, r * rc + j * cc);
        out = beta == T(0) ? alpha * sum[r][j] : out + alpha * sum[r][j];
      }
  }

  // Columns of a product's tile: as many as the registers hold, and no narrow rest where two even parts will do.
  static constexpr int kWide = Bytes == 64 ? 4 : 3;

  template <int M>
  static void product_rows(int64_t n, int64_t k, T alpha, const T* a, LaneView<const T> av, LaneView<const T> b, T beta,
                           T* c, LaneView<T> cv) {
    for (int64_t j = 0; j < n;) {
      const int64_t rest = n - j, parts = (rest + kWide - 1) / kWide, width = (rest + parts - 1) / parts;
      const T* right = b.p + j * b.cs * W;
      T* out = c + j * cv.cs * W;
      if constexpr (kWide == 4)
        if (width == 4) product_tile<M, 4>(k, alpha, a, av.rs, av.cs, right, b.rs, b.cs, beta, out, cv.rs, cv.cs);
      if (width == 3) product_tile<M, 3>(k, alpha, a, av.rs, av.cs, right, b.rs, b.cs, beta, out, cv.rs, cv.cs);
      if (width == 2) product_tile<M, 2>(k, alpha, a, av.rs, av.cs, right, b.rs, b.cs, beta, out, cv.rs, cv.cs);
      if (width == 1) product_tile<M, 1>(k, alpha, a, av.rs, av.cs, right, b.rs, b.cs, beta, out, cv.rs, cv.cs);
      j += width;
    }
  }

  static void product(int64_t m, int64_t n, int64_t k, T alpha, LaneView<const T> a, LaneView<const T> b, T beta,
                      LaneView<T> c) {
    int64_t i = 0;
    for (; i + R <= m; i += R) product_rows<R>(n, k, alpha, a.p + i * a.rs * W, a, b, beta, c.p + i * c.rs * W, c);
    const T* left = a.p + i * a.rs * W;
    T* out = c.p + i * c.rs * W;
    if (m - i == 3) product_rows<3>(n, k, alpha, left, a, b, beta, out, c);
    if (m - i == 2) product_rows<2>(n, k, alpha, left, a, b, beta, out, c);
    if (m - i == 1) product_rows<1>(n, k, alpha, left, a, b, beta, out, c);
  }

  static void gram(int64_t n, int64_t d, const T* x, int64_t ld, T* panels) {
    for (int64_t i = 0; i < lane_panels(n); ++i)
      for (int64_t j = 0; j <= i; ++j)
        for (int c0 = 0; c0 < R; c0 += kColumns)
          product_tile<R, kColumns>(d, T(1), x + i * R * ld * W, ld, 1, x + (j * R + c0) * ld * W, 1, ld, T(0),
                                    panel(panels, i) + (j * R + c0) * R * W, 1, R);
  }

  static void affine(int64_t count, const T* scale, const T* shift, T* x) {
    const V s = at(scale, 0), t = at(shift, 0);
    for (int64_t e = 0; e < count; ++e) at(x, e) = s * at(x, e) + t;
  }

  static void add(int64_t count, const T* factor, const T* x, T* out) {
    const V f = at(factor, 0);
    for (int64_t e = 0; e < count; ++e) at(out, e) += f * at(x, e);
  }

  static void sum_rows(int64_t rows, int64_t columns, const T* x, T* out) {
    for (int64_t c = 0; c < columns; ++c) {
      V sum = V{};
      for (int64_t r = 0; r < rows; ++r) sum += at(x, r * columns + c);
      at(out, c) += sum;
    }
  }

  static void inner(int64_t count, const T* a, const T* b, double* sum) {
    double total[W] = {};
    for (int64_t e = 0; e < count; ++e)
      for (int l = 0; l < W; ++l) total[l] += static_cast<double>(a[e * W + l]) * static_cast<double>(b[e * W + l]);
    for (int l = 0; l < W; ++l) sum[l] += total[l];
  }

  static void trace(int64_t n, const T* panels, double* sum) {
    double total[W] = {};
    for (int64_t i = 0; i < n; ++i) {
      const T* diagonal = row_of(panels, i) + R * i * W;
      for (int l = 0; l < W; ++l) total[l] += static_cast<double>(diagonal[l]);
    }
    for (int l = 0; l < W; ++l) sum[l] += total[l];
  }

  static void shift(int64_t n, const double* lambda, T* panels) {
    for (int64_t i = 0; i < n; ++i) {
      T* diagonal = row_of(panels, i) + R * i * W;
      for (int l = 0; l < W; ++l) diagonal[l] = static_cast<T>(static_cast<double>(diagonal[l]) + lambda[l]);
    }
  }

  static void finish(int64_t rows, int64_t columns, const T* row, const T* y, T* p) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t e = r * columns + c;
        at(p, e) += y ? at(row, c) - at(y, e) : at(row, c);
      }
  }

  static void outer(int64_t n, int64_t columns, T alpha, bool first, const T* u, const T* x, T* panels) {
    for (int64_t i = 0; i < lane_panels(n); ++i)
      for (int64_t j = 0; j <= i; ++j) {
        T* tile = panel(panels, i) + j * R * R * W;
#pragma GCC unroll 16
        for (int c0 = 0; c0 < R; c0 += kColumns) {
          V sum[R][kColumns] = {};
          const int64_t a = i * R * columns, b = (j * R + c0) * columns;
          for (int64_t k = 0; k < columns; ++k)
#pragma GCC unroll 16
            for (int c = 0; c < kColumns; ++c) {
              const V right_x = at(x, b + c * columns + k), right_u = at(u, b + c * columns + k);
#pragma GCC unroll 16
              for (int r = 0; r < R; ++r) {
                sum[r][c] += at(u, a + r * columns + k) * right_x;
                sum[r][c] += at(x, a + r * columns + k) * right_u;
              }
            }
#pragma GCC unroll 16
          for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
              at(tile, (c0 + c) * R + r) = (first ? V{} : at(tile, (c0 + c) * R + r)) + alpha * sum[r][c];
        }
      }
  }
};

template <class T, int Bytes>
const Lanes<T>* make_lanes() {
  using L = LaneLoops<T, Bytes>;
  static const Lanes<T> table{
      L::W,      &L::load,    &L::load_lower, &L::store, &L::store_lower, &L::factor, &L::invert_diagonal,
      &L::solve, &L::product, &L::affine,     &L::add,   &L::sum_rows,    &L::inner,  &L::finish,
      &L::trace, &L::shift,   &L::pad_lower,  &L::gram,  &L::outer};
  return &table;
}

}  // namespace
}  // namespace ssdd::cpu

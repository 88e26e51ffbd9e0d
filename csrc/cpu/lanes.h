// Batches of small problems, one problem per lane of a vector: element e of a problem lies at e * width + lane.
//
// Lanes never meet: the arithmetic of a problem does not depend on its neighbours in the vector, on the width of the
// vector or on the thread. (Where the instruction set has no fused multiply-add, the rounding differs.)
//
// The lower triangle of a matrix of order n lies in panels of four rows: panel I holds its rows 4 I + r, r < 4, column by
// column, element (4 I + r, k) at 8 I (I + 1) + 4 k + r for k < 4 (I + 1). The order is padded to a multiple of four with
// the identity. Right-hand sides are row-major [padded n, columns].
//
// lanes_generic.cpp, lanes_avx2.cpp and lanes_avx512.cpp instantiate lanes_tile.h for one vector width each; lanes<T>()
// is the table of the instruction set in force.
#pragma once
#include <cstdint>

#include "../cholesky.h"
#include "micro.h"

namespace ssdd::cpu {

constexpr int kMostLanes = 16;
constexpr int64_t kLaneRows = 4;  // of a panel

// Static: the linker must never merge what a file for AVX compiled with its namesake in portable code.
static constexpr int64_t lane_panels(int64_t n) { return (n + kLaneRows - 1) / kLaneRows; }
static constexpr int64_t lane_rows(int64_t n) { return lane_panels(n) * kLaneRows; }
static constexpr int64_t lane_triangle(int64_t n) { return 8 * lane_panels(n) * (lane_panels(n) + 1); }  // vectors

// A matrix of vectors: element (i, j) is vector i * rs + j * cs.
template <class T>
struct LaneView {
  T* p;
  int64_t rs, cs;
  LaneView<T> t() const { return {p, cs, rs}; }
};

template <class T>
struct Lanes {
  int width;

  // Element (i, j) of problem l is source[l][i * rs + j * cs]. `source` has `width` entries; some may be the same.
  // Rows of `out` are `ld` vectors apart.
  void (*load)(const T* const* source, int64_t rs, int64_t cs, int64_t rows, int64_t columns, T* out, int64_t ld);
  // The same for the lower triangle of order n, into panels with the padding. ahead: the next problems are prefetched,
  // which pays if other work comes between.
  void (*load_lower)(const T* const* source, int64_t rs, int64_t cs, int64_t n, bool ahead, T* panels);
  // The first `count` lanes to target[l], element (i, j) at i * rs + j.
  void (*store)(const T* in, int64_t rows, int64_t columns, int64_t rs, int count, T* const* target);
  // Dense [n, n]: above the diagonal zeros, or the mirrored triangle. Reads up to kLaneRows * width vectors behind the
  // last panel, whatever is there.
  void (*store_lower)(const T* panels, int64_t n, bool mirrored, bool ahead, int count, T* const* target);

  // L of the panels in place, 1 / L_ii into inverse [padded n], and the 1-based pivot that is not a positive finite
  // number, or 0, into status [1]. A lane that fails goes on with NaN.
  void (*factor)(int64_t n, T* panels, T* inverse, T* status);
  void (*invert_diagonal)(int64_t n, const T* panels, T* inverse);  // of a factor that was loaded
  // x <- (L L^T)^-1 x; the padded rows of x are zero.
  void (*solve)(int64_t n, int64_t columns, const T* panels, const T* inverse, T* x);
  // c [m, n] = beta c + alpha a [m, k] b [k, n], with one alpha and beta (0 or 1) for all lanes.
  void (*product)(int64_t m, int64_t n, int64_t k, T alpha, LaneView<const T> a, LaneView<const T> b, T beta,
                  LaneView<T> c);
  // x[e] <- scale x[e] + shift for `count` vectors; scale and shift are one vector each.
  void (*affine)(int64_t count, const T* scale, const T* shift, T* x);
  // out[e] <- out[e] + factor x[e], factor one vector.
  void (*add)(int64_t count, const T* factor, const T* x, T* out);
  // out [columns] <- out + the sums over the rows of x [rows, columns].
  void (*sum_rows)(int64_t rows, int64_t columns, const T* x, T* out);
  // sum[lane] += <a, b> of `count` vectors, in double.
  void (*inner)(int64_t count, const T* a, const T* b, double* sum);
  // p [rows, columns] <- p + row [columns] - y [rows, columns] (y may be nullptr).
  void (*finish)(int64_t rows, int64_t columns, const T* row, const T* y, T* p);
  // sum[lane] += the trace of a triangle, and its diagonal += lambda[lane], both in double.
  void (*trace)(int64_t n, const T* panels, double* sum);
  void (*shift)(int64_t n, const double* lambda, T* panels);
  // The padded rows of a triangle.
  void (*pad_lower)(int64_t n, T* panels);
  // The lower triangle of x x^T into panels, without the padding; x is [padded n, d], its padded rows zero and its rows `ld`
  // vectors apart.
  void (*gram)(int64_t n, int64_t d, const T* x, int64_t ld, T* panels);
  // The lower triangle of alpha (u x^T + x u^T) into panels: their first value, or added.
  void (*outer)(int64_t n, int64_t columns, T alpha, bool first, const T* u, const T* x, T* panels);
};

template <class T> const Lanes<T>& lanes();

template <class T> const Lanes<T>* lanes_generic();
template <class T> const Lanes<T>* lanes_avx2();
template <class T> const Lanes<T>* lanes_avx512();

// True if the batch is solved by lanes: problems of a small order, several of them.
bool lanes_fit(int64_t batch, int64_t n);
// Elements that the two below need.
int64_t lanes_workspace(int64_t batch, int64_t n, int64_t c, int threads);
// As solve and solve_backward (../cholesky.h) without a second attempt: problems that fail are NaN.
template <class T> void solve_by_lanes(const SolveArgs<T>& a);
template <class T> void solve_backward_by_lanes(const SolveBackwardArgs<T>& a);

}  // namespace ssdd::cpu

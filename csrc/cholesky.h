// Batched Cholesky factorisation and solve.
//
//   factor: L L^T = A + (lambda + jitter) I,  lambda = v | v tr(A) | v tr(A)/S by RidgeKind, v the last hyper value
//   solve:  X = (A + lambda I)^-1 Y
//   solve_backward, from the same factor: U = A^-1 Xbar = Ybar,  Abar = -1/2 (U X^T + X U^T) [+ c lbar I],
//           lbar = -<U, X>,  vbar = lbar dlambda/dv   (c = 0 if the trace is detached)
//
// a [B, S, S] has any strides; only its lower triangle is read. factor [B, S, S] dense row-major holds L on and below
// the diagonal; above it the strict upper triangle of A (solve) or zeros (factor). x [B, S, C] dense row-major.
// status [B]: 0, the 1-based pivot that was not a positive finite number, or kBadParameter. A failed problem's
// results are NaN. jitter [B]: with OnFailure::jitter, the number added (a growing multiple of the mean diagonal).
// aux [B, 3]: tr(A), lambda, jitter. Outputs alias nothing. Workspace: cholesky_workspace(...) elements, uninitialised.
// Work: S^3/3 + 2 S^2 C flops (multiply-adds counted as 2: S^3/3, 2 S^2 C).
#pragma once
#include "device.h"
#include "tensor.h"

namespace ssdd {

template <class T>
struct SolveArgs {
  int64_t batch, s, c;  // c = 0 and x.p = y.p = nullptr: factor only
  Batch<const T> a, y;
  T *factor, *x, *jitter, *aux;
  int32_t* status;
  Hyper<T> hyper;  // count == 0: no ridge
  RidgeKind ridge;
  OnFailure on_failure;
  T* work;
  int threads;
  bool cluster = false;  // as in KrrShape (krr.h)
};

template <class T>
struct SolveBackwardArgs {
  int64_t batch, s, c;
  Batch<const T> grad;          // Xbar [B, S, C]
  const T *factor, *x, *aux;    // as solve wrote them
  T *grad_a, *grad_y, *grad_v;  // each may be nullptr, except grad_y: [B, S, S], [B, S, C], [B]
  Hyper<T> hyper;
  RidgeKind ridge;
  bool detach;
  T* work;
  int threads;
};

namespace cpu {
int64_t cholesky_workspace(int64_t batch, int64_t s, int64_t c, int threads);
template <class T> void solve(const SolveArgs<T>& args);
template <class T> void solve_backward(const SolveBackwardArgs<T>& args);
}  // namespace cpu
namespace cuda {
int64_t cholesky_workspace(int64_t batch, int64_t s, int64_t c);
template <class T> void solve(const SolveArgs<T>& args, Stream stream);
template <class T> void solve_backward(const SolveBackwardArgs<T>& args, Stream stream);
}  // namespace cuda

}  // namespace ssdd

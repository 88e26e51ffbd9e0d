// Symmetric matrices reduced to tridiagonal form, A = Q T Q^T by Householder reflections, and solves with T + v I for many
// shifts v: (A + v I)^-1 Y = Q (T + v I)^-1 Q^T Y. One reduction costs a fraction of an eigendecomposition, and each
// solve is linear in N.
//
//   tridiagonal         T and Q of A, and the smallest and the largest eigenvalue of T
//   tridiagonal_rotate  X <- Q^T X or Q X
//   tridiagonal_solve   X_r = (T + v_r I)^-1 Y_r by L D L^T without pivoting; one shift per column, or for all columns
//
// a [B, N, N] has any strides; only its lower triangle is read. reflectors [B, N, N] and tau [B, N] are LAPACK's sytrd of
// the upper triangle in column-major order. diagonal [B, N] and beside [B, N] (its last element is unused) hold T. bounds
// [B, 2] are exact to rounding (of T). x of rotate is [B, N, M], dense and row-major, and changed in place.
// The order of y of solve [B, N, R or 1, C] and of x [B, N, R, C], both dense, keeps what one step reads together; shifts
// [B, R, C or 1]. T + v I must be positive definite; if it is not, the result is unspecified. N >= 1.
// Workspace: tridiagonal_workspace(...) elements, for each of them. Work in multiply-adds: 2/3 N^3, N^2 M, 3 N R C.
#pragma once
#include "tensor.h"

namespace ssdd {

template <class T>
struct TridiagonalArgs {
  int64_t batch, n;
  Batch<const T> a;
  T *reflectors, *tau, *diagonal, *beside, *bounds;
  T* work;
  int threads;
};

template <class T>
struct RotateArgs {
  int64_t batch, n, m;
  const T *reflectors, *tau;
  T* x;
  bool transposed;  // Q^T X
  T* work;
  int threads;
};

template <class T>
struct ShiftedSolveArgs {
  int64_t batch, n, r, c;
  bool shared_y, shared_shift;  // one y for all shifts; one shift for all columns
  const T *diagonal, *beside, *shifts, *y;
  T* x;
  T* work;
  int threads;
};

namespace cpu {
int64_t tridiagonal_workspace(int64_t n, int64_t m, int threads);  // m: columns of rotate, otherwise 0
template <class T> void tridiagonal(const TridiagonalArgs<T>& args);
template <class T> void tridiagonal_rotate(const RotateArgs<T>& args);
template <class T> void tridiagonal_solve(const ShiftedSolveArgs<T>& args);
}  // namespace cpu

}  // namespace ssdd

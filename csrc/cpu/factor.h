// The factorisation and the solves of cholesky.cpp and krr.cpp, on a team.
#pragma once
#include "../tensor.h"
#include "product.h"

namespace ssdd::cpu {

template <class T>
struct Factorisation {
  int64_t n;
  T* a;           // [n, n] row-major: K on and below the diagonal on entry, L on return
  T* diagonal;    // [n] workspace: the diagonal of K
  bool mirrored;  // K is above the diagonal too; a second attempt with jitter starts from it
  int32_t* status;
  T* jitter;
  T* aux;  // [3] trace, lambda, jitter
};

// lambda from the ridge value v and the trace. order is S, even if n is not (primal).
template <class T>
double ridge_amount(RidgeKind kind, T v, double trace, int64_t order);
// d lambda / d v, and d lambda / d tr K.
double ridge_slope(RidgeKind kind, double trace, int64_t order);
double ridge_trace_slope(RidgeKind kind, bool detach, double v, int64_t order);

// Reads the diagonal, adds lambda, factors; with OnFailure::jitter tries again with a growing jitter. On failure
// status holds the pivot, aux lambda is NaN, and the contents of a are unspecified. Returns success, on every rank.
template <class T>
bool factorise(const Team& team, const Packing<T>& packing, const Factorisation<T>& f, RidgeKind ridge, bool has_ridge,
               T v, int64_t order, OnFailure on_failure);

// x <- A^-1 x for dense x [n, c] and the factor L in a (row stride n).
template <class T>
void solve_factored(const Team& team, const Packing<T>& packing, int64_t n, const T* l, int64_t c, T* x);

}  // namespace ssdd::cpu

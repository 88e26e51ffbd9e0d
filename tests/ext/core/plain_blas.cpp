// The BLAS and LAPACK functions of csrc/cpu/blas.h, with the Fortran interface, for the core's own tests: code to be
// checked by reading, not fast code. Column-major, 32-bit integers. It is stricter than most libraries: an argument
// that the standard calls illegal ends the program (a vendor's xerbla would print and continue), and it does not read
// memory that the standard excludes (the other triangle, a unit diagonal).
#include "plain_blas.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

void demand(bool legal, const char* routine, const char* what) {
  if (legal) return;
  std::fprintf(stderr, "plain_blas: illegal argument of %s: %s\n", routine, what);
  std::abort();
}

bool is(const char* flag, char letter) { return (*flag | 0x20) == letter; }

bool one_of(const char* flag, const char* letters) {
  for (; *letters; ++letters)
    if (is(flag, *letters)) return true;
  return false;
}

// Column-major element (i, j), or (j, i) if transposed.
template <class T>
T& at(T* a, int ld, int i, int j, bool transposed = false) {
  if (transposed) std::swap(i, j);
  return a[i + static_cast<std::ptrdiff_t>(j) * ld];
}

// op(A) X = alpha B, or X op(A) = alpha B, written as one substitution: the right side is the left one on B^T.
template <class T>
void trsm(char* side, char* uplo, char* trans, char* diag, int* rows, int* width, T* factor, T* a, int* a_stride, T* b,
          int* b_stride) {
  const char* name = "trsm";
  const int m = *rows, n = *width, lda = *a_stride, ldb = *b_stride;
  const T alpha = *factor;
  const bool left = is(side, 'l');
  demand(one_of(side, "lr") && one_of(uplo, "lu") && one_of(trans, "ntc") && one_of(diag, "nu"), name, "flags");
  demand(m >= 0 && n >= 0, name, "m, n");
  demand(lda >= std::max(1, left ? m : n), name, "lda");
  demand(ldb >= std::max(1, m), name, "ldb");
  const int size = left ? m : n, columns = left ? n : m;
  const bool transposed = is(trans, 'n') == !left;  // the triangle that multiplies from the left
  const bool lower = is(uplo, 'l') != transposed;
  for (int j = 0; j < columns; ++j)
    for (int step = 0; step < size; ++step) {
      const int i = lower ? step : size - 1 - step;
      T& x = at(b, ldb, i, j, !left);
      T sum = alpha * x;
      for (int l = lower ? 0 : i + 1; l < (lower ? i : size); ++l)
        sum -= at(a, lda, i, l, transposed) * at(b, ldb, l, j, !left);
      x = is(diag, 'u') ? sum : sum / at(a, lda, i, i);
    }
}

template <class T>
void potrf(char* uplo, int* order, T* a, int* a_stride, int* info) {
  const char* name = "potrf";
  const int n = *order, lda = *a_stride;
  demand(one_of(uplo, "lu"), name, "uplo");
  demand(n >= 0 && lda >= std::max(1, n), name, "n, lda");
  const bool upper = is(uplo, 'u');
  *info = 0;
  for (int j = 0; j < n; ++j) {
    T pivot = at(a, lda, j, j);
    for (int l = 0; l < j; ++l) pivot -= at(a, lda, j, l, upper) * at(a, lda, j, l, upper);
    if (!(pivot > T(0))) {
      at(a, lda, j, j) = pivot;
      *info = j + 1;
      return;
    }
    const T root = at(a, lda, j, j) = std::sqrt(pivot);
    for (int i = j + 1; i < n; ++i) {
      T sum = at(a, lda, i, j, upper);
      for (int l = 0; l < j; ++l) sum -= at(a, lda, i, l, upper) * at(a, lda, j, l, upper);
      at(a, lda, i, j, upper) = sum / root;
    }
  }
}

// X <- X H for X [m, n] and H = I - tau v v^T.
template <class T>
void reflect(int m, int n, const std::vector<T>& v, T tau, T* x, int ldx) {
  for (int i = 0; i < m; ++i) {
    T sum = T(0);
    for (int j = 0; j < n; ++j) sum += at(x, ldx, i, j) * v[size_t(j)];
    for (int j = 0; j < n; ++j) at(x, ldx, i, j) -= tau * sum * v[size_t(j)];
  }
}

// The upper triangle: for each column i + 1 from the last one on, H(i) moves what is above its neighbour of the diagonal.
template <class T>
void sytrd(char* uplo, int* order, T* a, int* a_stride, T* d, T* e, T* tau, T*, int* room, int* info) {
  const char* name = "sytrd";
  const int n = *order, lda = *a_stride;
  demand(is(uplo, 'u') && n >= 0 && lda >= std::max(1, n) && *room >= 1, name, "uplo, n, lda, lwork");
  *info = 0;
  std::vector<T> m(size_t(n * n));
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) m[size_t(i + j * n)] = at(a, lda, std::min(i, j), std::max(i, j));
  for (int i = n - 2; i >= 0; --i) {
    std::vector<T> v(size_t(n), T(0));
    T rest = T(0);
    for (int j = 0; j < i; ++j) rest += m[size_t(j + (i + 1) * n)] * m[size_t(j + (i + 1) * n)];
    const T alpha = m[size_t(i + (i + 1) * n)];
    const T beta = rest == T(0) ? alpha : -std::copysign(std::sqrt(rest + alpha * alpha), alpha);
    tau[i] = rest == T(0) ? T(0) : (beta - alpha) / beta;
    v[size_t(i)] = T(1);
    for (int j = 0; j < i; ++j) v[size_t(j)] = rest == T(0) ? T(0) : m[size_t(j + (i + 1) * n)] / (alpha - beta);
    for (int turn = 0; turn < 2; ++turn) {  // M H, transposed: twice is H M H
      reflect(n, n, v, tau[i], m.data(), n);
      for (int p = 0; p < n; ++p)
        for (int q = 0; q < p; ++q) std::swap(m[size_t(p + q * n)], m[size_t(q + p * n)]);
    }
    e[i] = at(a, lda, i, i + 1) = beta;
    for (int j = 0; j < i; ++j) at(a, lda, j, i + 1) = v[size_t(j)];
    d[i + 1] = m[size_t(i + 1 + (i + 1) * n)];
  }
  if (n > 0) d[0] = m[0];
}

}  // namespace

ssdd::cpu::blas::Table plain_blas() {
  return {potrf<float>, potrf<double>, trsm<float>, trsm<double>, sytrd<float>, sytrd<double>};
}

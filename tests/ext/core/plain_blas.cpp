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

}  // namespace

ssdd::cpu::blas::Table plain_blas() { return {potrf<float>, potrf<double>, trsm<float>, trsm<double>}; }

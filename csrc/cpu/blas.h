// BLAS and LAPACK as function pointers (Fortran interface, 32-bit integers). bindings.cpp sets them at import from
// SciPy's capsules, or a test does. Nothing is linked. They are called only from the core's own threads, so the library
// must run single-threaded meanwhile: see ThreadGuard.
#pragma once
#include <cstdint>

namespace ssdd::cpu::blas {

struct Table {
  void (*spotrf)(char* uplo, int* n, float* a, int* lda, int* info);
  void (*dpotrf)(char* uplo, int* n, double* a, int* lda, int* info);
  void (*strsm)(char* side, char* uplo, char* trans, char* diag, int* m, int* n, float* alpha, float* a, int* lda,
                float* b, int* ldb);
  void (*dtrsm)(char* side, char* uplo, char* trans, char* diag, int* m, int* n, double* alpha, double* a, int* lda,
                double* b, int* ldb);
  // The core's own tests have no table of these.
  void (*ssytrd)(char* uplo, int* n, float* a, int* lda, float* d, float* e, float* tau, float* work, int* lwork,
                 int* info) = nullptr;
  void (*dsytrd)(char* uplo, int* n, double* a, int* lda, double* d, double* e, double* tau, double* work, int* lwork,
                 int* info) = nullptr;
};
void set_table(const Table& table);

// The setter of the library's thread count, if it has one (OpenBLAS). nullptr: the library is single-threaded.
void set_thread_control(int (*get)(), void (*set)(int));

// While any guard exists, the library runs single-threaded. The last guard restores the thread count that the first one
// found.
class ThreadGuard {
 public:
  ThreadGuard();
  ~ThreadGuard();
  ThreadGuard(const ThreadGuard&) = delete;
  ThreadGuard& operator=(const ThreadGuard&) = delete;
};

// Factors the leading n x n of the row-major a (row stride lda) in place, lower triangle; returns LAPACK's info.
template <class T> int potrf(int64_t n, T* a, int64_t lda);
// X <- X L^-T for row-major X [rows, n] and lower L [n, n]: a panel of the factorisation.
template <class T> void trsm_panel(int64_t rows, int64_t n, const T* l, int64_t ldl, T* x, int64_t ldx);
// X <- L^-1 X or L^-T X for row-major X [n, c].
template <class T> void trsm(bool transposed, int64_t n, int64_t c, const T* l, int64_t ldl, T* x, int64_t ldx);
// Reduces the lower triangle of the row-major a [n, n] to tridiagonal form, in place.
template <class T> void sytrd(int64_t n, T* a, T* d, T* e, T* tau, T* work, int64_t size);

}  // namespace ssdd::cpu::blas

#include "blas.h"

#include <mutex>
#include <stdexcept>

namespace ssdd::cpu::blas {
namespace {

Table table{};
int (*get_threads)() = nullptr;
void (*set_threads)(int) = nullptr;

std::mutex guard_mutex;
int guards = 0;
int found = 1;

const Table& ready() {
  if (!table.spotrf) throw std::logic_error("ssdd core: no BLAS table was set");
  return table;
}

void call_potrf(char* u, int* n, float* a, int* lda, int* info) { ready().spotrf(u, n, a, lda, info); }
void call_potrf(char* u, int* n, double* a, int* lda, int* info) { ready().dpotrf(u, n, a, lda, info); }
void call_trsm(char* s, char* u, char* t, char* d, int* m, int* n, float* f, float* a, int* lda, float* b, int* ldb) {
  ready().strsm(s, u, t, d, m, n, f, a, lda, b, ldb);
}
void call_trsm(char* s, char* u, char* t, char* d, int* m, int* n, double* f, double* a, int* lda, double* b,
               int* ldb) {
  ready().dtrsm(s, u, t, d, m, n, f, a, lda, b, ldb);
}

void call_sytrd(char* u, int* n, float* a, int* lda, float* d, float* e, float* tau, float* w, int* lw, int* info) {
  ready().ssytrd(u, n, a, lda, d, e, tau, w, lw, info);
}
void call_sytrd(char* u, int* n, double* a, int* lda, double* d, double* e, double* tau, double* w, int* lw,
                int* info) {
  ready().dsytrd(u, n, a, lda, d, e, tau, w, lw, info);
}

// A row-major lower L is a column-major upper L^T, and a row-major X [r, c] a column-major X^T [c, r].
template <class T>
void trsm_call(char side, char trans, int64_t m, int64_t n, const T* l, int64_t ldl, T* x, int64_t ldx) {
  char upper = 'U', diagonal = 'N';
  int rows = static_cast<int>(m), columns = static_cast<int>(n), lda = static_cast<int>(ldl),
      ldb = static_cast<int>(ldx);
  T one = 1;
  call_trsm(&side, &upper, &trans, &diagonal, &rows, &columns, &one, const_cast<T*>(l), &lda, x, &ldb);
}

}  // namespace

void set_table(const Table& t) { table = t; }

void set_thread_control(int (*get)(), void (*set)(int)) {
  get_threads = get;
  set_threads = set;
}

ThreadGuard::ThreadGuard() {
  std::lock_guard<std::mutex> lock(guard_mutex);
  if (guards++ == 0 && get_threads) {
    found = get_threads();
    if (found != 1) set_threads(1);
  }
}

ThreadGuard::~ThreadGuard() {
  std::lock_guard<std::mutex> lock(guard_mutex);
  if (--guards == 0 && get_threads && found != 1) set_threads(found);
}

template <class T>
int potrf(int64_t n, T* a, int64_t lda) {
  char upper = 'U';
  int order = static_cast<int>(n), stride = static_cast<int>(lda), info = 0;
  call_potrf(&upper, &order, a, &stride, &info);
  return info;
}

template <class T>
void trsm_panel(int64_t rows, int64_t n, const T* l, int64_t ldl, T* x, int64_t ldx) {
  if (rows > 0) trsm_call('L', 'T', n, rows, l, ldl, x, ldx);
}

template <class T>
void trsm(bool transposed, int64_t n, int64_t c, const T* l, int64_t ldl, T* x, int64_t ldx) {
  if (c > 0 && n > 0) trsm_call('R', transposed ? 'T' : 'N', c, n, l, ldl, x, ldx);
}

template <class T>
void sytrd(int64_t n, T* a, T* d, T* e, T* tau, T* work, int64_t size) {
  char upper = 'U';
  int order = static_cast<int>(n), room = static_cast<int>(size), info = 0;
  call_sytrd(&upper, &order, a, &order, d, e, tau, work, &room, &info);
}

template void sytrd(int64_t, float*, float*, float*, float*, float*, int64_t);
template void sytrd(int64_t, double*, double*, double*, double*, double*, int64_t);
template int potrf(int64_t, float*, int64_t);
template int potrf(int64_t, double*, int64_t);
template void trsm_panel(int64_t, int64_t, const float*, int64_t, float*, int64_t);
template void trsm_panel(int64_t, int64_t, const double*, int64_t, double*, int64_t);
template void trsm(bool, int64_t, int64_t, const float*, int64_t, float*, int64_t);
template void trsm(bool, int64_t, int64_t, const double*, int64_t, double*, int64_t);

}  // namespace ssdd::cpu::blas

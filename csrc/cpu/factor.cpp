#include "factor.h"

#include <cmath>
#include <limits>

#include "blas.h"
#include "team.h"

namespace ssdd::cpu {
namespace {

// One thread factors a diagonal block. At order 96 that costs less than the barriers of smaller blocks.
constexpr int64_t kBlock = 96;
// The sums of the trailing update are the largest rounding error of a factorisation. In small factorisations, whose
// time is spent elsewhere, they are cut into runs: at order 200 that leaves 0.8 of the error of a solve.
constexpr int64_t kShortSums = 256, kShortRun = 32;
constexpr int kJitterSteps = 5;
constexpr int64_t kSolveBlock = 128;  // rows of X per triangular solve
constexpr int64_t kSmallFactor = 32;

// Like LAPACK's potrf on a dense lower triangle, for orders at which a call costs more than its work.
int potrf_small(int64_t n, double* a) {
  for (int64_t j = 0; j < n; ++j) {
    double* row = a + j * n;
    double pivot = row[j];
    for (int64_t k = 0; k < j; ++k) pivot -= row[k] * row[k];
    if (!(pivot > 0)) return static_cast<int>(j + 1);
    row[j] = std::sqrt(pivot);
    const double inverse = 1 / row[j];
    for (int64_t i = j + 1; i < n; ++i) {
      double sum = a[i * n + j];
      for (int64_t k = 0; k < j; ++k) sum -= a[i * n + k] * row[k];
      a[i * n + j] = sum * inverse;
    }
  }
  return 0;
}

// Diagonal blocks have most of the rounding error and little of the work: float problems factor and solve them in
// double.
inline int potrf_wide(int64_t n, double* a, int64_t lda) { return blas::potrf(n, a, lda); }
int potrf_wide(int64_t n, float* a, int64_t lda) {
  double wide[kBlock * kBlock];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) wide[i * n + j] = a[i * lda + j];
  int info = n <= kSmallFactor ? potrf_small(n, wide) : blas::potrf(n, wide, n);
  // A pivot below the rounding error of its own sum is noise. Three equal points have two of them, and their inverses
  // overflow float.
  const double noise = static_cast<double>(n) * std::numeric_limits<double>::epsilon();
  for (int64_t i = 0; i < n && info == 0; ++i)
    if (wide[i * n + i] * wide[i * n + i] <= noise * static_cast<double>(a[i * lda + i]))
      info = static_cast<int>(i + 1);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) a[i * lda + j] = static_cast<float>(wide[i * n + j]);
  return info;
}

inline void trsm_wide(bool transposed, int64_t n, int64_t c, const double* l, int64_t ldl, double* x, int64_t ldx) {
  blas::trsm(transposed, n, c, l, ldl, x, ldx);
}
void trsm_wide(bool transposed, int64_t n, int64_t c, const float* l, int64_t ldl, float* x, int64_t ldx) {
  if (c <= 0) return;
  alignas(64) double wide[kSolveBlock * kSolveBlock], panel[kSolveBlock * kSolveColumns];
  double inverse[kSolveBlock];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) wide[i * n + j] = l[i * ldl + j];
    inverse[i] = 1 / wide[i * n + i];
  }
  micro<float>().solve(transposed, static_cast<int>(n), static_cast<int>(c), wide, inverse, x, ldx, panel);
}

template <class T>
double jitter_step(int attempt) {
  return (sizeof(T) == 4 ? 1e-6 : 1e-12) * std::pow(sizeof(T) == 4 ? 10.0 : 100.0, attempt - 1);
}

template <class T>
int32_t factor_diagonal(int64_t n, int64_t j, int64_t size, T* a) {
  T* block = a + j * n + j;
  int info = potrf_wide(size, block, n);
  if (info == 0)  // LAPACK implementations differ in whether a NaN pivot is a failure; here it is.
    for (int64_t i = 0; i < size && info == 0; ++i)
      if (!std::isfinite(block[i * n + i])) info = static_cast<int>(i + 1);
  return info == 0 ? 0 : static_cast<int32_t>(j + info);
}

// Right-looking blocked Cholesky of the lower triangle, in place.
template <class T>
void factor(const Team& team, const Packing<T>& packing, int64_t n, T* a, int32_t* status) {
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t size = std::min(kBlock, n - j), rest = n - j - size;
    if (team.rank == 0) {
      const int32_t failed = factor_diagonal(n, j, size, a);
      if (failed) *status = failed;
    }
    team.barrier();
    if (*status != 0) return;
    if (rest == 0) break;
    T* panel = a + (j + size) * n + j;
    int64_t begin, end;
    team.share(rest, 8, &begin, &end);
    blas::trsm_panel(end - begin, size, a + j * n + j, n, panel + begin * n, n);
    team.barrier();
    const int64_t run = n <= kShortSums ? kShortRun : size;
    for (int64_t k = 0; k < size; k += run) {
      Product<T> update{rest, rest, std::min(run, size - k), {panel + k, n, 1}, {panel + k, 1, n}, panel + size, n};
      update.alpha = T(-1);
      update.beta = T(1);
      update.lower = true;
      product(team, packing, update);
    }
  }
}

}  // namespace

template <class T>
double ridge_amount(RidgeKind kind, T v, double trace, int64_t order) {
  return static_cast<double>(v) * ridge_slope(kind, trace, order);
}

double ridge_slope(RidgeKind kind, double trace, int64_t order) {
  if (kind == RidgeKind::absolute) return 1;
  return kind == RidgeKind::trace ? trace : trace / static_cast<double>(order);
}

double ridge_trace_slope(RidgeKind kind, bool detach, double v, int64_t order) {
  if (detach || kind == RidgeKind::absolute) return 0;
  return kind == RidgeKind::trace ? v : v / static_cast<double>(order);
}

template <class T>
bool factorise(const Team& team, const Packing<T>& packing, const Factorisation<T>& f, RidgeKind ridge, bool has_ridge,
               T v, int64_t order, OnFailure on_failure) {
  const int64_t n = f.n;
  int64_t begin, end;
  team.share(n, 16, &begin, &end);
  for (int64_t i = begin; i < end; ++i) f.diagonal[i] = f.a[i * n + i];
  team.barrier();
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += static_cast<double>(f.diagonal[i]);
  const double lambda = has_ridge ? ridge_amount(ridge, v, trace, order) : 0;
  const double mean = std::abs(trace) / static_cast<double>(n > 0 ? n : 1);
  const int attempts = on_failure == OnFailure::jitter ? 1 + kJitterSteps : 1;
  double jitter = 0;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    jitter = attempt == 0 ? 0 : jitter_step<T>(attempt) * mean;
    if (attempt > 0) mirror(team, n, f.a, true);
    for (int64_t i = begin; i < end; ++i)
      f.a[i * n + i] = static_cast<T>(static_cast<double>(f.diagonal[i]) + lambda + jitter);
    if (team.rank == 0) *f.status = 0;
    team.barrier();
    factor(team, packing, n, f.a, f.status);
    const bool failed = *f.status != 0;
    team.barrier();  // before rank 0 writes the status again
    if (!failed) break;
  }
  const bool success = *f.status == 0;
  if (team.rank == 0) {
    *f.jitter = static_cast<T>(jitter);
    f.aux[0] = static_cast<T>(trace);
    f.aux[1] = success ? static_cast<T>(lambda) : std::numeric_limits<T>::quiet_NaN();
    f.aux[2] = static_cast<T>(jitter);
  }
  team.barrier();
  return success;
}

template <class T>
void solve_factored(const Team& team, const Packing<T>& packing, int64_t n, const T* l, int64_t c, T* x) {
  if (c == 0 || n == 0) return;
  const int64_t block = n <= kSolveBlock ? n : (c >= 64 ? kSolveBlock : kSolveBlock / 2);
  int64_t begin, end;
  team.share(c, 4, &begin, &end);
  const int64_t blocks = (n + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {  // L z = x
    const int64_t j = b * block, size = std::min(block, n - j), rest = n - j - size;
    trsm_wide(false, size, end - begin, l + j * n + j, n, x + j * c + begin, c);
    team.barrier();
    Product<T> update{
        rest, c, size, {const_cast<T*>(l) + (j + size) * n + j, n, 1}, {x + j * c, c, 1}, x + (j + size) * c, c};
    update.alpha = T(-1);
    update.beta = T(1);
    product(team, packing, update);
  }
  for (int64_t b = blocks - 1; b >= 0; --b) {  // L^T x = z
    const int64_t j = b * block, size = std::min(block, n - j);
    trsm_wide(true, size, end - begin, l + j * n + j, n, x + j * c + begin, c);
    team.barrier();
    Product<T> update{j, c, size, {const_cast<T*>(l) + j * n, 1, n}, {x + j * c, c, 1}, x, c};
    update.alpha = T(-1);
    update.beta = T(1);
    product(team, packing, update);
  }
}

template double ridge_amount(RidgeKind, float, double, int64_t);
template double ridge_amount(RidgeKind, double, double, int64_t);
template bool factorise(const Team&, const Packing<float>&, const Factorisation<float>&, RidgeKind, bool, float,
                        int64_t, OnFailure);
template bool factorise(const Team&, const Packing<double>&, const Factorisation<double>&, RidgeKind, bool, double,
                        int64_t, OnFailure);
template void solve_factored(const Team&, const Packing<float>&, int64_t, const float*, int64_t, float*);
template void solve_factored(const Team&, const Packing<double>&, int64_t, const double*, int64_t, double*);

}  // namespace ssdd::cpu

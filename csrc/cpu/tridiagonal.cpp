// The reduction and the rotations are LAPACK's (sytrd, ormtr); the solves run over columns, so that they are vectors.
#include "../tridiagonal.h"

#include <cmath>
#include <limits>

#include "blas.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kBlock = 64;         // of LAPACK's workspace, per row
constexpr int64_t kColumns = 64;       // of a solve at a time
constexpr int64_t kFactors = 65 * 64;  // of LAPACK's block reflectors
constexpr int kPoints = 16;            // of a bisection at a time

// Runs f(task, worker) for all tasks, each on one thread.
template <class F>
void for_tasks(int64_t tasks, double multiply_adds, int threads, F f) {
  Workers workers(tasks, multiply_adds, threads, 0);
  if (workers.team_size > 1) workers = Workers(1, 0, 1, 0);
  workers.run(tasks, [&](const Team&, int64_t task, int worker) { f(task, worker); });
}

// The number of eigenvalues of T below each of kPoints points: the negative pivots of T - x I.
template <class T>
void count_below(int64_t n, const T* d, const T* e, const double* x, int* count) {
  double pivot[kPoints];
  for (int p = 0; p < kPoints; ++p) {
    pivot[p] = static_cast<double>(d[0]) - x[p];
    count[p] = pivot[p] < 0;
  }
  for (int64_t i = 1; i < n; ++i) {
    const double square = static_cast<double>(e[i - 1]) * static_cast<double>(e[i - 1]);
    const double own = static_cast<double>(d[i]);
    for (int p = 0; p < kPoints; ++p) {
      const double before = std::fabs(pivot[p]) < 1e-290 ? -1e-290 : pivot[p];
      pivot[p] = own - x[p] - square / before;
      count[p] += pivot[p] < 0;
    }
  }
}

// The largest x with fewer than `rank` eigenvalues below it: the eigenvalue number `rank`.
template <class T>
double eigenvalue(int64_t n, const T* d, const T* e, int64_t rank, double low, double high) {
  const double size = std::max(std::fabs(low), std::fabs(high));
  const double enough = static_cast<double>(std::numeric_limits<T>::epsilon()) * size / 4;
  for (int round = 0; round < 16 && high - low > enough; ++round) {
    double x[kPoints];
    int count[kPoints];
    const double step = (high - low) / (kPoints + 1);
    for (int p = 0; p < kPoints; ++p) x[p] = low + step * (p + 1);
    count_below(n, d, e, x, count);
    int p = 0;
    while (p < kPoints && count[p] < rank) ++p;
    if (p < kPoints) high = x[p];
    if (p > 0) low = x[p - 1];
  }
  return low + (high - low) / 2;
}

template <class T>
void find_bounds(int64_t n, const T* d, const T* e, T* bounds) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (int64_t i = 0; i < n; ++i) {
    const double radius =
        (i > 0 ? std::fabs(static_cast<double>(e[i - 1])) : 0) + (i + 1 < n ? std::fabs(static_cast<double>(e[i])) : 0);
    low = std::min(low, static_cast<double>(d[i]) - radius);
    high = std::max(high, static_cast<double>(d[i]) + radius);
  }
  bounds[0] = static_cast<T>(eigenvalue(n, d, e, 1, low, high));
  bounds[1] = static_cast<T>(eigenvalue(n, d, e, n, low, high));
}

}  // namespace

int64_t tridiagonal_workspace(int64_t n, int64_t m, int threads) {
  return (std::max(n, m) * kBlock + n * kColumns + kFactors) * threads;
}

template <class T>
void tridiagonal(const TridiagonalArgs<T>& a) {
  const blas::ThreadGuard guard;
  const int64_t n = a.n, own = tridiagonal_workspace(n, 0, 1);
  const double work = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  for_tasks(a.batch, work, a.threads, [&](int64_t b, int worker) {
    const View<const T> from = a.a[b];
    T *q = a.reflectors + b * n * n, *d = a.diagonal + b * n, *e = a.beside + b * n;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) q[i * n + j] = from(i, j);
      for (int64_t j = i + 1; j < n; ++j) q[i * n + j] = T(0);
    }
    a.tau[b * n + n - 1] = e[n - 1] = T(0);
    blas::sytrd(n, q, d, e, a.tau + b * n, a.work + worker * own, n * kBlock);
    find_bounds(n, d, e, a.bounds + 2 * b);
  });
}

template <class T>
void tridiagonal_rotate(const RotateArgs<T>& a) {
  const blas::ThreadGuard guard;
  const int64_t own = tridiagonal_workspace(a.n, a.m, 1);
  // The columns of X are independent.
  const int64_t parts = a.batch < a.threads ? std::max<int64_t>(1, std::min<int64_t>(a.threads, a.m / 16)) : 1;
  const double work = static_cast<double>(a.n) * static_cast<double>(a.n) * static_cast<double>(a.m / parts);
  for_tasks(a.batch * parts, work, a.threads, [&](int64_t task, int worker) {
    const int64_t b = task / parts, part = task % parts;
    const int64_t begin = a.m * part / parts, end = a.m * (part + 1) / parts;
    blas::ormtr(a.transposed, a.n, end - begin, a.reflectors + b * a.n * a.n, a.tau + b * a.n,
                a.x + b * a.n * a.m + begin, a.m, a.work + worker * own, own);
  });
}

template <class T>
void tridiagonal_solve(const ShiftedSolveArgs<T>& a) {
  const int64_t n = a.n, own = tridiagonal_workspace(n, 0, 1), chunks = (a.c + kColumns - 1) / kColumns;
  const double work = 8.0 * static_cast<double>(n) * static_cast<double>(std::min(a.c, kColumns));
  for_tasks(a.batch * a.r * chunks, work, a.threads, [&](int64_t task, int worker) {
    const int64_t b = task / (a.r * chunks), r = task / chunks % a.r, first = task % chunks * kColumns;
    const int columns = static_cast<int>(std::min(kColumns, a.c - first));
    const T *d = a.diagonal + b * n, *e = a.beside + b * n;
    const T* shift = a.shifts + (b * a.r + r) * (a.shared_shift ? 1 : a.c) + (a.shared_shift ? 0 : first);
    const int64_t ys = (a.shared_y ? 1 : a.r) * a.c, xs = a.r * a.c;
    const T* y = a.y + b * n * ys + (a.shared_y ? 0 : r * a.c) + first;
    T *x = a.x + b * n * xs + r * a.c + first, *inverse = a.work + worker * own;
    for (int64_t i = 0; i < n; ++i) {
      T *now = inverse + i * kColumns, *out = x + i * xs;
      const T *before = now - kColumns, *in = y + i * ys, *last = out - xs;
      if (i == 0) {
        for (int j = 0; j < columns; ++j) now[j] = T(1) / (d[0] + shift[a.shared_shift ? 0 : j]);
        std::copy(in, in + columns, out);
      } else if (a.shared_shift) {
        // One pivot for all columns; before[0] is the last one.
        const T factor = e[i - 1] * before[0];
        now[0] = T(1) / (d[i] + shift[0] - e[i - 1] * factor);
        for (int j = 0; j < columns; ++j) out[j] = in[j] - factor * last[j];
      } else {
        for (int j = 0; j < columns; ++j) {
          const T factor = e[i - 1] * before[j];
          now[j] = T(1) / (d[i] + shift[j] - e[i - 1] * factor);
          out[j] = in[j] - factor * last[j];
        }
      }
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      T *out = x + i * xs, *now = inverse + i * kColumns;
      const T *next = out + xs, *in = now;
      const T off = i + 1 < n ? e[i] : T(0);
      if (i + 1 == n) next = out;
      if (a.shared_shift)
        for (int j = 0; j < columns; ++j) out[j] = (out[j] - off * next[j]) * in[0];
      else
        for (int j = 0; j < columns; ++j) out[j] = (out[j] - off * next[j]) * in[j];
    }
  });
}

template void tridiagonal(const TridiagonalArgs<float>&);
template void tridiagonal(const TridiagonalArgs<double>&);
template void tridiagonal_rotate(const RotateArgs<float>&);
template void tridiagonal_rotate(const RotateArgs<double>&);
template void tridiagonal_solve(const ShiftedSolveArgs<float>&);
template void tridiagonal_solve(const ShiftedSolveArgs<double>&);

}  // namespace ssdd::cpu

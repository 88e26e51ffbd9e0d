// The reduction is LAPACK's (sytrd). The rotations are products of blocks of its reflectors. The solves run over
// columns, so that they are vectors.
#include "../tridiagonal.h"

#include <cmath>
#include <limits>

#include "../arena.h"
#include "blas.h"
#include "product.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kBlock = 64;         // of LAPACK's workspace, per row
constexpr int64_t kColumns = 64;       // of a solve at a time
constexpr int64_t kFactors = 65 * 64;  // of LAPACK's block reflectors
constexpr int64_t kReflectors = 48;    // applied at a time
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

// Memory to apply blocks of reflectors H_k ... H_1 = I - V^T T V, whose rows V are [kReflectors, n].
template <class T>
struct Rotation {
  T *v, *inner, *factor, *moment, *turned, *pack;
  int64_t total, widest;
};

template <class T>
Rotation<T> rotation_layout(int64_t n, int64_t m, T* memory) {
  Arena<T> arena{memory};
  Rotation<T> w{};
  w.v = arena.take(kReflectors * n);
  w.inner = arena.take(kReflectors * kReflectors);
  w.factor = arena.take(kReflectors * kReflectors);
  w.moment = arena.take(kReflectors * m);
  w.turned = arena.take(kReflectors * m);
  w.widest = std::max({n, m, kReflectors});
  w.pack = arena.take(packing_elements(w.widest, 1));
  w.total = arena.used;
  return w;
}

// Brings the reflectors of rows [first, last) of sytrd's matrix into v, and T of their product into factor. The reflector
// of row r is its first r - 1 elements, then 1.
template <class T>
void load_block(int64_t n, int64_t first, int64_t last, const T* reflectors, const T* tau, const Packing<T>& pack,
                const Rotation<T>& w) {
  const int64_t count = last - first, width = last - 1;
  for (int64_t i = 0; i < count; ++i) {
    T* v = w.v + i * n;
    const int64_t r = first + i;
    std::copy(reflectors + r * n, reflectors + r * n + r - 1, v);
    v[r - 1] = T(1);
    std::fill(v + r, v + width, T(0));
  }
  Product<T> p{count, count, width, {w.v, n, 1}, {w.v, 1, n}, w.inner, kReflectors};
  p.lower = true;
  product(Team{}, pack, p);
  for (int64_t i = count - 1; i >= 0; --i) {
    const T scale = tau[first + i - 1];
    T* t = w.factor;
    for (int64_t r = 0; r < i; ++r) t[r * kReflectors + i] = T(0);
    t[i * kReflectors + i] = scale;
    for (int64_t r = i + 1; r < count; ++r) {
      T sum = T(0);
      for (int64_t k = i + 1; k <= r; ++k) sum += t[r * kReflectors + k] * w.inner[k * kReflectors + i];
      t[r * kReflectors + i] = -scale * sum;
    }
  }
}

// X <- Q X or Q^T X for X [n, m] with row stride ld; Q = H_(n - 1) ... H_1, the reflector H_r from row r.
template <class T>
void rotate(int64_t n, int64_t m, const T* reflectors, const T* tau, bool transposed, T* x, int64_t ld,
            const Rotation<T>& w) {
  const Packing<T> pack = packing(w.pack, w.widest, 1);
  const int64_t blocks = (n - 1 + kReflectors - 1) / kReflectors;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = 1 + (transposed ? blocks - 1 - block : block) * kReflectors;
    const int64_t last = std::min(n, first + kReflectors), count = last - first, width = last - 1;
    load_block(n, first, last, reflectors, tau, pack, w);
    const View<const T> v{w.v, n, 1}, t{w.factor, kReflectors, 1};
    product(Team{}, pack, Product<T>{count, m, width, v, {x, ld, 1}, w.moment, m});
    product(Team{}, pack, Product<T>{count, m, count, transposed ? t.t() : t, {w.moment, m, 1}, w.turned, m});
    Product<T> change{width, m, count, v.t(), {w.turned, m, 1}, x, ld};
    change.alpha = T(-1);
    change.beta = T(1);
    product(Team{}, pack, change);
  }
}

}  // namespace

int64_t tridiagonal_workspace(int64_t n, int64_t m, int threads) {
  const int64_t reduction = n * kBlock + kFactors, solve = n * kColumns;
  const int64_t rotation = m > 0 ? rotation_layout<float>(n, m, nullptr).total : 0;
  return std::max({reduction, solve, rotation}) * threads;
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
  if (a.m == 0) return;  // the workspace has no room for a rotation
  const int64_t own = tridiagonal_workspace(a.n, a.m, 1);
  // The columns of X are independent.
  const int64_t parts = a.batch < a.threads ? std::max<int64_t>(1, std::min<int64_t>(a.threads, a.m / 16)) : 1;
  const double work = static_cast<double>(a.n) * static_cast<double>(a.n) * static_cast<double>(a.m / parts);
  for_tasks(a.batch * parts, work, a.threads, [&](int64_t task, int worker) {
    const int64_t b = task / parts, part = task % parts;
    const int64_t begin = a.m * part / parts, end = a.m * (part + 1) / parts;
    const Rotation<T> w = rotation_layout(a.n, a.m, a.work + worker * own);
    rotate(a.n, end - begin, a.reflectors + b * a.n * a.n, a.tau + b * a.n, a.transposed, a.x + b * a.n * a.m + begin,
           a.m, w);
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

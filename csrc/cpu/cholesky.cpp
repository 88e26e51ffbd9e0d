// Batched Cholesky, solve and its backward on the CPU: blocked, LAPACK on the diagonal blocks, own products between.
#include "../cholesky.h"

#include "../arena.h"
#include "blas.h"
#include "factor.h"
#include "kernel.h"
#include "lanes.h"
#include "team.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

template <class T>
struct Work {
  T *diagonal, *partial, *pair, *pack;
  int64_t total;
};

template <class T>
Work<T> layout(int64_t s, int64_t c, int threads, T* memory) {
  Arena<T> arena{memory};
  Work<T> w;
  w.diagonal = arena.take(s);
  w.partial = arena.take(s);
  w.pair = arena.take(s * 3 * c);
  w.pack = arena.take(packing_elements(std::max(s, c), threads));
  w.total = arena.used;
  return w;
}

double work_of(int64_t s, int64_t c) {
  const double n = static_cast<double>(s);
  return n * n * n / 6 + n * n * static_cast<double>(c);
}

}  // namespace

int64_t cholesky_workspace(int64_t batch, int64_t s, int64_t c, int threads) {
  const int64_t alone = layout<float>(s, c, 1, nullptr).total * std::min<int64_t>(batch, threads);
  const int64_t by_lanes = lanes_fit(batch, s) ? lanes_workspace(batch, s, c, threads) : 0;
  return std::max({alone, by_lanes, layout<float>(s, c, threads, nullptr).total});
}

namespace {

// Problem b alone.
template <class T>
SolveArgs<T> only(SolveArgs<T> a, int64_t b) {
  a.a.p += b * a.a.bs;
  if (a.y) a.y.p += b * a.y.bs;
  a.factor += b * a.s * a.s;
  if (a.x) a.x += b * a.s * a.c;
  a.jitter += b;
  a.aux += 3 * b;
  a.status += b;
  if (a.hyper.tensor) a.hyper.tensor += b * a.hyper.bs;
  a.batch = 1;
  a.threads = 1;
  return a;
}

// One team per problem.
template <class T>
void solve_by_teams(const SolveArgs<T>& a) {
  const Workers workers(a.batch, work_of(a.s, a.c), a.threads, 8);
  const int64_t n = a.s, stride = layout<T>(n, a.c, workers.team_size, nullptr).total;
  workers.run(a.batch, [&](const Team& team, int64_t b, int worker) {
    const Work<T> w = layout(n, a.c, workers.team_size, a.work + worker * stride);
    const Packing<T> pack = packing(w.pack, std::max(n, a.c), workers.team_size);
    T* l = a.factor + b * n * n;
    T* x = a.x ? a.x + b * n * a.c : nullptr;
    bool success = false;
    if (ridge_valid(a.hyper, b)) {
      const View<const T> in = a.a[b];
      int64_t begin, end;
      team.share(n, 1, &begin, &end);
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j <= i; ++j) l[i * n + j] = in(i, j);
      team.barrier();
      if (a.on_failure == OnFailure::jitter) mirror(team, n, l);
      success = factorise(team, pack, {n, l, w.diagonal, true, a.status + b, a.jitter + b, a.aux + 3 * b}, a.ridge,
                          a.hyper.count > 0, a.hyper.count ? a.hyper.get(b, a.hyper.count - 1) : T(0), n, a.on_failure);
    } else {
      if (team.rank == 0) {
        a.status[b] = kBadParameter;
        a.jitter[b] = T(0);
        a.aux[3 * b] = a.aux[3 * b + 1] = a.aux[3 * b + 2] = std::numeric_limits<T>::quiet_NaN();
      }
      team.barrier();
    }
    if (!success) {
      fill_nan(team, n * n, l);
      fill_nan(team, n * a.c, x);
    }
    zero_above_diagonal(team, n, l);
    if (success && x) {
      copy(team, n, a.c, a.y[b], x, a.c);
      solve_factored(team, pack, n, l, a.c, x);
    }
  });
}

}  // namespace

template <class T>
void solve(const SolveArgs<T>& a) {
  const blas::ThreadGuard guard;
  if (!lanes_fit(a.batch, a.s)) return solve_by_teams(a);
  solve_by_lanes(a);
  if (a.on_failure != OnFailure::jitter) return;
  for (int64_t b = 0; b < a.batch; ++b)
    if (a.status[b] > 0) solve_by_teams(only(a, b));
}

template <class T>
void solve_backward(const SolveBackwardArgs<T>& a) {
  const blas::ThreadGuard guard;
  if (a.c > 0 && lanes_fit(a.batch, a.s)) return solve_backward_by_lanes(a);
  const Workers workers(a.batch, work_of(a.s, 2 * a.c), a.threads, 8);
  const int64_t n = a.s, c = a.c, stride = layout<T>(n, c, workers.team_size, nullptr).total;
  workers.run(a.batch, [&](const Team& team, int64_t b, int worker) {
    const Work<T> w = layout(n, c, workers.team_size, a.work + worker * stride);
    const Packing<T> pack = packing(w.pack, std::max(n, c), workers.team_size);
    T* u = a.grad_y + b * n * c;
    T* abar = a.grad_a ? a.grad_a + b * n * n : nullptr;
    const T* x = a.x + b * n * c;
    const T* aux = a.aux + 3 * b;
    if (std::isnan(aux[1])) {
      fill_nan(team, n * c, u);
      fill_nan(team, n * n, abar);
      if (a.grad_v && team.rank == 0) a.grad_v[b] = std::numeric_limits<T>::quiet_NaN();
      return;
    }
    copy(team, n, c, a.grad[b], u, c);
    solve_factored(team, pack, n, a.factor + b * n * n, c, u);
    const double lambda_bar = -dot(team, n, c, u, x, w.partial);
    if (a.grad_v && team.rank == 0)
      a.grad_v[b] = static_cast<T>(lambda_bar * ridge_slope(a.ridge, static_cast<double>(aux[0]), n));
    if (!abar) return;
    // [x | u] [u | x]^T = x u^T + u x^T as one product over one triangle.
    copy<T>(team, n, c, {x, c, 1}, w.pair, 3 * c);
    copy<T>(team, n, c, {u, c, 1}, w.pair + c, 3 * c);
    copy<T>(team, n, c, {x, c, 1}, w.pair + 2 * c, 3 * c);
    Product<T> p{n, n, 2 * c, {w.pair, 3 * c, 1}, {w.pair + c, 1, 3 * c}, abar, n};
    p.alpha = T(-0.5);
    p.lower = true;
    product(team, pack, p);
    const double v = a.hyper.count ? static_cast<double>(a.hyper.get(b, a.hyper.count - 1)) : 0;
    const double through_trace = a.hyper.count ? ridge_trace_slope(a.ridge, a.detach, v, n) * lambda_bar : 0;
    if (through_trace != 0 && team.rank == 0)
      for (int64_t i = 0; i < n; ++i) abar[i * n + i] += static_cast<T>(through_trace);
    team.barrier();
    mirror(team, n, abar);
  });
}

template void solve(const SolveArgs<float>&);
template void solve(const SolveArgs<double>&);
template void solve_backward(const SolveBackwardArgs<float>&);
template void solve_backward(const SolveBackwardArgs<double>&);

}  // namespace ssdd::cpu

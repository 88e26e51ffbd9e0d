// The ops solve and solve_backward on the GPU: the ladder of factor.cuh, and one product for Abar. See cholesky.h.
//
// Mapping: as in factor.cuh and product.cuh. ridge_kernel: one block per problem, one thread per element of the
// diagonal.
// Traffic: solve reads n^2 / 2 elements and n c of y, and writes n^2 and n c. The backward reads n^2 / 2 and 2 n c,
// writes n^2 and n c, and moves 5 n c through the pack [-u | x | -u].
// FLOPs: n^3 / 3 + 2 n^2 c; backward 4 n^2 c (2 n^2 c for the solve, 2 n^2 c for one triangle of Abar).
// Floor on an H100 at n = 512, c = 10: 3.1 MB, 0.9 us, and the chain of 512 pivots, about 30 us.
// Other path: none here; factor.cuh chooses the path by size.
#include "../cholesky.h"

#include "../arena.h"
#include "factor.cuh"
#include "vector.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Work {
  T *scalars, *factor, *pack, *partial;
  int* counters;
  int64_t total;
};

template <class T>
Work<T> layout(int64_t batch, int64_t s, int64_t c, T* memory) {
  Arena<T> arena{memory};
  Work<T> w;
  w.scalars = arena.take(batch * kScalars);
  w.factor = arena.take(factor_room(batch, s, c));
  w.pack = arena.take(batch * s * 3 * c);
  w.partial = arena.take(after_solve_room(batch, s, c));
  w.counters = reinterpret_cast<int*>(arena.take(batch));
  w.total = arena.used;
  return w;
}

// Computes vbar, and adds the trace's part to the diagonal of Abar. One block per problem, one thread per element of
// the diagonal.
template <class T>
SIMT_KERNEL(kThreads)
void ridge_kernel(int64_t s, const T* scalars, const T* aux, RidgeKind ridge, T* a_bar, T* v_bar) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x;
  const T* own = scalars + b * kScalars;
  if (v_bar && simt::thread() == 0)  // lbar of a failed problem is NaN
    v_bar[b] =
        static_cast<T>(static_cast<double>(own[kLambdaBar]) * ridge_slope(ridge, static_cast<double>(aux[3 * b]), s));
  if (!a_bar || own[kThroughTrace] == T(0)) return;
  for (int64_t i = simt::thread(); i < s; i += kThreads) {
    T* element = a_bar + (b * s + i) * s + i;
    simt::store(element, simt::load(element) + own[kThroughTrace]);
  }
}

}  // namespace

int64_t cholesky_workspace(int64_t batch, int64_t s, int64_t c) { return layout<float>(batch, s, c, nullptr).total; }

template <class T>
void solve(const SolveArgs<T>& a, Stream stream) {
  if (a.batch == 0 || a.s == 0) return;
  const Work<T> w = layout(a.batch, a.s, a.c, a.work);
  ScalarArgs<T> scalars{};
  scalars.batch = a.batch;
  scalars.hyper = a.hyper;
  scalars.out = w.scalars;
  set_scalars(scalars, stream);

  Factor<T> f{};
  f.batch = a.batch;
  f.n = a.s;
  f.order = a.s;
  f.source = a.a;
  f.factor = a.factor;
  f.zero_upper = true;
  f.y = a.y;
  f.x = a.x;
  f.c = a.c;
  f.scalars = w.scalars;
  f.ridge = a.ridge;
  f.on_failure = a.on_failure;
  f.status = a.status;
  f.jitter = a.jitter;
  f.aux = a.aux;
  f.work = w.factor;
  f.cluster = a.cluster;
  factorise(f, stream);
}

template <class T>
void solve_backward(const SolveBackwardArgs<T>& a, Stream stream) {
  if (a.batch == 0 || a.s == 0) return;
  const int64_t s = a.s, c = a.c;
  const Work<T> w = layout(a.batch, s, c, a.work);
  ScalarArgs<T> scalars{};
  scalars.batch = a.batch;
  scalars.hyper = a.hyper;
  scalars.out = w.scalars;
  scalars.counters = w.counters;
  scalars.counter_count = a.batch;
  set_scalars(scalars, stream);

  T* u = a.grad_y;
  copy<T>({a.batch, s, c, a.grad, u, s * c, c}, stream);
  AfterSolve<T> after{};
  after.batch = a.batch;
  after.rows = s;
  after.columns = c;
  after.x = a.x;
  after.u = u;
  after.pack = a.grad_a ? w.pack : nullptr;
  after.aux = a.aux;
  after.ridge = a.ridge;
  after.detach = a.detach || a.hyper.count == 0;
  after.order = s;
  after.scalars = w.scalars;
  after.partial = w.partial;
  after.counters = w.counters;
  solve_factored(after, a.factor, w.factor, stream);

  if (a.grad_a) {
    // [-u | x] [x | -u]^T = -x u^T - u x^T as one product over one triangle.
    Product<T> p{};
    p.batch = a.batch;
    p.m = p.n = s;
    p.k = 2 * c;
    p.a = {w.pack, s * 3 * c, 3 * c, 1};
    p.b = {w.pack + c, s * 3 * c, 1, 3 * c};
    p.c = a.grad_a;
    p.c_bs = s * s;
    p.ld = s;
    p.alpha = 0.5;
    p.triangle = Triangle::both;
    p.lambda_of = a.aux + 1;
    product(p, stream);
  }
  if (a.grad_v || a.grad_a)
    simt::launch(&ridge_kernel<T>, {static_cast<unsigned>(a.batch)}, kThreads, 0, stream, s, w.scalars, a.aux, a.ridge,
                 a.grad_a, a.grad_v);
}

#define SSDD_INSTANTIATE(T)                         \
  template void solve(const SolveArgs<T>&, Stream); \
  template void solve_backward(const SolveBackwardArgs<T>&, Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

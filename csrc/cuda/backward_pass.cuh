// What the backward passes of KRR have in common: views, K_qs and Kbar in chunks of queries, the solve, and writing of
// gradients. krr.h has the formulas.
#pragma once
#include "../krr.h"
#include "krr_work.cuh"

namespace ssdd::cuda {

template <class T>
struct BackwardPass : KrrPass<T> {
  BackwardPass(const KrrBackwardArgs<T>& args, const KrrWork<T>& work, simt::Stream stream)
      : KrrPass<T>{args.shape, work, stream}, a(args), x_s(args.x_s, args.s_element), x_q(args.x_q, args.q_element),
        u(args.grad_y_s ? args.grad_y_s : work.u), alpha(dense(args.coef, args.shape.s, args.shape.c)) {}

  using KrrPass<T>::s;
  using KrrPass<T>::w;
  using KrrPass<T>::stream;
  using KrrPass<T>::counters;
  using KrrPass<T>::scalar;
  using KrrPass<T>::dense;
  using KrrPass<T>::t;
  using KrrPass<T>::from;
  using KrrPass<T>::make;
  using KrrPass<T>::run;
  using KrrPass<T>::multiply;
  using KrrPass<T>::lengths;
  using KrrPass<T>::map;
  using KrrPass<T>::kept_bs;

  const KrrBackwardArgs<T>& a;
  const Source<T> x_s, x_q;
  T* const u;
  const Batch<const T> alpha;

  // The scalars of this pass.
  ScalarArgs<T> scalars() const {
    ScalarArgs<T> scalars = this->scalar_args(a.hyper);
    scalars.g = a.g;
    scalars.g_factor = 2.0 / (static_cast<double>(s.q) * static_cast<double>(s.c));
    return scalars;
  }

  int64_t uc() const { return s.s * s.c; }
  T* column_row(int i) const { return w.columns + i * s.batch * w.width; }

  // K_qs of the queries from q0 on: kept by the forward, or formed again.
  Batch<const T> k_chunk(int64_t q0, int64_t rows) {
    if (a.kept) return {a.kept + q0 * s.s, kept_bs(), s.s, 1};
    T* const first = keeps_argument(s.kernel) ? w.arguments : w.chunk;
    Product<T> gram = make(rows, s.s, s.d, from(x_q, q0), t(x_s), first, s.chunk * s.s);
    apply_kernel(gram, s.kernel, w.scalars);
    run(gram);
    lengths(from(x_q, q0), rows, false);
    map(rows, false, first, gram.c_bs, w.chunk, gram.c_bs);
    return {w.chunk, s.chunk * s.s, s.s, 1};
  }

  // Computes abar = K_qs^T Pbar from chunks of K_qs, with another product beside the first of them.
  void alpha_bar_dense(const Product<T>* beside = nullptr) {
    for (int64_t q0 = 0; q0 < s.q; q0 += s.chunk) {
      const int64_t rows = std::min(s.chunk, s.q - q0);
      const Batch<const T> k = k_chunk(q0, rows);
      Product<T> p = make(s.s, s.c, rows, t(k), from(a.e, q0), u, uc());
      p.alpha_of = scalar(kGamma);
      p.accumulate = q0 > 0;
      if (beside && q0 == 0)
        run(*beside, p);
      else
        run(p);
    }
    if (beside && s.q == 0) run(*beside);
    if (s.q == 0) fill(s.batch * uc(), 0, u, stream);
  }

  // Solves for `x` [n, C] in place, and runs after_solve in the same launch.
  void solve(int64_t n, T* x, T* pack) {
    AfterSolve<T> after{};
    after.batch = s.batch;
    after.rows = n;
    after.columns = s.c;
    after.x = a.coef;
    after.u = x;
    after.pack = pack;
    after.aux = a.aux;
    after.ridge = s.ridge;
    after.detach = s.detach;
    after.order = s.s;
    after.scalars = w.scalars;
    after.partial = w.partial;
    after.counters = counters();
    solve_factored(after, a.factor, w.factor, stream);
  }
  // The neighbouring pairs [-U | alpha] and [alpha | -U] of the pack [-U | alpha | -U].
  Source<T> u_alpha() const { return {w.pack, 3 * uc(), 3 * s.c, 1}; }
  Source<T> alpha_u() const { return u_alpha().from(0, s.c); }

  // Writes a gradient. It is NaN if the problem failed.
  void write(Product<T> p, const T* alpha_of, bool accumulate = false) {
    p.lambda_of = a.aux + 1;
    multiply(p, 1, alpha_of, accumulate);
  }

  // Computes 2 Kbar_ss = -(U alpha^T + alpha U^T) into k_bar, both triangles.
  Product<T> two_k_bar() const {
    Product<T> p = make(s.s, s.s, 2 * s.c, u_alpha(), t(alpha_u()), w.k_bar, s.s * s.s);
    p.triangle = Triangle::both;
    return p;
  }

  // Computes chunk_bar = Kbar_qs of the queries from q0 on.
  Product<T> bar_chunk(int64_t q0, int64_t rows) const {
    Product<T> p = make(rows, s.s, s.c, from(a.e, q0), t(alpha), w.chunk_bar, s.chunk * s.s);
    p.alpha_of = scalar(kGamma);
    return p;
  }
  Batch<const T> bar() const { return {w.chunk_bar, s.chunk * s.s, s.s, 1}; }
};

// The backward of every kernel but the linear one (krr_backward_kernels.cu).
template <class T>
void backward_of_kernels(const KrrBackwardArgs<T>& args, const KrrWork<T>& work, simt::Stream stream);

}  // namespace ssdd::cuda

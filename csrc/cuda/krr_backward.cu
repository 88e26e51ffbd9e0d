// KRR backward on the GPU, from the forward's factor and coefficients. krr.h has the formulas and plans. As in the
// forward, products of the whole batch run on one stream.
//
// Launches with the gradients to X_s and Y_s: low rank 6, mixed 7, dense 4 and 3 per chunk of K_qs (one fewer if abar
// is computed beside M, or Kbar_qs beside Kbar_ss). One more for X_q (two in mixed and dense, which have no W), one for
// the hyper-parameters, two for a factor larger than one block. Other kernels than the linear one: 9 and 7 per chunk,
// two more for X_q; those of an angle one for each set of squared lengths, and no mirror. The two forms of krr.h are a pair of launches, each of which skips the problems of the other form.
// Mapping: as in product.cuh and factor.cuh. slope_kernel and shift_kernel: one block per row. hyper_kernel: one block
// per 32 columns; the last of a problem's blocks computes the gradients (join.cuh). alpha_sum_kernel: one block per
// problem. rbf_hyper_kernel: one thread per problem.
// Traffic: X_s, X_q, R, the factor and alpha once, each gradient once; dense also K_qs and Kbar_qs. slope_kernel reads
// two elements and writes one per element of K; shift_kernel reads and writes one per element, and one number per row;
// hyper_kernel reads R, U and alpha.
// FLOPs: low rank 2 (Q + S) D C for M and abar, 2 S^2 C, 4 S D C for W and V, 4 S D C for Xbar_s; dense 2 Q S C twice,
// 2 S^2 C, 2 S^2 D, 2 Q S D; slope_kernel about 8 per element.
// Floor on an H100: benchmarks/results/sass.md for the sizes of the speed table; slope_kernel 12 bytes per element /
// 3.35 TB/s.
// Other path: the other plans, chosen by ssdd_ext/plan. Other kernels than the linear one have only the dense plan.
#include "../krr.h"
#include "backward_kernels.cuh"
#include "krr_work.cuh"

namespace ssdd::cuda {
namespace {

template <class T>
class Backward : KrrPass<T> {
 public:
  Backward(const KrrBackwardArgs<T>& args, const KrrWork<T>& work, simt::Stream stream)
      : KrrPass<T>{args.shape, work, stream}, a(args), x_s(args.x_s, args.s_element), x_q(args.x_q, args.q_element),
        u(args.grad_y_s ? args.grad_y_s : work.u), alpha(dense(args.coef, args.shape.s, args.shape.c)) {}

  void run_all() {
    const double points = static_cast<double>(s.q) * static_cast<double>(s.c);
    ScalarArgs<T> scalars = this->scalar_args(a.hyper);
    scalars.g = a.g;
    scalars.g_factor = 2.0 / points;
    // The column sums of Pbar, for the term bias 1 (1^T Pbar) of abar.
    if ((s.plan == Plan::low_rank || s.plan == Plan::mixed) && !a.kept) {
      scalars.e = a.e;
      scalars.e_rows = s.q;
      scalars.e_columns = s.c;
      scalars.column_sums = column_row(0);
      scalars.sums_bs = w.width;
    }
    set_scalars(scalars, stream);
    if (s.plan == Plan::primal)
      primal();
    else if (s.kernel != KernelKind::linear)
      nonlinear();
    else if (s.plan == Plan::low_rank)
      low_rank();
    else
      dense_or_mixed();
  }

 private:
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
  using KrrPass<T>::sums;
  using KrrPass<T>::lengths;
  using KrrPass<T>::map;
  using KrrPass<T>::kept_bs;
  using KrrPass<T>::place;

  int64_t uc() const { return s.s * s.c; }
  T* column_row(int i) const { return w.columns + i * s.batch * w.width; }
  Batch<const T> weights_view(const T* p, int copies) const { return {p, copies * s.c * s.d, s.d, 1}; }

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

  // Computes M = Pbar^T X_q into the second C rows of the weights, and abar = scale X_s M^T + bias 1 (1^T Pbar).
  void alpha_bar_low_rank() {
    T* m = w.weights + s.c * s.d;
    Product<T> moment = make(s.c, s.d, s.q, t(a.e), x_q, m, 2 * s.c * s.d);
    moment.alpha_of = scalar(kGamma);
    if (a.kept) return alpha_bar_dense(&moment);
    run(moment);
    Product<T> p = make(s.s, s.c, s.d, x_s, t(weights_view(m, 2)), u, uc());
    p.alpha_of = scalar(kScale);
    p.row = column_row(0);
    p.row_bs = w.width;
    run(p);
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

  Product<T> with_trace(Product<T> p) const {
    p.add = x_s;
    p.add_of = scalar(kTraceScale);
    return p;
  }

  void low_rank() {
    T* const weights = w.weights;
    const int64_t bs = 2 * s.c * s.d;
    alpha_bar_low_rank();
    solve(s.s, u, a.grad_x_s ? w.pack : nullptr);
    if (a.grad_x_s) {
      // [alpha | -U]^T X_s gives W, and adds -V to M. Then Xbar_s = scale [-U | alpha] [W; M - V] + the trace's part.
      Product<T> both = make(2 * s.c, s.d, s.s, t(alpha_u()), x_s, weights, bs);
      both.accumulate_from = s.c;
      multiply(both, 1, nullptr, true);
      write(with_trace(make(s.s, s.d, 2 * s.c, u_alpha(), weights_view(weights, 2), a.grad_x_s, s.s * s.d)),
            scalar(kScale));
    } else if (a.grad_x_q) {
      run(make(s.c, s.d, s.s, t(alpha), x_s, weights, bs));
    }
    if (a.grad_x_q)
      write(make(s.q, s.d, s.c, a.e, weights_view(weights, 2), a.grad_x_q, s.q * s.d), scalar(kGammaScale));
    linear_hyper({alpha, s.s});
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

  void dense_or_mixed() {
    const bool mixed = s.plan == Plan::mixed;
    const int copies = mixed ? 2 : 1;
    if (mixed)
      alpha_bar_low_rank();
    else
      alpha_bar_dense();
    solve(s.s, u, a.grad_x_s ? w.pack : nullptr);
    if (a.grad_x_s) {
      const bool together = !mixed && s.q > 0 && s.q <= s.chunk;  // Kbar_qs in the launch of Kbar_ss
      if (together)
        run(two_k_bar(), bar_chunk(0, s.q));
      else
        run(two_k_bar());
      write(with_trace(make(s.s, s.d, s.s, dense(w.k_bar, s.s, s.s), x_s, a.grad_x_s, s.s * s.d)), scalar(kScale));
      if (mixed)
        multiply(make(s.s, s.d, s.c, alpha, weights_view(w.weights + s.c * s.d, 2), a.grad_x_s, s.s * s.d), 1,
                 scalar(kScale), true);
      for (int64_t q0 = 0; !mixed && q0 < s.q; q0 += s.chunk) {
        const int64_t rows = std::min(s.chunk, s.q - q0);
        if (!together) run(bar_chunk(q0, rows));
        multiply(make(s.s, s.d, rows, t(bar()), from(x_q, q0), a.grad_x_s, s.s * s.d), 1, scalar(kScale), true);
      }
    }
    if (a.grad_x_q) {
      run(make(s.c, s.d, s.s, t(alpha), x_s, w.weights, copies * s.c * s.d));
      write(make(s.q, s.d, s.c, a.e, weights_view(w.weights, copies), a.grad_x_q, s.q * s.d), scalar(kGammaScale));
    }
    linear_hyper({alpha, s.s});
  }

  void linear_hyper(const Rows<T>& of_alpha) {
    if (!a.grad_hyper) return;
    const int64_t strips = std::max<int64_t>(1, (s.c + 31) / 32);
    HyperArgs<T> args{};
    args.c = s.c;
    args.s = s.s;
    args.strips = strips;
    args.e = {a.e, s.q};
    args.u = {dense(u, s.s, s.c), s.s};
    args.alpha = of_alpha;
    args.ridge = s.ridge;
    args.scalars = w.scalars;
    args.aux = a.aux;
    args.parts = w.partial;
    args.counters = counters();
    args.count = a.hyper.count;
    args.out = a.grad_hyper;
    simt::launch(&hyper_kernel<T>, {static_cast<unsigned>(s.batch * strips)}, kThreads, 0, stream, args);
  }

  // Computes out [S, C] (row stride ld) = sign Phi x (+ out) for x [n, C].
  void feature_product(const T* x, int64_t x_bs, T* out, int64_t out_bs, int64_t ld, double sign, bool accumulate) {
    Product<T> p = make(s.s, s.c, s.d, x_s, {x, x_bs, s.c, 1}, out, out_bs, ld);
    p.alpha = sign;
    p.alpha_of = scalar(kRootScale);
    p.accumulate = accumulate;
    p.lambda_of = a.aux + 1;
    if (s.bordered) {
      place(1, s.c, {x + s.d * s.c, x_bs, s.c, 1}, column_row(0), w.width, s.c, sign, scalar(kRootBias));
      p.row = column_row(0);
      p.row_bs = w.width;
    }
    run(p);
  }

  void primal() {
    T* v = w.weights;
    const int64_t nc = s.n * s.c;
    multiply(make(s.d, s.c, s.q, t(x_q), a.e, v, nc), 1, scalar(kGammaRootScale));
    if (s.bordered) {
      sums(s.q, s.c, a.e, column_row(1), w.width, scalar(kGamma));
      place(1, s.c, {column_row(1), w.width, s.c, 1}, v + s.d * s.c, nc, s.c, 1, scalar(kRootBias));
    }
    solve(s.n, v, nullptr);
    feature_product(v, nc, u, uc(), s.c, 1, false);
    const int64_t ld = 2 * s.c;
    if (a.grad_x_s || a.grad_hyper) {
      // [Y - Phi w | -U]
      place(s.s, s.c, a.y_s, w.pack, s.s * ld, ld);
      feature_product(a.coef, nc, w.pack, s.s * ld, ld, -1, true);
      place(s.s, s.c, dense(u, s.s, s.c), w.pack + s.c, s.s * ld, ld, -1);
    }
    if (a.grad_x_s) {
      multiply(make(s.s, s.d, s.c, {w.pack, s.s * ld, ld, 1}, {v, nc, 1, s.c}, a.grad_x_s, s.s * s.d), 1,
               scalar(kRootScale));
      write(
          with_trace(make(s.s, s.d, s.c, {w.pack + s.c, s.s * ld, ld, 1}, {a.coef, nc, 1, s.c}, a.grad_x_s, s.s * s.d)),
          scalar(kRootScale), true);
    }
    if (a.grad_x_q)
      write(make(s.q, s.d, s.c, a.e, {a.coef, nc, 1, s.c}, a.grad_x_q, s.q * s.d), scalar(kGammaRootScale));
    if (!a.grad_hyper) return;
    if (s.bordered) {
      sums(s.s, s.c, {w.pack, s.s * ld, ld, 1}, column_row(1), w.width);
      simt::launch(&alpha_sum_kernel<T>, {static_cast<unsigned>(s.batch)}, kThreads, 0, stream, s.c, w.scalars, a.aux,
                   a.coef + s.d * s.c, nc, column_row(1), w.width, column_row(2));
    }
    linear_hyper({{column_row(2), w.width, s.c, 1}, s.bordered ? 1 : 0});
  }

  // The arguments of K_ss: kept by the forward, or formed again.
  Batch<const T> support_arguments() {
    if (s.kernel == KernelKind::rbf) return {a.factor, s.s * s.s, s.s, 1};
    if (a.kept) return {a.kept + 2 * s.q * s.s, kept_bs(), s.s, 1};
    Product<T> p = make(s.s, s.s, s.d, x_s, t(x_s), w.arguments_s, s.s * s.s);
    p.triangle = Triangle::both;
    apply_kernel(p, s.kernel, w.scalars);
    run(p);
    return {w.arguments_s, s.s * s.s, s.s, 1};
  }

  // G = Kbar dk/da of the argument a: |x - z|^2, |x - z|_1 or x.z.
  void nonlinear() {
    lengths(x_s, s.s, true);
    alpha_bar_dense();
    solve(s.s, u, a.grad_x_s || a.grad_hyper ? w.pack : nullptr);
    const bool distance = of_distance(s.kernel);
    const Points support = shift(x_s, s.s, w.shifted_s, false);
    bool counted = false;
    if (a.grad_x_s || a.grad_hyper) {
      run(two_k_bar());
      const Batch<const T> arguments = support_arguments();
      slopes(s.s, arguments.p, arguments.bs, w.k_bar, s.s * s.s, true, counted);
      counted = true;
      if (!of_norms(s.kernel)) mirror(s.batch, s.s, w.k_bar, stream);
      if (a.grad_x_s && !distance) {
        write_products(make(s.s, s.d, s.s, dense(w.k_bar, s.s, s.s), x_s, a.grad_x_s, s.s * s.d), x_s, w.row_sums, s.s,
                       false);
      } else if (a.grad_x_s) {
        if (!of_one_norm(s.kernel)) sums(s.s, s.s, dense(w.k_bar, s.s, s.s), column_row(0), w.width);
        differences(s.s, s.s, dense(w.k_bar, s.s, s.s), support, column_row(0), w.width, support, a.grad_x_s, s.s * s.d,
                    false);
      }
    }
    const bool needs_queries = a.grad_x_s || a.grad_x_q || a.grad_hyper;
    for (int64_t q0 = 0; needs_queries && q0 < s.q; q0 += s.chunk) {
      const int64_t rows = std::min(s.chunk, s.q - q0);
      const Batch<const T> k = k_chunk(q0, rows);
      run(bar_chunk(q0, rows));
      Batch<const T> arguments = k;
      if (a.kept) lengths(from(x_q, q0), rows, false);
      if (keeps_argument(s.kernel)) arguments.p = a.kept ? a.kept + (s.q + q0) * s.s : w.arguments;
      slopes(rows, arguments.p, arguments.bs, w.chunk_bar, bar().bs, false, counted);
      counted = true;
      if (!a.grad_x_s && !a.grad_x_q) continue;
      if (!distance) {
        if (a.grad_x_s) {
          if (of_norms(s.kernel)) sums(rows, s.s, norm_bar(), column_row(0), w.width);
          write_products(make(s.s, s.d, rows, t(bar()), from(x_q, q0), a.grad_x_s, s.s * s.d), x_s, column_row(0),
                         w.width, true);
        }
        if (a.grad_x_q)
          write_products(make(rows, s.d, s.s, bar(), x_s, a.grad_x_q + q0 * s.d, s.q * s.d), from(x_q, q0), w.row_sums,
                         rows, false);
        continue;
      }
      const Points queries = shift(from(x_q, q0), rows, w.shifted_q, true);
      if (a.grad_x_s) {
        if (!of_one_norm(s.kernel)) sums(rows, s.s, bar(), column_row(0), w.width);
        differences(s.s, rows, t(bar()), queries, column_row(0), w.width, support, a.grad_x_s, s.s * s.d, true);
      }
      if (a.grad_x_q)
        differences(rows, s.s, bar(), support, w.row_sums, rows, queries, a.grad_x_q + q0 * s.d, s.q * s.d, false);
    }
    if (a.grad_hyper)
      simt::launch(&rbf_hyper_kernel<T>, {static_cast<unsigned>((s.batch + kThreads - 1) / kThreads)}, kThreads, 0,
                   stream, s.batch, s.s, s.ridge, w.scalars, a.aux, w.parameter, a.hyper.count, a.grad_hyper);
  }

  // Writes the gradient to the points x of a kernel of x.z. sums: the gradients to their squared lengths, if the kernel
  // is one of these too.
  void write_products(Product<T> p, const Source<T>& x, const T* sums, int64_t sums_bs, bool accumulate) {
    if (of_norms(s.kernel)) {
      p.add = x;
      p.add_factor = 2;
      p.add_row = sums;
      p.add_row_bs = sums_bs;
    }
    write(p, nullptr, accumulate);
  }
  // Kbar_qs df/d|z|^2 of a chunk. Its memory is that of K_qs, which the backward has read by then.
  Batch<const T> norm_bar() const { return {w.chunk, s.chunk * s.s, s.s, 1}; }

  // Points as passed in, and relative to the first support point.
  struct Points {
    Source<T> original, shifted;
  };
  Points shift(const Source<T>& x, int64_t rows, T* out, bool queries) {
    Reach<T> reach{};
    reach.scalars = w.scalars;
    reach.support = w.reach;
    reach.parts = w.row_parts;
    reach.counters = counters();
    reach.near = w.near;
    reach.far = w.far;
    reach.queries = queries;
    reach.always_far = s.kernel == KernelKind::matern_1;
    if (rows > 0 && of_distance(s.kernel) && !of_one_norm(s.kernel))
      simt::launch(&shift_kernel<T>, {static_cast<unsigned>(s.batch * rows)}, kThreads, 0, stream, rows, s.d, x, x_s,
                   out, reach);
    return {x, dense(out, rows, s.d)};
  }

  void slopes(int64_t rows, const T* k, int64_t k_bs, T* bar, int64_t bar_bs, bool square, bool add) {
    if constexpr (sizeof(T) == 8)
      if (of_norms(s.kernel))
        return slope_angles({this->angles(rows, square, k, k_bs), s.batch, rows, bar, bar_bs, w.chunk, s.chunk * s.s,
                             w.row_sums, w.row_parts, counters(), add, w.parameter},
                            stream);
    if (keeps_argument(s.kernel))
      return slope_arguments<T>({s.batch, rows, s.s, s.kernel, s.order, w.scalars, k, k_bs, bar, bar_bs, square,
                                 w.row_sums, w.row_parts, counters(), add, w.parameter},
                                stream);
    SlopeArgs<T> args{};
    args.rows = rows;
    args.columns = s.s;
    args.square = square;
    args.k = k;
    args.k_bs = k_bs;
    args.k_bar = bar;
    args.bar_bs = bar_bs;
    args.scalars = w.scalars;
    args.row_sums = w.row_sums;
    args.row_parts = w.row_parts;
    args.counters = counters();
    args.total = w.parameter;
    args.add = add;
    simt::launch(&slope_kernel<T>, {static_cast<unsigned>(s.batch * rows)}, kThreads, 0, stream, args);
  }

  // Computes c (+)= sum_j g_ij sign(x_i - z_j) for 1-norms, else 2 sum_j g_ij (x_i - z_j) in each problem's form: as 2 (rowsum(G) x - G z), or one difference at a
  // time. Both forms are launched, since the host does not know which problems have which form; blocks of problems in
  // the other form return at once.
  void differences(int64_t rows, int64_t inner, const Source<T>& g, const Points& z, const T* row_sum, int64_t sum_bs,
                   const Points& x, T* c, int64_t c_bs, bool accumulate) {
    if (of_one_norm(s.kernel)) {
      Product<T> p = make(rows, s.d, inner, g, z.original, c, c_bs);
      p.alpha = -1;
      p.inner = Inner::sign;
      p.from = x.original;
      p.accumulate = accumulate;
      p.lambda_of = a.aux + 1;
      return run(p);
    }
    Product<T> p = make(rows, s.d, inner, g, z.shifted, c, c_bs);
    p.alpha = -2;
    p.accumulate = accumulate;
    p.lambda_of = a.aux + 1;
    p.active = w.near;
    p.add = x.shifted;
    p.add_factor = 2;
    p.add_row = row_sum;
    p.add_row_bs = sum_bs;
    run(p);
    p = make(rows, s.d, inner, g, z.original, c, c_bs);
    p.alpha = -2;
    p.accumulate = accumulate;
    p.lambda_of = a.aux + 1;
    p.active = w.far;
    p.inner = Inner::difference;
    p.from = x.original;
    run(p);
  }

  const KrrBackwardArgs<T>& a;
  const Source<T> x_s, x_q;
  T* const u;
  const Batch<const T> alpha;
};

}  // namespace

template <class T>
void krr_backward(const KrrBackwardArgs<T>& args, void* stream) {
  if (args.shape.batch == 0) return;
  KrrBackwardArgs<T> a = args;
  a.shape = with_chunk_for_batch(a.shape);
  Backward<T>(a, krr_layout(a.shape, true, a.work), stream).run_all();
}

template void krr_backward(const KrrBackwardArgs<float>&, void*);
template void krr_backward(const KrrBackwardArgs<double>&, void*);

}  // namespace ssdd::cuda

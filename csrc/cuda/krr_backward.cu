// KRR backward of the linear kernel on the GPU, from the forward's factor and coefficients. krr.h has the formulas and
// plans. As in the forward, products of the whole batch run on one stream.
//
// Launches with the gradients to X_s and Y_s: one (one_pass_backward.cu) if the forward left its parts; low rank 6, mixed 7, dense 4 and 3 per chunk of K_qs (one fewer if abar
// is computed beside M, or Kbar_qs beside Kbar_ss). One more for X_q (two in mixed and dense, which have no W), one for
// the hyper-parameters, two for a factor larger than one block.
// Mapping: as in product.cuh and factor.cuh. hyper_kernel: one block per 32 columns; the last of a problem's blocks
// computes the gradients (join.cuh). alpha_sum_kernel: one block per problem.
// Traffic: X_s, X_q, R, the factor and alpha once, each gradient once; dense also K_qs and Kbar_qs. hyper_kernel reads R,
// U and alpha.
// FLOPs: low rank 2 (Q + S) D C for M and abar, 2 S^2 C, 4 S D C for W and V, 4 S D C for Xbar_s; dense 2 Q S C twice,
// 2 S^2 C, 2 S^2 D, 2 Q S D.
// Floor on an H100: benchmarks/results/sass.md for the sizes of the speed table.
// Other path: the other plans, chosen by ssdd_ext/plan; krr_backward_kernels.cu for other kernels.
#include "backward_pass.cuh"
#include "join.cuh"
#include "one_pass.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Rows {
  Source<T> x;
  int64_t count;
};
template <class T>
struct HyperArgs {
  int64_t c, s, strips;  // strips of 32 columns: blocks per problem
  Rows<T> e, u, alpha;   // their columns are summed
  RidgeKind ridge;
  const T *scalars, *aux;
  T* parts;       // [batch, strips]
  int* counters;  // [batch], all 0, before and after
  int count;      // of hyper-parameters
  T* out;
};

// The linear kernel's gradients to (scale, bias, v). K and lambda scale together, so <Kbar, K> = -lambda lbar:
//   bbar0 = (1^T Pbar - 1^T U).(1^T alpha)   sbar = (-lambda lbar - bias bbar0) / scale + c lbar |X_s|^2
template <class T>
SIMT_KERNEL(kThreads)
void hyper_kernel(HyperArgs<T> a) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / a.strips, strip = simt::block().x % a.strips, j = strip * 32 + simt::lane();
  const T* own = a.scalars + b * kScalars;
  const double p_sum = column_sum<kThreads>(a.e.x[b], a.e.count, a.c, j),
               u_sum = column_sum<kThreads>(a.u.x[b], a.u.count, a.c, j);
  const double alpha_sum = column_sum<kThreads>(a.alpha.x[b], a.alpha.count, a.c, j);
  double bias_bar = simt::warp() == 0 ? (static_cast<double>(own[kGamma]) * p_sum - u_sum) * alpha_sum : 0;
  if (!sum_of_blocks<kThreads>(bias_bar, strip, a.strips, a.parts + b * a.strips, a.counters + b) ||
      simt::thread() != 0)
    return;
  const double trace = a.aux[3 * b],
               lambda = static_cast<double>(a.aux[3 * b + 1]) + static_cast<double>(a.aux[3 * b + 2]);
  const double scale = own[kScale], bias = own[kBias], lambda_bar = own[kLambdaBar], through = own[kThroughTrace];
  const double order = static_cast<double>(a.s), squares = (trace - bias * order) / scale;
  const double bad = failed(a.aux, b) ? simt::nan<double>() : 0;
  T* const out = a.out + b * a.count;
  out[0] = static_cast<T>((-lambda * lambda_bar - bias * bias_bar) / scale + through * squares + bad);
  out[1] = static_cast<T>(bias_bar + through * order + bad);
  out[a.count - 1] = static_cast<T>(lambda_bar * ridge_slope(a.ridge, trace, a.s) + bad);
}

// Computes 1^T alpha of the primal from the border's weight: w_b / sqrt(bias), or 1^T (Y - Phi w) / lambda if the bias
// is 0.
template <class T>
SIMT_KERNEL(kThreads)
void alpha_sum_kernel(int64_t c, const T* scalars, const T* aux, const T* border, int64_t border_bs, const T* residual,
                      int64_t width, T* out) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x;
  const T root = scalars[b * kScalars + kRootBias], lambda = aux[3 * b + 1] + aux[3 * b + 2];
  for (int64_t j = simt::thread(); j < c; j += kThreads)
    out[b * width + j] = root > T(0) ? border[b * border_bs + j] / root : residual[b * width + j] / lambda;
}

template <class T>
class LinearBackward : BackwardPass<T> {
  using Base = BackwardPass<T>;

 public:
  using Base::Base;

  void run_all() {
    ScalarArgs<T> scalars = this->scalars();
    if (a.parts && takes_one_pass<T>(s)) return one_pass_backward(a, scalars, stream);
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
    else if (s.plan == Plan::low_rank)
      low_rank();
    else
      dense_or_mixed();
  }

 private:
  using Base::a;
  using Base::alpha;
  using Base::alpha_bar_dense;
  using Base::alpha_u;
  using Base::bar;
  using Base::bar_chunk;
  using Base::column_row;
  using Base::counters;
  using Base::dense;
  using Base::from;
  using Base::make;
  using Base::multiply;
  using Base::place;
  using Base::run;
  using Base::s;
  using Base::scalar;
  using Base::solve;
  using Base::stream;
  using Base::sums;
  using Base::t;
  using Base::two_k_bar;
  using Base::u;
  using Base::u_alpha;
  using Base::uc;
  using Base::w;
  using Base::write;
  using Base::x_q;
  using Base::x_s;

  Batch<const T> weights_view(const T* p, int copies) const { return {p, copies * s.c * s.d, s.d, 1}; }

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
};

}  // namespace

template <class T>
void krr_backward(const KrrBackwardArgs<T>& args, Stream stream) {
  if (args.shape.batch == 0) return;
  KrrBackwardArgs<T> a = args;
  a.shape = with_chunk_for_batch(a.shape);
  const KrrWork<T> work = krr_layout(a.shape, true, a.work);
  if (a.shape.kernel == KernelKind::linear)
    LinearBackward<T>(a, work, stream).run_all();
  else
    backward_of_kernels(a, work, stream);
}

template void krr_backward(const KrrBackwardArgs<float>&, Stream);
template void krr_backward(const KrrBackwardArgs<double>&, Stream);

}  // namespace ssdd::cuda

// KRR backward on the CPU, from the forward's factor and coefficients; formulas and plans in krr.h.
#include "../krr.h"
#include "blas.h"
#include "factor.h"
#include "kernel_backward.h"
#include "krr_work.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

template <class T>
void apply_add_row(const void* context, int64_t, int64_t j, int m, int n, T* c, int64_t ld) {
  const T* row = static_cast<const T*>(context);
  for (int y = 0; y < m; ++y)
    for (int x = 0; x < n; ++x) c[y * ld + x] += row[j + x];
}

template <class T>
class Backward {
 public:
  Backward(const KrrBackwardArgs<T>& args, const Team& team, int64_t b, const KrrWork<T>& w, int team_size)
      : a(args), s(args.shape), team(team), b(b), w(w), pack(packing(w.pack, w.widest, team_size)), ranks(team_size) {
    x_s = a.x_s[b];
    x_q = a.x_q[b];
    y_s = a.y_s[b];
    e = a.e[b];
    gamma = T(1);
    if (a.g) gamma = static_cast<T>(2.0 * a.g[b](0, 0) / (static_cast<double>(s.q) * static_cast<double>(s.c)));
    factor = a.factor + b * s.n * s.n;
    coef = a.coef + b * s.n * s.c;
    kept = a.kept ? a.kept + b * kept_rows(s.kernel, s.s, s.q) * s.s : nullptr;
    u = a.grad_y_s ? a.grad_y_s + b * s.s * s.c : w.u;
    grad_x_s = a.grad_x_s ? a.grad_x_s + b * s.s * s.d : nullptr;
    grad_x_q = a.grad_x_q ? a.grad_x_q + b * s.q * s.d : nullptr;
    grad_hyper = a.grad_hyper ? a.grad_hyper + b * a.hyper.count : nullptr;
    const T* aux = a.aux + 3 * b;
    trace = aux[0];
    lambda = static_cast<double>(aux[1]) + static_cast<double>(aux[2]);
  }

  void run() {
    if (std::isnan(lambda)) return all_nan();
    if (s.plan == Plan::primal) return primal();
    if (s.kernel != KernelKind::linear) return nonlinear();
    if (s.plan == Plan::low_rank) return low_rank();
    dense();
  }

 private:
  T scale() const { return a.hyper.get(b, 0); }
  T bias() const { return a.hyper.get(b, 1); }
  T ridge_value() const { return a.hyper.get(b, a.hyper.count - 1); }
  int64_t c() const { return s.c; }

  void all_nan() {
    fill_nan(team, s.s * s.d, grad_x_s);
    fill_nan(team, s.s * s.c, u);
    fill_nan(team, s.q * s.d, grad_x_q);
    fill_nan(team, a.hyper.count, grad_hyper);
  }

  void multiply(Product<T> p, T alpha = T(1), T beta = T(0), bool lower = false) {
    p.alpha = alpha;
    p.beta = beta;
    p.lower = lower;
    product(team, pack, p);
  }

  // K_qs of the queries from q0 on: kept by the forward, or formed again.
  const T* k_chunk(int64_t q0, int64_t rows) {
    if (kept) return kept + q0 * s.s;
    if (of_norms(s.kernel)) squared_lengths(team, rows, s.d, x_q.from(q0, 0), w.norms_q);
    kernel_product<T>(team, pack, s.kernel, s.order, a.hyper, b,
                      {rows, s.s, s.d, x_q.from(q0, 0), x_s.t(), w.chunk, s.s}, w.norms_q, w.norms_s, w.arguments);
    return w.chunk;
  }

  // Computes abar = K_qs^T Pbar from chunks of K_qs.
  void alpha_bar_dense() {
    for (int64_t q0 = 0; q0 < s.q; q0 += s.chunk) {
      const int64_t rows = std::min(s.chunk, s.q - q0);
      const T* k = k_chunk(q0, rows);
      multiply({s.s, s.c, rows, View<const T>{k, 1, s.s}, e.from(q0, 0), u, s.c}, gamma, q0 == 0 ? T(0) : T(1));
    }
    if (s.q == 0 && !a.coef_bar) fill(team, s.s * s.c, T(0), u);
    if (a.coef_bar) copy(team, s.s, s.c, a.coef_bar[b], u, s.c);
  }

  // Computes M = Pbar^T X_q into m, and abar = scale X_s M^T + bias 1 (1^T Pbar) if K_qs is not kept.
  void alpha_bar_low_rank(T* m) {
    multiply({s.c, s.d, s.q, e.t(), x_q, m, s.d}, gamma);
    if (kept || s.q == 0) return alpha_bar_dense();
    Product<T> p{s.s, s.c, s.d, x_s, {m, 1, s.d}, u, s.c};
    p.alpha = scale();
    const Epilogue<T> epilogue{&apply_add_row<T>, w.columns};
    if (bias() != T(0)) {
      sum_columns(team, s.q, s.c, e, static_cast<double>(bias()) * static_cast<double>(gamma), w.columns);
      p.epilogue = &epilogue;
    }
    product(team, pack, p);
  }

  // Computes U = A^-1 abar, lbar = -<U, alpha>, and the trace's part c lbar.
  void solve_u(bool then_k_bar = false) {
    const bool alone = alone_if_small(team, solve_work(s), [&] {
      solve_factored(team, pack, s.s, factor, s.c, u);
      lambda_bar = -dot(team, s.s, s.c, u, coef, w.partial);
      if (then_k_bar) two_k_bar();
      if (team.rank == 0) {  // other ranks may not have computed it
        w.lambda_bar[0] = static_cast<T>(lambda_bar);
        w.lambda_bar[1] = static_cast<T>(lambda_bar - static_cast<double>(w.lambda_bar[0]));
      }
    });
    if (alone) lambda_bar = static_cast<double>(w.lambda_bar[0]) + static_cast<double>(w.lambda_bar[1]);
    through_trace = ridge_trace_slope(s.ridge, s.detach, static_cast<double>(ridge_value()), s.s) * lambda_bar;
  }

  // Writes [first | second | first] [S, 3C]. Its two overlapping halves are the pair in both orders.
  void fill_triple(const T* first, T first_sign, const T* second, T second_sign) {
    const int64_t ld = 3 * s.c;
    copy<T>(team, s.s, s.c, {const_cast<T*>(first), s.c, 1}, w.triple, ld, first_sign);
    copy<T>(team, s.s, s.c, {const_cast<T*>(second), s.c, 1}, w.triple + s.c, ld, second_sign);
    copy<T>(team, s.s, s.c, {const_cast<T*>(first), s.c, 1}, w.triple + 2 * s.c, ld, first_sign);
  }

  void low_rank() {
    T *weights = w.weights, *m = w.weights + s.c * s.d;
    alpha_bar_low_rank(m);
    solve_u();
    if (grad_x_s) {
      // [W; M - V] = [0; M] + [alpha | -U]^T X_s, then Xbar_s = scale [-U | alpha] [W; M - V] + ...
      fill_triple(coef, T(1), u, T(-1));
      fill(team, s.c * s.d, T(0), weights);
      multiply({2 * s.c, s.d, s.s, View<const T>{w.triple, 1, 3 * s.c}, x_s, weights, s.d}, T(1), T(1));
      Product<T> p{s.s, s.d, 2 * s.c, {w.triple + s.c, 3 * s.c, 1}, {weights, s.d, 1}, grad_x_s, s.d};
      finish_grad_x_s(p, 2 * through_trace * static_cast<double>(scale()), scale());
    } else if (grad_x_q) {
      multiply({s.c, s.d, s.s, View<const T>{coef, 1, s.c}, x_s, weights, s.d});
    }
    if (grad_x_q) multiply({s.q, s.d, s.c, e, {weights, s.d, 1}, grad_x_q, s.d}, gamma * scale());
    linear_hyper(nullptr);
  }

  void finish_grad_x_s(Product<T> p, double trace_factor, T alpha, T beta = T(0)) {
    const AddScaled<T> add{nullptr, static_cast<T>(trace_factor), x_s};
    const Epilogue<T> epilogue{&apply_add_scaled<T>, &add};
    p.alpha = alpha;
    p.beta = beta;
    if (trace_factor != 0) p.epilogue = &epilogue;
    product(team, pack, p);
  }

  // Computes 2 Kbar_ss = -(U alpha^T + alpha U^T) into k_bar, both triangles.
  void two_k_bar() {
    fill_triple(coef, T(1), u, T(1));
    multiply({s.s, s.s, 2 * s.c, {w.triple, 3 * s.c, 1}, {w.triple + s.c, 1, 3 * s.c}, w.k_bar, s.s}, T(-1), T(0),
             true);
    mirror(team, s.s, w.k_bar);
  }

  void dense() {
    const bool mixed = s.plan == Plan::mixed;
    T* m = w.weights + s.c * s.d;
    if (mixed)
      alpha_bar_low_rank(m);
    else
      alpha_bar_dense();
    solve_u(grad_x_s != nullptr);
    if (grad_x_s) {
      Product<T> p{s.s, s.d, s.s, {w.k_bar, s.s, 1}, x_s, grad_x_s, s.d};
      finish_grad_x_s(p, 2 * through_trace * static_cast<double>(scale()), scale());
      if (mixed) {
        multiply({s.s, s.d, s.c, {coef, s.c, 1}, {m, s.d, 1}, grad_x_s, s.d}, scale(), T(1));
      } else {
        for (int64_t q0 = 0; q0 < s.q; q0 += s.chunk) {
          const int64_t rows = std::min(s.chunk, s.q - q0);
          multiply({rows, s.s, s.c, e.from(q0, 0), {coef, 1, s.c}, w.chunk_bar, s.s}, gamma);
          multiply({s.s, s.d, rows, View<const T>{w.chunk_bar, 1, s.s}, x_q.from(q0, 0), grad_x_s, s.d}, scale(), T(1));
        }
      }
    }
    if (grad_x_q) {
      multiply({s.c, s.d, s.s, View<const T>{coef, 1, s.c}, x_s, w.weights, s.d});
      multiply({s.q, s.d, s.c, e, {w.weights, s.d, 1}, grad_x_q, s.d}, gamma * scale());
    }
    linear_hyper(nullptr);
  }

  // Computes the gradients to (scale, bias, v). K and lambda scale together, so <Kbar, K> = -lambda lbar needs no
  // product:
  //   bbar0 = (1^T Pbar - 1^T U).(1^T alpha) sbar = (-lambda lbar - bias bbar0) / scale + c lbar |X_s|^2
  // `alpha_sum` is 1^T alpha, or nullptr to sum coef.
  void linear_hyper(const T* alpha_sum) {
    if (!grad_hyper) return;
    const int64_t width = std::max({s.c, s.s, s.d, s.n});
    T *p_sum = w.columns, *u_sum = w.columns + width, *sum = w.columns + 2 * width;
    sum_columns(team, s.q, s.c, e, static_cast<double>(gamma), p_sum);
    sum_columns<T>(team, s.s, s.c, {u, s.c, 1}, 1.0, u_sum);
    if (!alpha_sum) {
      sum_columns<T>(team, s.s, s.c, {coef, s.c, 1}, 1.0, sum);
      alpha_sum = sum;
    }
    if (team.rank == 0) {
      double bias_bar = 0;
      for (int64_t j = 0; j < s.c; ++j)
        bias_bar += (static_cast<double>(p_sum[j]) - static_cast<double>(u_sum[j])) * static_cast<double>(alpha_sum[j]);
      const double sc = scale(), bi = bias(), squares = (trace - bi * static_cast<double>(s.s)) / sc;
      grad_hyper[0] = static_cast<T>((-lambda * lambda_bar - bi * bias_bar) / sc + through_trace * squares);
      grad_hyper[1] = static_cast<T>(bias_bar + through_trace * static_cast<double>(s.s));
      grad_hyper[a.hyper.count - 1] = static_cast<T>(lambda_bar * ridge_slope(s.ridge, trace, s.s));
    }
    team.barrier();
  }

  void primal() {
    const double sc = scale(), bi = bias();
    const T root_scale = static_cast<T>(std::sqrt(sc)), root_bias = static_cast<T>(std::sqrt(bi));
    T* v = w.weights;  // [n, C], then [n, 2C] = [V | w]
    if (a.coef_bar) {
      copy(team, s.n, s.c, a.coef_bar[b], v, s.c);
    } else {
      multiply({s.d, s.c, s.q, x_q.t(), e, v, s.c}, gamma * root_scale);
      if (s.bordered)
        sum_columns(team, s.q, s.c, e, static_cast<double>(gamma) * static_cast<double>(root_bias), v + s.d * s.c);
    }
    solve_factored(team, pack, s.n, factor, s.c, v);
    lambda_bar = -dot(team, s.n, s.c, v, coef, w.partial);
    through_trace = ridge_trace_slope(s.ridge, s.detach, static_cast<double>(ridge_value()), s.s) * lambda_bar;
    // U = Phi V
    feature_product(v, u, T(1), T(0));
    if (grad_x_s || (grad_hyper && s.bordered && bi == 0)) {
      // [Y - Phi w | -U] [V | w]^T
      T* residual = w.triple;
      copy(team, s.s, s.c, y_s, residual, 2 * s.c);
      feature_product(coef, residual, T(-1), T(1), 2 * s.c);
      copy<T>(team, s.s, s.c, {u, s.c, 1}, residual + s.c, 2 * s.c, T(-1));
    }
    if (grad_x_s) {
      T* pair = w.weights + s.n * s.c;  // [D, C] of w behind V: two blocks of C rows of the transposed operand
      copy<T>(team, s.n, s.c, {const_cast<T*>(coef), s.c, 1}, pair, s.c);
      Product<T> p{s.s, s.d, s.c, {w.triple, 2 * s.c, 1}, {v, 1, s.c}, grad_x_s, s.d};
      multiply(p, root_scale);
      Product<T> rest{s.s, s.d, s.c, {w.triple + s.c, 2 * s.c, 1}, {pair, 1, s.c}, grad_x_s, s.d};
      finish_grad_x_s(rest, 2 * through_trace * sc, root_scale, T(1));
    }
    if (grad_x_q) multiply({s.q, s.d, s.c, e, View<const T>{coef, 1, s.c}, grad_x_q, s.d}, gamma * root_scale);
    if (grad_hyper) {
      const int64_t width = std::max({s.c, s.s, s.d, s.n});
      T* alpha_sum = w.columns + 2 * width;
      if (s.bordered && bi > 0)
        copy<T>(team, 1, s.c, {const_cast<T*>(coef) + s.d * s.c, s.c, 1}, alpha_sum, s.c, T(1) / root_bias);
      else if (s.bordered)
        sum_columns<T>(team, s.s, s.c, {w.triple, 2 * s.c, 1}, 1.0 / lambda, alpha_sum);
      else
        fill(team, s.c, T(0), alpha_sum);
      linear_hyper(alpha_sum);
    }
  }

  // out [S, C] = beta out + sign Phi x for x [n, C].
  void feature_product(const T* x, T* out, T sign, T beta, int64_t ld = 0) {
    const T root_bias = std::sqrt(bias());
    Product<T> p{s.s, s.c, s.d, x_s, {const_cast<T*>(x), s.c, 1}, out, ld ? ld : s.c};
    p.alpha = sign * std::sqrt(scale());
    p.beta = beta;
    const Epilogue<T> epilogue{&apply_add_row<T>, w.columns};
    if (s.bordered) {
      copy<T>(team, 1, s.c, {const_cast<T*>(x) + s.d * s.c, s.c, 1}, w.columns, s.c, sign * root_bias);
      p.epilogue = &epilogue;
    }
    product(team, pack, p);
  }

  // All kernels but the linear one: G = Kbar dk/da for both Gram matrices, and the gradients from it.
  void nonlinear() {
    if (of_norms(s.kernel)) squared_lengths(team, s.s, s.d, x_s, w.norms_s);
    alpha_bar_dense();
    solve_u();
    const KernelBackwardWork<T> work{w.row_sums, std::max(s.s, s.chunk), w.norms_bar, w.diagonal, w.columns, w.partial};
    KernelBackward<T> own(team, pack, s.kernel, s.order, a.hyper, b, s.s, s.d, x_s, w.norms_s, grad_hyper != nullptr,
                          ranks, work);
    const Points support = own.points(x_s, s.s, w.shifted_s);
    const bool needs_g = grad_x_s || grad_x_q || grad_hyper;
    if (grad_x_s || grad_hyper) support_half(own, support);
    for (int64_t q0 = 0; needs_g && q0 < s.q; q0 += s.chunk) query_half(own, support, q0, std::min(s.chunk, s.q - q0));
    if (grad_hyper && team.rank == 0) {
      for (int i = 0; i < parameter_count(s.kernel); ++i) grad_hyper[i] = static_cast<T>(own.parameter(i));
      grad_hyper[a.hyper.count - 1] = static_cast<T>(lambda_bar * ridge_slope(s.ridge, trace, s.s));
    }
    team.barrier();
  }

  using Points = typename KernelBackward<T>::Points;

  void support_half(KernelBackward<T>& own, const Points& support) {
    two_k_bar();
    if (s.kernel == KernelKind::rbf) {
      // K_ss lies above the diagonal of the factor.
      own.slopes(s.s, factor, w.k_bar, nullptr, [](int64_t i) { return i + 1; }, [&](int64_t) { return s.s; });
      zero_diagonal();
      mirror(team, s.s, w.k_bar, true);
    } else {
      const T* arguments = kept ? kept + 2 * s.q * s.s : w.arguments_s;
      if (!kept) {
        Product<T> p{s.s, s.s, s.d, x_s, x_s.t(), w.arguments_s, s.s};
        p.lower = true;
        argument_product(team, pack, s.kernel, p);
      }
      own.symmetric(arguments, w.k_bar, through_trace);
    }
    if (grad_x_s) own.add_gradient(s.s, s.s, {w.k_bar, s.s, 1}, support, support, own.diagonal_norms(), grad_x_s, T(0));
  }

  void zero_diagonal() {
    int64_t begin, end;
    team.share(s.s, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i) w.k_bar[i * s.s + i] = T(0);
    team.barrier();
  }

  void query_half(KernelBackward<T>& own, const Points& support, int64_t q0, int64_t rows) {
    const T* k = k_chunk(q0, rows);
    if (kept && of_norms(s.kernel)) squared_lengths(team, rows, s.d, x_q.from(q0, 0), w.norms_q);
    multiply({rows, s.s, s.c, e.from(q0, 0), {coef, 1, s.c}, w.chunk_bar, s.s}, gamma);
    const T* arguments = !keeps_argument(s.kernel) ? k : kept ? kept + (s.q + q0) * s.s : w.arguments;
    own.slopes(rows, arguments, w.chunk_bar, w.norms_q, [](int64_t) { return 0; }, [&](int64_t) { return s.s; });
    if (!grad_x_s && !grad_x_q) return;
    const Points queries = own.points(x_q.from(q0, 0), rows, w.shifted_q);
    const bool norms = of_norms(s.kernel);
    if (grad_x_s)
      own.add_gradient(s.s, rows, {w.chunk_bar, 1, s.s}, queries, support, norms ? own.column_norms() : nullptr,
                       grad_x_s, T(1));
    if (grad_x_q)
      own.add_gradient(rows, s.s, {w.chunk_bar, s.s, 1}, support, queries, norms ? own.row_norms() : nullptr,
                       grad_x_q + q0 * s.d, T(0));
  }

  const KrrBackwardArgs<T>& a;
  const KrrShape& s;
  Team team;
  const int64_t b;
  const KrrWork<T>& w;
  const Packing<T> pack;
  View<const T> x_s, x_q, y_s, e;
  const int ranks;
  T gamma;
  const T *factor, *coef, *kept;
  T *u, *grad_x_s, *grad_x_q, *grad_hyper;
  double trace, lambda, lambda_bar = 0, through_trace = 0;
};

}  // namespace

template <class T>
void krr_backward(const KrrBackwardArgs<T>& a) {
  const blas::ThreadGuard guard;
  if (a.shape.lanes) return krr_backward_by_lanes(a);
  const Workers workers(a.shape.batch, krr_work(a.shape), a.shape.threads, 15);
  const int64_t stride = krr_layout<T>(a.shape, true, workers.team_size, nullptr).total;
  workers.run(a.shape.batch, [&](const Team& team, int64_t b, int worker) {
    const KrrWork<T> w = krr_layout(a.shape, true, workers.team_size, a.work + worker * stride);
    Backward<T>(a, team, b, w, workers.team_size).run();
  });
}

template void krr_backward(const KrrBackwardArgs<float>&);
template void krr_backward(const KrrBackwardArgs<double>&);

}  // namespace ssdd::cpu

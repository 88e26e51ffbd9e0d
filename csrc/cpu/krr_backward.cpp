// KRR backward on the CPU, from the forward's factor and coefficients; formulas and plans in krr.h.
#include "../krr.h"
#include "blas.h"
#include "factor.h"
#include "kernel.h"
#include "krr_work.h"
#include "team.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

// The epilogue of a tile of a gradient: c(i, j) += (row ? row[i] : 1) * factor * x(i, j).
template <class T>
struct AddScaled {
  const T* row;
  T factor;
  View<const T> x;
};

template <class T>
void apply_add_scaled(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld) {
  const auto& f = *static_cast<const AddScaled<T>*>(context);
  for (int y = 0; y < m; ++y) {
    const T factor = f.row ? f.factor * f.row[i + y] : f.factor;
    for (int x = 0; x < n; ++x) c[y * ld + x] += factor * f.x(i + y, j + x);
  }
}

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

  // Kernels of the squared distance: G = Kbar dk/dr, and d r_ij / d x_i = 2 (x_i - x_j).
  // The points as passed in, the points from the first support point, and the reach of krr.h.
  struct Points {
    View<const T> original, shifted;
    T reach;
  };
  Points points(View<const T> x, int64_t rows, T* shifted) {
    if (!of_distance(s.kernel)) return {x, x, T(0)};
    int64_t begin, end;
    team.share(rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < s.d; ++j) shifted[i * s.d + j] = x(i, j) - x_s(0, j);
    team.barrier();
    return {x, {shifted, s.d, 1}, largest(team, rows, s.d, shifted, w.partial)};
  }

  // True if the points are too far apart for the product form (krr.h).
  bool far_apart(T reach) const {
    return s.kernel == KernelKind::matern_1 || static_cast<double>(reach) * std::sqrt(static_cast<double>(s.d)) >
                                                   kReach * static_cast<double>(a.hyper.get(b, 0));
  }

  void nonlinear() {
    const KernelFunction<T> own(s.kernel, s.order, a.hyper, b, s.d);
    function = &own;
    if (of_norms(s.kernel)) squared_lengths(team, s.s, s.d, x_s, w.norms_s);
    alpha_bar_dense();
    solve_u();
    support = points(x_s, s.s, w.shifted_s);
    const bool needs_g = grad_x_s || grad_x_q || grad_hyper;
    if (grad_x_s || grad_hyper) support_half();
    for (int64_t q0 = 0; needs_g && q0 < s.q; q0 += s.chunk) query_half(q0, std::min(s.chunk, s.q - q0));
    if (grad_hyper && team.rank == 0) {
      for (int i = 0; i < parameter_count(s.kernel); ++i) grad_hyper[i] = static_cast<T>(parameter_bar[i]);
      grad_hyper[a.hyper.count - 1] = static_cast<T>(lambda_bar * ridge_slope(s.ridge, trace, s.s));
    }
    team.barrier();
  }

  // Turns rows of Kbar into G: row i has the elements [begin(i), end(i)) of `argument` and `bar`, row stride S, and the
  // squared length x_norms[i]. Adds to the gradients of the hyper-parameters, and to those of the squared lengths:
  // row_sums[i], and by columns to this rank's part of norms_bar.
  template <class Begin, class End>
  void slopes(int64_t rows, const T* argument, T* bar, const T* x_norms, Begin begin_of, End end_of) {
    T *x_bar = w.row_sums, *first = x_bar + std::max(s.s, s.chunk), *second = first + std::max(s.s, s.chunk);
    T* z_bar = of_norms(s.kernel) ? w.norms_bar + team.rank * s.s : nullptr;
    if (z_bar) std::fill(z_bar, z_bar + s.s, T(0));
    const KernelRows<T>& kernel = kernel_rows<T>();
    int64_t begin, end;
    team.share(rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = begin_of(i), at = i * s.s + from;
      double sums[3] = {};
      kernel.slopes(z_bar ? function->at(x_norms[i], w.norms_s + from) : function->row, end_of(i) - from, argument + at,
                    bar + at, z_bar ? z_bar + from : nullptr, grad_hyper != nullptr, sums);
      x_bar[i] = static_cast<T>(sums[0]);
      first[i] = static_cast<T>(sums[1]);
      second[i] = static_cast<T>(sums[2]);
    }
    team.barrier();
    for (int64_t i = 0; grad_hyper && i < rows; ++i) {
      parameter_bar[0] += static_cast<double>(first[i]);
      parameter_bar[1] += static_cast<double>(second[i]);
    }
    // The sums by columns, in the order of the ranks, behind them.
    T* all = w.norms_bar + ranks * s.s;
    team.share(s.s, 16, &begin, &end);
    for (int64_t j = begin; z_bar && j < end; ++j) {
      T sum = T(0);
      for (int rank = 0; rank < team.size; ++rank) sum += w.norms_bar[rank * s.s + j];
      all[j] = sum;
    }
    team.barrier();
  }

  void support_half() {
    two_k_bar();
    if (s.kernel == KernelKind::rbf) {
      // K_ss lies above the diagonal of the factor.
      slopes(s.s, factor, w.k_bar, nullptr, [](int64_t i) { return i + 1; }, [&](int64_t) { return s.s; });
      zero_diagonal();
      mirror(team, s.s, w.k_bar, true);
    } else {
      const T* arguments = kept ? kept + 2 * s.q * s.s : w.arguments_s;
      if (!kept) {
        Product<T> p{s.s, s.s, s.d, x_s, x_s.t(), w.arguments_s, s.s};
        p.lower = true;
        argument_product(team, pack, s.kernel, p);
      }
      diagonal(arguments);
      slopes(s.s, arguments, w.k_bar, w.norms_s, [](int64_t) { return 0; }, [](int64_t i) { return i; });
      add_diagonal();
      mirror(team, s.s, w.k_bar);
    }
    if (grad_x_s) add_gradient(s.s, s.s, {w.k_bar, s.s, 1}, support, support, w.diagonal, grad_x_s, T(0));
  }

  void zero_diagonal() {
    int64_t begin, end;
    team.share(s.s, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i) w.k_bar[i * s.s + i] = T(0);
    team.barrier();
  }

  // The diagonal: half of 2 Kbar_ii, and the trace's part, times d k(x, x) / d |x|^2 into w.diagonal, for kernels of x.z.
  // For the others k(x, x) is constant.
  void diagonal(const T* arguments) {
    int64_t begin, end;
    team.share(s.s, 1, &begin, &end);
    T *first = w.row_sums, *second = first + s.s;
    for (int64_t i = begin; i < end; ++i) {
      T& bar = w.k_bar[i * s.s + i];
      T own = bar / 2 + static_cast<T>(through_trace), z_bar = T(0);
      double sums[3] = {};
      if (!of_distance(s.kernel)) {
        const T* square = of_norms(s.kernel) ? w.norms_s + i : arguments + i * s.s + i;
        KernelRow<T> row = function->at(*square, square);
        row.same = true;
        kernel_rows<T>().slopes(row, 1, square, &own, &z_bar, grad_hyper != nullptr, sums);
      } else {
        own = T(0);
      }
      w.diagonal[i] = own + z_bar + static_cast<T>(sums[0]);
      first[i] = static_cast<T>(sums[1]);
      second[i] = static_cast<T>(sums[2]);
      bar = T(0);
    }
    team.barrier();
    for (int64_t i = 0; grad_hyper && i < s.s; ++i) {
      parameter_bar[0] += static_cast<double>(first[i]);
      parameter_bar[1] += static_cast<double>(second[i]);
    }
    team.barrier();
  }

  // Adds the row and column sums of K_ss to the diagonal's part.
  void add_diagonal() {
    if (of_norms(s.kernel)) {
      int64_t begin, end;
      team.share(s.s, 1, &begin, &end);
      for (int64_t i = begin; i < end; ++i) w.diagonal[i] += w.row_sums[i] + w.norms_bar[ranks * s.s + i];
    }
    team.barrier();
  }

  void query_half(int64_t q0, int64_t rows) {
    const T* k = k_chunk(q0, rows);
    if (kept && of_norms(s.kernel)) squared_lengths(team, rows, s.d, x_q.from(q0, 0), w.norms_q);
    multiply({rows, s.s, s.c, e.from(q0, 0), {coef, 1, s.c}, w.chunk_bar, s.s}, gamma);
    const T* arguments = !keeps_argument(s.kernel) ? k : kept ? kept + (s.q + q0) * s.s : w.arguments;
    slopes(rows, arguments, w.chunk_bar, w.norms_q, [](int64_t) { return 0; }, [&](int64_t) { return s.s; });
    if (!grad_x_s && !grad_x_q) return;
    const Points queries = points(x_q.from(q0, 0), rows, w.shifted_q);
    const bool norms = of_norms(s.kernel);
    if (grad_x_s)
      add_gradient(s.s, rows, {w.chunk_bar, 1, s.s}, queries, support, norms ? w.norms_bar + ranks * s.s : nullptr,
                   grad_x_s, T(1));
    if (grad_x_q)
      add_gradient(rows, s.s, {w.chunk_bar, s.s, 1}, support, queries, norms ? w.row_sums : nullptr,
                   grad_x_q + q0 * s.d, T(0));
  }

  // The gradient to the points x from g = Kbar dk/da, and from the gradients `norms` of their squared lengths.
  void add_gradient(int64_t rows, int64_t inner, View<const T> g, const Points& z, const Points& x, const T* norms,
                    T* c, T beta) {
    if (of_distance(s.kernel)) return add_differences(rows, inner, g, z, x, c, beta);
    Product<T> p{rows, s.d, inner, g, z.original, c, s.d};
    const AddScaled<T> add{norms, T(2), x.original};
    const Epilogue<T> epilogue{&apply_add_scaled<T>, &add};
    p.beta = beta;
    if (norms) p.epilogue = &epilogue;
    product(team, pack, p);
  }

  // c [rows, D] = beta c + 2 sum_j g_ij (x_i - z_j) for g [rows, inner].
  void add_differences(int64_t rows, int64_t inner, View<const T> g, const Points& z, const Points& x, T* c, T beta) {
    Product<T> p{rows, s.d, inner, g, z.original, c, s.d};
    p.alpha = T(-2);
    p.beta = beta;
    if (far_apart(std::max(z.reach, x.reach))) {
      p.inner = Inner::difference;
      p.x = x.original;
      return product(team, pack, p);
    }
    sum_columns<T>(team, inner, rows, g.t(), 1.0, w.columns);
    const AddScaled<T> add{w.columns, T(2), x.shifted};
    const Epilogue<T> epilogue{&apply_add_scaled<T>, &add};
    p.b = z.shifted;
    p.epilogue = &epilogue;
    product(team, pack, p);
  }

  const KrrBackwardArgs<T>& a;
  const KrrShape& s;
  Team team;
  const int64_t b;
  const KrrWork<T>& w;
  const Packing<T> pack;
  View<const T> x_s, x_q, y_s, e;
  Points support;
  const KernelFunction<T>* function = nullptr;
  const int ranks;
  double parameter_bar[2] = {0, 0};
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

// KRR for batches of small problems with a linear kernel, one problem per lane of a vector, in the low-rank order (krr.h).
//
// The support points of a vector's problems are loaded once, queries a few rows at a time, so that everything stays in
// the second-level cache. No problem reads what its neighbours in the vector are. Loss and gradients of a vector's problems
// are one pass (Fused): inputs are read once, and factor, coefficients and residual never leave the cache.
#include "../krr.h"

#include "../arena.h"
#include "kernel.h"
#include "lanes_group.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kMostSupport = 64;
constexpr int64_t kMostVectors = 4096;  // of the support points, of W, and of the queries at a time: 256 KiB of AVX-512
constexpr int64_t kMostQueries = 32;    // at a time

template <class T>
struct Work {
  T *x_s, *x_q, *panels, *inverse, *status, *alpha, *u, *weights, *moment, *e, *sums, *scale, *shift;
  int64_t total, queries, ld;  // ld: of the rows of x_s
};

template <class T>
Work<T> layout(const KrrShape& s, bool backward, T* memory) {
  Arena<T> arena{memory};
  Work<T> w{};
  const auto take = [&](int64_t vectors) { return arena.take(vectors * kMostLanes); };
  const int64_t rows = lane_rows(s.s);
  w.queries = std::max<int64_t>(1, std::min({s.q, kMostQueries, kMostVectors / std::max<int64_t>(1, s.d) / 4 * 4}));
  // An odd number of cache lines: rows a power of two apart would share few sets of the first cache.
  w.ld = s.d | 1;
  w.x_s = take(rows * w.ld);
  w.x_q = take(std::max(w.queries, backward ? s.s : 0) * s.d);   // backward: also Xbar_s
  w.panels = take(lane_triangle(s.s) + kLaneRows * kMostLanes);  // see Lanes::store_lower
  w.inverse = take(rows);
  w.status = take(1);
  w.alpha = take(rows * s.c);
  w.u = take(rows * s.c);
  w.weights = take(s.d * s.c);
  if (backward) w.moment = take(s.d * s.c);
  w.e = take(2 * w.queries * s.c);
  w.sums = take(3 * s.c);
  w.scale = take(1);
  w.shift = take(1);
  w.total = arena.used + 16;
  return w;
}

double work_of(const KrrShape& s, double passes) {
  const double m = static_cast<double>(s.s), d = static_cast<double>(s.d), c = static_cast<double>(s.c);
  return m * m * d / 2 + m * m * m / 6 + m * m * c + passes * (m + static_cast<double>(s.q)) * d * (c + 2);
}

// What both passes know of one vector of problems.
template <class T>
class Lane {
 public:
  Lane(const KrrShape& shape, const Hyper<T>& hyper, const Group& group, const Work<T>& work)
      : s(shape), h(hyper), g(group), w(work), table(lanes<T>()) {}

 protected:
  void load(Batch<const T> x, int64_t first, int64_t rows, int64_t columns, T* out) const {
    table.load(Sources<T>(g, x).shift(first * x.rs).p, x.rs, x.cs, rows, columns, out, columns);
  }
  void load_dense(const T* x, int64_t rows, int64_t columns, T* out) const {
    table.load(Sources<T>(g, x, rows * columns).p, columns, 1, rows, columns, out, columns);
  }
  void store(const T* x, int64_t first, int64_t rows, int64_t columns, int64_t all_rows, T* out) const {
    table.store(x, rows, columns, columns, g.count, Targets<T>(g, out + first * columns, all_rows * columns).p);
  }
  void load_support(Batch<const T> x_s) const {
    table.load(Sources<T>(g, x_s).p, x_s.rs, x_s.cs, s.s, s.d, w.x_s, w.ld);
    pad(s.s, w.ld, g.width, w.x_s);
  }
  // f(lane) into one vector.
  template <class F>
  T* each(T* out, F f) const {
    for (int l = 0; l < g.width; ++l) out[l] = static_cast<T>(f(l));
    return out;
  }
  void times(int64_t count, const T* factor, T* x) const {
    table.affine(count, factor, each(w.shift, [](int) { return 0; }), x);
  }
  double scale(int lane) const { return static_cast<double>(h.get(g.problem(lane), 0)); }
  double bias(int lane) const { return static_cast<double>(h.get(g.problem(lane), 1)); }
  double ridge_value(int lane) const { return static_cast<double>(h.get(g.problem(lane), h.count - 1)); }
  T* scales() const {
    return each(w.scale, [&](int l) { return scale(l); });
  }
  T* zero(int64_t vectors, T* x) const {
    std::fill(x, x + vectors * g.width, T(0));
    return x;
  }
  T* biases(T* out) const {
    return each(out, [&](int l) { return bias(l); });
  }
  // K_ss + lambda I = L L^T.
  void factorise(Batch<const T> x_s, T* aux, T* jitter) const {
    load_support(x_s);
    table.gram(s.s, s.d, w.x_s, w.ld, w.panels);
    table.affine(lane_triangle(s.s), scales(), biases(w.shift), w.panels);
    table.pad_lower(s.s, w.panels);
    add_ridge(g, s.ridge, h, s.s, w.panels, aux, jitter);
    table.factor(s.s, w.panels, w.inverse, w.status);
  }
  void solve_alpha(Batch<const T> y_s) const {
    load(y_s, 0, s.s, s.c, w.alpha);
    pad(s.s, s.c, g.width, w.alpha);
    table.solve(s.s, s.c, w.panels, w.inverse, w.alpha);
  }
  // W = scale X_s^T alpha.
  void form_weights() const {
    table.product(s.d, s.c, s.s, T(1), {w.x_s, 1, w.ld}, {w.alpha, s.c, 1}, T(0), {w.weights, s.c, 1});
    times(s.d * s.c, scales(), w.weights);
  }
  // bias 1^T alpha, which every prediction gets.
  void form_bias_row(T* row) const {
    table.sum_rows(s.s, s.c, w.alpha, zero(s.c, row));
    times(s.c, biases(w.scale), row);
  }
  // abar = scale X_s M + bias 1 (1^T Pbar) into u, from M and 1^T Pbar. `row` is one row of C vectors.
  void form_alpha_bar(const T* e_sum, T* row) const {
    table.product(s.s, s.c, s.d, T(1), {w.x_s, w.ld, 1}, {w.moment, s.c, 1}, T(0), {w.u, s.c, 1});
    times(s.s * s.c, scales(), w.u);
    std::copy(e_sum, e_sum + s.c * g.width, row);
    times(s.c, biases(w.scale), row);
    table.finish(s.s, s.c, row, nullptr, w.u);
  }
  // U = A^-1 abar, of the factor in panels.
  void solve_u() const {
    pad(s.s, s.c, g.width, w.u);
    table.solve(s.s, s.c, w.panels, w.inverse, w.u);
  }
  bool trace_moves() const { return !s.detach && s.ridge != RidgeKind::absolute; }
  void form_lambda_bar() {
    double products[kMostLanes] = {};
    table.inner(s.s * s.c, w.u, w.alpha, products);
    for (int l = 0; l < g.width; ++l) {
      lambda_bar[l] = -products[l];
      through_trace[l] = ridge_trace_slope(s.ridge, s.detach, ridge_value(l), s.s) * lambda_bar[l];
    }
  }
  // Xbar_s = alpha (scale (M - V))^T - U W^T + 2 c lbar scale X_s with V = X_s^T U. M is lost, and so are the queries.
  void support_gradient(T* grad_x_s) const {
    table.product(s.d, s.c, s.s, T(-1), {w.x_s, 1, w.ld}, {w.u, s.c, 1}, T(1), {w.moment, s.c, 1});
    times(s.d * s.c, scales(), w.moment);
    T* out = w.x_q;
    table.product(s.s, s.d, s.c, T(1), {w.alpha, s.c, 1}, {w.moment, 1, s.c}, T(0), {out, s.d, 1});
    table.product(s.s, s.d, s.c, T(-1), {w.u, s.c, 1}, {w.weights, 1, s.c}, T(1), {out, s.d, 1});
    if (trace_moves()) {
      each(w.scale, [&](int l) { return 2 * through_trace[l] * scale(l); });
      for (int64_t i = 0; i < s.s; ++i) table.add(s.d, w.scale, w.x_s + i * w.ld * g.width, out + i * s.d * g.width);
    }
    store(out, 0, s.s, s.d, s.s, grad_x_s);
  }
  // Pivot of problem b in lane l that is not positive, or 0.
  int32_t status(int l, int64_t b) const {
    const bool valid = parameters_valid(s.kernel, h, b) && ridge_valid(h, b);
    return valid ? static_cast<int32_t>(w.status[l]) : kBadParameter;
  }

  const KrrShape& s;
  const Hyper<T>& h;
  const Group g;
  const Work<T>& w;
  const Lanes<T>& table;
  double lambda_bar[kMostLanes], through_trace[kMostLanes];
};

template <class T>
class Forward : Lane<T> {
  using L = Lane<T>;
  using L::g;
  using L::s;
  using L::table;
  using L::w;

 public:
  Forward(const KrrForwardArgs<T>& args, const Group& group, const Work<T>& work)
      : L(args.shape, args.hyper, group, work), a(args) {}

  void run() {
    L::factorise(a.x_s, a.aux, a.jitter);
    if (a.factor) table.store_lower(w.panels, s.s, false, true, g.count, Targets<T>(g, a.factor, s.s * s.s).p);
    L::solve_alpha(a.y_s);
    if (a.coef) L::store(w.alpha, 0, s.s, s.c, s.s, a.coef);
    if (s.q > 0 || a.loss) predict();
    finish();
  }

 private:
  void predict() {
    L::form_weights();
    L::form_bias_row(w.sums);
    double squares[kMostLanes] = {};
    for (int64_t q0 = 0; q0 < s.q; q0 += w.queries) {
      const int64_t rows = std::min(w.queries, s.q - q0);
      T *p = w.e, *y = w.e + w.queries * s.c * g.width;
      L::load(a.x_q, q0, rows, s.d, w.x_q);
      table.product(rows, s.c, s.d, T(1), {w.x_q, s.d, 1}, {w.weights, s.c, 1}, T(0), {p, s.c, 1});
      if (a.y_q) L::load(a.y_q, q0, rows, s.c, y);
      table.finish(rows, s.c, w.sums, a.y_q ? y : nullptr, p);
      L::store(p, q0, rows, s.c, s.q, a.out);
      if (a.loss) table.inner(rows * s.c, p, p, squares);
    }
    const double count = static_cast<double>(s.q) * static_cast<double>(s.c);
    for (int l = 0; a.loss && l < g.count; ++l) a.loss[g.problem(l)] = static_cast<T>(squares[l] / count);
  }

  void finish() {
    for (int l = 0; l < g.count; ++l) {
      const int64_t b = g.problem(l);
      a.status[b] = L::status(l, b);
      if (a.status[b] == 0) continue;
      const bool valid = a.status[b] != kBadParameter;
      fill_nan(valid ? 1 : 3, a.aux + 3 * b + valid);
      if (a.factor) fill_nan(s.s * s.s, a.factor + b * s.s * s.s);
      if (a.coef) fill_nan(s.s * s.c, a.coef + b * s.s * s.c);
      fill_nan(s.q * s.c, a.out + b * s.q * s.c);
      if (a.loss) fill_nan(1, a.loss + b);
    }
  }

  const KrrForwardArgs<T>& a;
};

template <class T>
class Backward : Lane<T> {
  using L = Lane<T>;
  using L::g;
  using L::lambda_bar;
  using L::s;
  using L::table;
  using L::through_trace;
  using L::w;

 public:
  Backward(const KrrBackwardArgs<T>& args, const Group& group, const Work<T>& work)
      : L(args.shape, args.hyper, group, work), a(args) {}

  void run() {
    L::load_support(a.x_s);
    L::load_dense(a.coef, s.s, s.c, w.alpha);
    pad(s.s, s.c, g.width, w.alpha);
    L::form_weights();
    queries();
    // abar = scale X_s M + bias 1 (1^T Pbar), U = A^-1 abar
    T *e_sum = w.sums, *u_sum = w.sums + s.c * g.width, *alpha_sum = w.sums + 2 * s.c * g.width;
    if (a.coef_bar) {
      L::load(a.coef_bar, 0, s.s, s.c, w.u);
    } else {
      L::form_alpha_bar(e_sum, u_sum);
    }
    table.load_lower(Sources<T>(g, a.factor, s.s * s.s).p, s.s, 1, s.s, true, w.panels);
    table.invert_diagonal(s.s, w.panels, w.inverse);
    L::solve_u();
    if (a.grad_y_s) L::store(w.u, 0, s.s, s.c, s.s, a.grad_y_s);
    L::form_lambda_bar();
    if (a.grad_x_s) L::support_gradient(a.grad_x_s);
    if (a.grad_hyper) {
      table.sum_rows(s.s, s.c, w.u, L::zero(s.c, u_sum));
      table.sum_rows(s.s, s.c, w.alpha, L::zero(s.c, alpha_sum));
      for (int l = 0; l < g.count; ++l) hyper(l, e_sum, u_sum, alpha_sum);
    }
    finish();
  }

 private:
  // M = X_q^T Pbar and 1^T Pbar, and Xbar_q = Pbar W^T, a few queries at a time.
  void queries() {
    L::zero(s.d * s.c, w.moment);
    L::zero(s.c, w.sums);
    const double count = static_cast<double>(s.q) * static_cast<double>(s.c);
    for (int64_t q0 = 0; q0 < s.q; q0 += w.queries) {
      const int64_t rows = std::min(w.queries, s.q - q0);
      L::load(a.x_q, q0, rows, s.d, w.x_q);
      L::load(a.e, q0, rows, s.c, w.e);
      if (a.g)
        L::times(rows * s.c,
                 L::each(w.scale, [&](int l) { return 2.0 * static_cast<double>(a.g[g.problem(l)](0, 0)) / count; }),
                 w.e);
      table.product(s.d, s.c, rows, T(1), {w.x_q, 1, s.d}, {w.e, s.c, 1}, T(1), {w.moment, s.c, 1});
      table.sum_rows(rows, s.c, w.e, w.sums);
      if (!a.grad_x_q) continue;
      table.product(rows, s.d, s.c, T(1), {w.e, s.c, 1}, {w.weights, 1, s.c}, T(0), {w.x_q, s.d, 1});
      L::store(w.x_q, q0, rows, s.d, s.q, a.grad_x_q);
    }
  }

  // As in krr_backward.cpp.
  void hyper(int l, const T* e_sum, const T* u_sum, const T* alpha_sum) {
    const int64_t b = g.problem(l);
    const double sc = L::scale(l), bi = L::bias(l), order = static_cast<double>(s.s);
    const double trace = static_cast<double>(a.aux[3 * b]);
    const double lambda = static_cast<double>(a.aux[3 * b + 1]) + static_cast<double>(a.aux[3 * b + 2]);
    double bias_bar = 0;
    for (int64_t c = 0; c < s.c; ++c) {
      const int64_t e = c * g.width + l;
      bias_bar += (static_cast<double>(e_sum[e]) - static_cast<double>(u_sum[e])) * static_cast<double>(alpha_sum[e]);
    }
    T* out = a.grad_hyper + b * a.hyper.count;
    out[0] =
        static_cast<T>((-lambda * lambda_bar[l] - bi * bias_bar) / sc + through_trace[l] * (trace - bi * order) / sc);
    out[1] = static_cast<T>(bias_bar + through_trace[l] * order);
    out[a.hyper.count - 1] = static_cast<T>(lambda_bar[l] * ridge_slope(s.ridge, trace, s.s));
  }

  void finish() {
    for (int l = 0; l < g.count; ++l) {
      const int64_t b = g.problem(l);
      if (!std::isnan(a.aux[3 * b + 1])) continue;
      if (a.grad_x_s) fill_nan(s.s * s.d, a.grad_x_s + b * s.s * s.d);
      if (a.grad_y_s) fill_nan(s.s * s.c, a.grad_y_s + b * s.s * s.c);
      if (a.grad_x_q) fill_nan(s.q * s.d, a.grad_x_q + b * s.q * s.d);
      if (a.grad_hyper) fill_nan(a.hyper.count, a.grad_hyper + b * a.hyper.count);
    }
  }

  const KrrBackwardArgs<T>& a;
};

// Loss and gradients for gbar = 1, in one pass over a vector's problems.
template <class T>
class Fused : Lane<T> {
  using L = Lane<T>;
  using L::g;
  using L::s;
  using L::table;
  using L::w;

 public:
  Fused(const KrrFusedArgs<T>& args, const Group& group, const Work<T>& work)
      : L(args.shape, args.hyper, group, work), a(args),
        gamma(static_cast<T>(2 / (static_cast<double>(s.q) * static_cast<double>(s.c)))) {}

  // aux [B, 3] and jitter [B] are written and not read.
  void run(T* aux, T* jitter) {
    L::factorise(a.x_s, aux, jitter);
    L::solve_alpha(a.y_s);
    L::form_weights();
    T *e_sum = w.sums, *row = w.sums + s.c * g.width;
    queries(e_sum, row);
    if (a.grad_x_s || a.grad_y_s) {
      L::form_alpha_bar(e_sum, row);
      L::solve_u();
      if (a.grad_y_s) L::store(w.u, 0, s.s, s.c, s.s, a.grad_y_s);
    }
    if (a.grad_x_s) {
      if (L::trace_moves()) L::form_lambda_bar();
      L::support_gradient(a.grad_x_s);
    }
    for (int l = 0; l < g.count; ++l) a.status[g.problem(l)] = L::status(l, g.problem(l));
  }

 private:
  // The loss, M = X_q^T Pbar, 1^T Pbar and Xbar_q, while a few queries are in cache.
  void queries(T* e_sum, T* row) {
    L::form_bias_row(row);
    L::zero(s.d * s.c, w.moment);
    L::zero(s.c, e_sum);
    double squares[kMostLanes] = {};
    T *p = w.e, *y = w.e + w.queries * s.c * g.width;
    for (int64_t q0 = 0; q0 < s.q; q0 += w.queries) {
      const int64_t rows = std::min(w.queries, s.q - q0);
      L::load(a.x_q, q0, rows, s.d, w.x_q);
      table.product(rows, s.c, s.d, T(1), {w.x_q, s.d, 1}, {w.weights, s.c, 1}, T(0), {p, s.c, 1});
      L::load(a.y_q, q0, rows, s.c, y);
      table.finish(rows, s.c, row, y, p);
      table.inner(rows * s.c, p, p, squares);
      table.product(s.d, s.c, rows, gamma, {w.x_q, 1, s.d}, {p, s.c, 1}, T(1), {w.moment, s.c, 1});
      table.sum_rows(rows, s.c, p, e_sum);
      if (!a.grad_x_q) continue;
      table.product(rows, s.d, s.c, gamma, {p, s.c, 1}, {w.weights, 1, s.c}, T(0), {w.x_q, s.d, 1});
      L::store(w.x_q, q0, rows, s.d, s.q, a.grad_x_q);
    }
    L::times(s.c, L::each(w.scale, [&](int) { return gamma; }), e_sum);
    const double count = static_cast<double>(s.q) * static_cast<double>(s.c);
    for (int l = 0; l < g.count; ++l) a.loss[g.problem(l)] = static_cast<T>(squares[l] / count);
  }

  const KrrFusedArgs<T>& a;
  const T gamma;
};

}  // namespace

bool krr_lanes_fit(const KrrShape& s) {
  return s.kernel == KernelKind::linear && s.plan == Plan::low_rank && s.s >= 1 && s.s <= kMostSupport &&
         s.s * s.d <= kMostVectors && s.d * s.c <= kMostVectors && s.c <= kMostVectors;
}

int64_t krr_lanes_workspace(const KrrShape& s, bool backward) {
  return layout<float>(s, backward, nullptr).total * std::min<int64_t>(s.batch, s.threads) + 16;
}

template <class T>
void krr_forward_by_lanes(const KrrForwardArgs<T>& a) {
  const int64_t stride = layout<T>(a.shape, false, nullptr).total;
  for_groups<T>(a.shape.batch, work_of(a.shape, 1), a.shape.threads, [&](const Group& g, int worker) {
    const Work<T> w = layout(a.shape, false, aligned(a.work + worker * stride));
    Forward<T>(a, g, w).run();
  });
}

template <class T>
void krr_backward_by_lanes(const KrrBackwardArgs<T>& a) {
  const int64_t stride = layout<T>(a.shape, true, nullptr).total;
  for_groups<T>(a.shape.batch, work_of(a.shape, 3), a.shape.threads, [&](const Group& g, int worker) {
    const Work<T> w = layout(a.shape, true, aligned(a.work + worker * stride));
    Backward<T>(a, g, w).run();
  });
}

int64_t krr_fused_by_lanes_workspace(const KrrShape& s) { return krr_lanes_workspace(s, true) + 4 * s.batch; }

template <class T>
void krr_fused_by_lanes(const KrrFusedArgs<T>& a) {
  const int64_t stride = layout<T>(a.shape, true, nullptr).total;
  T *aux = a.work, *jitter = aux + 3 * a.shape.batch, *work = jitter + a.shape.batch;
  for_groups<T>(a.shape.batch, work_of(a.shape, 3), a.shape.threads, [&](const Group& g, int worker) {
    const Work<T> w = layout(a.shape, true, aligned(work + worker * stride));
    Fused<T>(a, g, w).run(aux, jitter);
  });
}

template void krr_fused_by_lanes(const KrrFusedArgs<float>&);
template void krr_fused_by_lanes(const KrrFusedArgs<double>&);
template void krr_forward_by_lanes(const KrrForwardArgs<float>&);
template void krr_forward_by_lanes(const KrrForwardArgs<double>&);
template void krr_backward_by_lanes(const KrrBackwardArgs<float>&);
template void krr_backward_by_lanes(const KrrBackwardArgs<double>&);

}  // namespace ssdd::cpu

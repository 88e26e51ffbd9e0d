// One row of the tables of krr_forward() and krr_backward(): its problems, both passes, and their comparison with the
// formulas.
#pragma once
#include "krr.h"

#include "naive_krr.h"

namespace test {

using ssdd::KernelKind;
using ssdd::OnFailure;
using ssdd::Plan;
using ssdd::RidgeKind;

enum Wanted { kXs = 1, kYs = 2, kXq = 4, kHyper = 8, kAll = 15 };

struct Case {
  int64_t batch, s, q, d, c;
  KernelKind kernel = KernelKind::linear;
  Plan forward = Plan::dense;
  double bias = 0.5;
  RidgeKind ridge = RidgeKind::trace;
  bool detach = false, tensor = false, loss = true, keep = true;
  int64_t chunk = 0;  // 0: all queries
  Layout x = Layout::dense, y = Layout::dense;
  OnFailure on_failure = OnFailure::nan;
  bool border = false;                           // primal: a row and column for a bias even if it is 0
  bool fused = false;                            // the GPU forms K_ss in the kernel that factors it
  int64_t parts = 0;                             // blocks of queries that read them once, on a GPU; with a loss
  double far = 0;                                // between the clusters of points, in every second problem of a batch
  Kernel function = {KernelKind::linear, 0, 0};  // of a kernel other than linear and rbf
  bool always = false;                           // the sanitizers' sample always contains this row
  bool bordered() const { return forward == Plan::primal && (bias > 0 || border); }
};

inline const char* plan_name(Plan plan) {
  static const char* const names[] = {"dense", "low_rank", "mixed", "primal"};
  return names[static_cast<int>(plan)];
}

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << name(c.kernel) << " " << plan_name(c.forward) << " B=" << c.batch << " S=" << c.s << " Q=" << c.q
             << " D=" << c.d << " C=" << c.c << " bias " << c.bias << " " << name(c.ridge)
             << (c.detach ? " detached" : "") << (c.loss ? " loss" : "") << (c.keep ? " kept" : "") << " chunk "
             << c.chunk << " " << name(c.x) << " " << name(c.y) << (c.fused ? " fused" : "") << " parts " << c.parts
             << " far " << c.far;
}

template <class T>
struct Run {
  Case c;
  int threads;
  std::vector<NaiveKrr> naive;
  std::vector<Matrix> x_s, y_s, x_q, y_q, g;
  std::vector<std::vector<double>> hyper;

  std::unique_ptr<Input<T>> x_s_in, y_s_in, x_q_in, y_q_in, g_in;
  std::unique_ptr<Hypers<T>> hypers;
  std::vector<T> out, loss, factor, coef, kept, aux, jitter, parts;
  std::vector<int32_t> status;

  explicit Run(const Case& which) : c(which), threads(1) {
    for (int64_t b = 0; b < c.batch; ++b) {
      x_s.push_back(random(c.s, c.d));
      y_s.push_back(random(c.s, c.c));
      x_q.push_back(random(c.q, c.d));
      if (c.far > 0 && b % 2 == 0) move_apart(x_s.back()), move_apart(x_q.back());
      y_q.push_back(random(c.q, c.c));
      g.push_back(random(1, 1));
      const double first = c.kernel == KernelKind::rbf ? std::sqrt(double(c.d)) : 1.5;
      double v = 0.05;  // keeps the condition number near 20
      if (c.ridge == RidgeKind::mean_trace) v *= double(c.s);
      if (c.ridge == RidgeKind::absolute) v *= double(c.s) * (c.kernel == KernelKind::linear ? double(c.d) / 2 : 1.0);
      if (ssdd::keeps_argument(c.kernel))
        hyper.push_back(parameters(c.function));
      else
        hyper.push_back(c.kernel == KernelKind::rbf ? std::vector<double>{first} : std::vector<double>{first, c.bias});
      hyper.back().push_back(v);
    }
    x_s_in.reset(new Input<T>(x_s, c.x)), x_q_in.reset(new Input<T>(x_q, c.x));
    y_s_in.reset(new Input<T>(y_s, c.y)), y_q_in.reset(new Input<T>(y_q, c.y));
    g_in.reset(new Input<T>(g, Layout::dense));
    hypers.reset(new Hypers<T>(hyper, c.tensor));
    for (size_t b = 0; b < size_t(c.batch); ++b) {
      Kernel kernel{c.kernel, hyper[b][0], c.kernel == KernelKind::rbf ? 0 : hyper[b][1]};
      if (ssdd::keeps_argument(c.kernel)) kernel = c.function;
      naive.push_back({x_s[b], y_s[b], x_q[b], kernel, c.ridge, c.detach, hyper[b].back(), {}, {}, {}, {}, {}});
      naive[b].forward();
    }
  }

  // Three clusters, of points that a float holds.
  void move_apart(Matrix& x) const {
    for (int64_t i = 0; i < x.rows; ++i)
      for (int64_t j = 0; j < x.columns; ++j) x(i, j) = float(x(i, j) + c.far * double(i % 3));
  }

  double bound() const { return tolerance<T>(7000 + 100 * double(c.s) + 20 * double(c.d)); }

  std::string where(int64_t b) const {
    std::ostringstream text;
    text << type_name<T>() << " " << c << ", " << threads << " threads, problem " << b;
    return text.str();
  }

  ssdd::KrrShape shape(Plan plan) const {
    const bool bordered = c.bordered();
    const int64_t chunk = c.chunk ? c.chunk : std::max<int64_t>(1, c.q);
    const int64_t n = c.forward == Plan::primal ? c.d + bordered : c.s;
    ssdd::KrrShape shape{c.batch,  c.s,      c.q,  c.d,   c.c,     n,       c.kernel, c.ridge,
                         c.detach, bordered, plan, chunk, threads, c.fused, false,    c.function.order};
    shape.parts = c.parts;
    return shape;
  }

  void forward() {
    const ssdd::KrrShape s = shape(c.forward);
    out = poisoned<T>(c.batch * c.q * c.c);
    loss = poisoned<T>(c.batch);
    factor = poisoned<T>(c.batch * s.n * s.n);
    coef = poisoned<T>(c.batch * s.n * c.c);
    kept = poisoned<T>(c.forward == Plan::dense && c.keep ? c.batch * kept_rows(c.kernel, c.s, c.q) * c.s : 0);
    parts = poisoned<T>(c.parts && c.keep ? c.batch * c.parts * ssdd::one_pass_part(c.s, c.d, c.c) : 0);
    aux = poisoned<T>(c.batch * 3);
    jitter = poisoned<T>(c.batch);
    status.assign(size_t(c.batch), 77);
    ssdd::KrrForwardArgs<T> a{};
    a.shape = s;
    a.x_s = x_s_in->view;
    a.y_s = y_s_in->view;
    a.x_q = x_q_in->view;
    if (c.loss) {
      a.y_q = y_q_in->view;
      a.loss = loss.data();
    }
    a.out = out.data();
    a.factor = factor.data();
    a.coef = coef.data();
    a.aux = aux.data();
    a.kept = kept.empty() ? nullptr : kept.data();
    a.parts = parts.empty() ? nullptr : parts.data();
    a.jitter = jitter.data();
    a.status = status.data();
    a.hyper = hypers->hyper;
    a.on_failure = c.on_failure;
    a.work = workspace<T>(ssdd::cpu::krr_workspace(s, false));
    ssdd::cpu::krr_forward(a);
  }

  void check_forward() const {
    for (int64_t b = 0; b < c.batch; ++b) {
      const size_t e = size_t(b);
      const NaiveKrr& n = naive[e];
      CHECK(status[e] == 0 && jitter[e] == 0, where(b) << ": status " << status[e] << ", jitter " << jitter[e]);
      const Matrix want = c.loss ? n.p - y_q[e] : n.p;
      const double off = error(problem(out, b, c.q, c.c), want);
      CHECK(off <= bound(), where(b) << ": predictions are off by " << off);
      if (c.loss) {
        const double mean = dot(want, want) / double(c.q * c.c);
        CHECK(std::fabs(double(loss[e]) / mean - 1) <= bound(), where(b) << ": loss " << loss[e] << " not " << mean);
      }
      const bool primal = c.forward == Plan::primal;
      const Matrix coefficients = primal ? n.primal_weights(c.bordered()) : n.alpha;
      const double off_coef = error(problem(coef, b, coefficients.rows, c.c), coefficients);
      CHECK(off_coef <= bound(), where(b) << ": coefficients are off by " << off_coef);
      const double off_trace = std::fabs(double(aux[e * 3]) / trace(n.k_ss) - 1);
      const double off_lambda = std::fabs(double(aux[e * 3 + 1]) / n.lambda - 1);
      CHECK(off_trace <= bound() && off_lambda <= bound(), where(b) << ": trace or lambda");
      if (!kept.empty()) {
        const int64_t rows = ssdd::kept_rows(c.kernel, c.s, c.q);
        const std::vector<T> own(kept.begin() + b * rows * c.s, kept.begin() + (b + 1) * rows * c.s);
        const double off_kept = error(problem(own, 0, c.q, c.s), n.k_qs);
        CHECK(off_kept <= bound(), where(b) << ": K_qs is off by " << off_kept);
      }
    }
  }

  struct Gradients {
    std::vector<T> x_s, y_s, x_q, hyper;
  };

  Gradients backward(Plan plan, const ssdd::Batch<const T>& e, bool with_g, int wanted) const {
    const int count = hypers->hyper.count;
    Gradients r{poisoned<T>(c.batch * c.s * c.d), poisoned<T>(c.batch * c.s * c.c), poisoned<T>(c.batch * c.q * c.d),
                poisoned<T>(c.batch * count)};
    ssdd::KrrBackwardArgs<T> a{};
    a.shape = shape(plan);
    a.x_s = x_s_in->view;
    a.y_s = y_s_in->view;
    a.x_q = x_q_in->view;
    a.e = e;
    if (with_g) a.g = g_in->view;
    a.factor = factor.data();
    a.coef = coef.data();
    a.aux = aux.data();
    a.kept = kept.empty() ? nullptr : kept.data();
    a.parts = parts.empty() ? nullptr : parts.data();
    a.hyper = hypers->hyper;
    if (wanted & kXs) a.grad_x_s = r.x_s.data();
    if (wanted & kYs) a.grad_y_s = r.y_s.data();
    if (wanted & kXq) a.grad_x_q = r.x_q.data();
    if (wanted & kHyper) a.grad_hyper = r.hyper.data();
    a.work = workspace<T>(ssdd::cpu::krr_workspace(a.shape, true));
    ssdd::cpu::krr_backward(a);
    return r;
  }

  void check_backward(Plan plan, int wanted = kAll) {
    std::vector<Matrix> e, p_bar;
    for (int64_t b = 0; b < c.batch; ++b) e.push_back(random(c.q, c.c));
    std::unique_ptr<Input<T>> e_in;
    ssdd::Batch<const T> e_view{out.data(), c.q * c.c, c.c, 1};  // R, as the forward wrote it
    if (!c.loss) {
      e_in.reset(new Input<T>(e, c.y));
      e_view = e_in->view;
    }
    for (size_t b = 0; b < size_t(c.batch); ++b)
      p_bar.push_back(c.loss ? 2 * g[b](0, 0) / double(c.q * c.c) * (naive[b].p - y_q[b]) : e[b]);
    const Gradients got = backward(plan, e_view, c.loss, wanted);
    const Gradients again = backward(plan, e_view, c.loss, wanted);
    CHECK(!(wanted & kXs) || got.x_s == again.x_s, where(0) << ": different bits the second time");
    for (int64_t b = 0; b < c.batch; ++b) {
      const NaiveKrr::Gradients want = naive[size_t(b)].backward(p_bar[size_t(b)]);
      const auto compare = [&](Wanted which, const char* what, const std::vector<T>& v, const Matrix& m) {
        if (!(wanted & which)) return;
        // With fewer points than features the primal's V is large, and cancels in U = Phi V.
        const double slack = which == kYs && plan == Plan::primal && c.s < c.d ? 4 : 1;
        const double off = error(problem(v, b, m.rows, m.columns), m);
        CHECK(off <= slack * bound(), where(b)
                                          << ", " << plan_name(plan) << " backward: " << what << " is off by " << off);
      };
      compare(kXs, "grad_x_s", got.x_s, want.x_s);
      compare(kYs, "grad_y_s", got.y_s, want.y_s);
      compare(kXq, "grad_x_q", got.x_q, want.x_q);
      if (!(wanted & kHyper)) continue;
      const int count = hypers->hyper.count;
      const auto number = [&](const char* what, int i, double value, double size) {
        const double off = std::fabs(double(got.hyper[size_t(b * count + i)]) - value) / (size > 0 ? size : 1);
        CHECK(off <= bound(), where(b) << ", " << plan_name(plan) << " backward: " << what << " is off by " << off);
      };
      const int parameters = ssdd::parameter_count(c.kernel);
      if (parameters > 0) number("the first parameter's gradient", 0, want.first, want.first_size);
      // A primal without the bias's row and column does not depend on it.
      if (parameters > 1 && (c.forward != Plan::primal || c.bordered()))
        number("grad_bias", 1, want.bias, want.bias_size);
      const bool primal = c.forward == Plan::primal;
      const double primal_size = primal ? naive[size_t(b)].primal_v_size(p_bar[size_t(b)], want.y_s, c.bordered()) : 0;
      number("grad_v", count - 1, want.v, std::max(want.v_size, primal_size));
    }
  }
};

inline std::vector<Plan> backward_plans(const Case& c) {
  if (c.forward == Plan::primal) return {Plan::primal};
  if (c.kernel != KernelKind::linear) return {Plan::dense};
  return {Plan::dense, Plan::low_rank, Plan::mixed};
}

template <class T>
void run(const Case& c, int threads) {
  if (!in_sample(c.forward == Plan::primal ? c.d + c.bordered() : c.s, c.always)) return;
  Run<T> r(c);
  for (r.threads = 1; r.threads <= most_threads(threads); ++r.threads) {
    r.forward();
    r.check_forward();
    const std::vector<T> first = r.out;
    r.forward();
    CHECK(r.out == first, r.where(0) << ": different bits the second time");
    for (Plan plan : backward_plans(c)) r.check_backward(plan);
  }
}

// Runs the case with each kernel and each possible forward plan, alternately fused and not, each with both types.
inline void everywhere(Case c, int threads = 2) {
  static bool fused = false;
  for (Plan plan : {Plan::dense, Plan::low_rank, Plan::primal}) {
    c.forward = plan;
    c.fused = (plan == Plan::dense) != fused;
    run<float>(c, threads);
    c.fused = !c.fused;
    run<double>(c, threads);
  }
  c.kernel = KernelKind::rbf;
  c.forward = Plan::dense;
  c.fused = fused;
  run<float>(c, threads);
  c.fused = !fused;
  run<double>(c, threads);
  fused = !fused;
}

}  // namespace test

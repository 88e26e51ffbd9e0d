// krr_fused(): loss and gradients in one pass, against the naive problem with gbar = 1.
#include "krr.h"
#include "naive_krr.h"

using namespace test;
using ssdd::KernelKind;
using ssdd::OnFailure;
using ssdd::Plan;
using ssdd::RidgeKind;

namespace {

struct Case {
  int64_t batch, s, q, d, c;
  double bias = 0.5;
  RidgeKind ridge = RidgeKind::trace;
  bool detach = false;
  Layout x = Layout::dense, y = Layout::dense;
  int wanted = 7;  // bits: x_s, y_s, x_q
  bool lanes = false;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B=" << c.batch << " S=" << c.s << " Q=" << c.q << " D=" << c.d << " C=" << c.c << " bias " << c.bias
             << " " << name(c.ridge) << (c.detach ? " detached " : " ") << name(c.x) << " " << name(c.y) << " wanted "
             << c.wanted << (c.lanes ? " by lanes" : "");
}

template <class T>
struct Result {
  std::vector<T> loss, x_s, y_s, x_q;
  std::vector<int32_t> status;
};

template <class T>
struct Problems {
  Case c;
  std::vector<Matrix> x_s, y_s, x_q, y_q;
  std::unique_ptr<Input<T>> x_s_in, y_s_in, x_q_in, y_q_in;
  std::unique_ptr<Hypers<T>> hypers;

  explicit Problems(const Case& which) : c(which) {
    std::vector<std::vector<double>> hyper;
    for (int64_t b = 0; b < c.batch; ++b) {
      x_s.push_back(random(c.s, c.d)), y_s.push_back(random(c.s, c.c));
      x_q.push_back(random(c.q, c.d)), y_q.push_back(random(c.q, c.c));
      hyper.push_back({1.5, c.bias, c.ridge == RidgeKind::absolute ? 0.05 * double(c.s * c.d) : 0.05 * double(c.s)});
      if (c.ridge == RidgeKind::trace) hyper.back()[2] = 0.05;
    }
    x_s_in.reset(new Input<T>(x_s, c.x)), x_q_in.reset(new Input<T>(x_q, c.x));
    y_s_in.reset(new Input<T>(y_s, c.y)), y_q_in.reset(new Input<T>(y_q, c.y));
    hypers.reset(new Hypers<T>(hyper, true));
    v = hyper[0][2];
  }
  double v;

  Result<T> run(int threads) const {
    const Plan plan = c.lanes ? Plan::low_rank : Plan::dense;
    ssdd::KrrShape s{c.batch, c.s,      c.q,   c.d,  c.c, c.s,    KernelKind::linear,
                     c.ridge, c.detach, false, plan, c.q, threads};
    s.lanes = c.lanes;
    CHECK(ssdd::cpu::krr_fuses(s, plan), c << ": should be fused");
    Result<T> r{poisoned<T>(c.batch), poisoned<T>(c.batch * c.s * c.d), poisoned<T>(c.batch * c.s * c.c),
                poisoned<T>(c.batch * c.q * c.d), std::vector<int32_t>(size_t(c.batch), 77)};
    ssdd::KrrFusedArgs<T> a{};
    a.shape = s;
    a.x_s = x_s_in->view;
    a.y_s = y_s_in->view;
    a.x_q = x_q_in->view;
    a.y_q = y_q_in->view;
    a.loss = r.loss.data();
    a.status = r.status.data();
    a.hyper = hypers->hyper;
    a.on_failure = OnFailure::nan;
    if (c.wanted & 1) a.grad_x_s = r.x_s.data();
    if (c.wanted & 2) a.grad_y_s = r.y_s.data();
    if (c.wanted & 4) a.grad_x_q = r.x_q.data();
    a.work = workspace<T>(ssdd::cpu::krr_fused_workspace(s));
    ssdd::cpu::krr_fused(a);
    return r;
  }
};

template <class T>
void check(const Case& c) {
  const Problems<T> p(c);
  const double bound = tolerance<T>(5000 + 100 * double(c.s) + 20 * double(c.d));
  for (int threads : {1, 2, 3}) {
    const Result<T> got = p.run(threads), again = p.run(threads);
    CHECK(got.loss == again.loss && (!(c.wanted & 1) || got.x_s == again.x_s), c << ": different bits the second time");
    for (int64_t b = 0; b < c.batch; ++b) {
      const size_t e = size_t(b);
      NaiveKrr n{p.x_s[e], p.y_s[e], p.x_q[e], {KernelKind::linear, 1.5, c.bias}, c.ridge, c.detach, p.v, {}, {},
                 {},       {},       {}};
      n.forward();
      const Matrix residual = n.p - p.y_q[e];
      const double loss = dot(residual, residual) / double(c.q * c.c);
      const NaiveKrr::Gradients want = n.backward(2 / double(c.q * c.c) * residual);
      CHECK(got.status[e] == 0, c << ": status " << got.status[e]);
      CHECK(std::fabs(double(got.loss[e]) / loss - 1) <= bound, c << ": loss " << got.loss[e] << " not " << loss);
      const auto compare = [&](int bit, const char* what, const std::vector<T>& v, const Matrix& m) {
        if (!(c.wanted & bit)) {
          CHECK(all_nan(problem(v, b, m.rows, m.columns)), c << ": " << what << " was written");
          return;
        }
        const double off = error(problem(v, b, m.rows, m.columns), m);
        CHECK(off <= bound, type_name<T>()
                                << " " << c << ", " << threads << " threads: " << what << " is off by " << off);
      };
      compare(1, "grad_x_s", got.x_s, want.x_s);
      compare(2, "grad_y_s", got.y_s, want.y_s);
      compare(4, "grad_x_q", got.x_q, want.x_q);
    }
  }
}

void both(const Case& c) {
  check<float>(c);
  check<double>(c);
}

}  // namespace

TEST(krr_fused_sizes) {
  for (int64_t s : {1, 7, 20})
    for (int64_t q : {1, 37, 150})
      for (int64_t d : {20, 67}) both({1, s, q, d, 3});
  both({1, 12, 1100, 30, 2});  // sums that are added to a total
  both({1, 10, 80, 600, 64});  // several strips of columns
}

TEST(krr_fused_ridges_layouts_and_wanted) {
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true})
      for (double bias : {0.0, 1.0}) both({3, 8, 30, 12, 4, bias, ridge, detach});
  for (Layout x : {Layout::dense, Layout::padded, Layout::reversed, Layout::shared})
    for (Layout y : kLayouts) both({2, 8, 30, 12, 4, 0.5, RidgeKind::trace, false, x, y});
  for (int wanted = 0; wanted < 8; ++wanted)
    both({5, 8, 30, 12, 4, 0.5, RidgeKind::trace, false, Layout::dense, Layout::dense, wanted});
}

TEST(krr_fused_by_lanes) {
  const auto lanes = [](Case c) {
    c.lanes = true;
    both(c);
  };
  lanes({21, 16, 16, 32, 4});  // several vectors, the last one not full
  lanes({3, 1, 1, 1, 1});
  lanes({5, 33, 70, 20, 9});  // queries several times
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true}) lanes({3, 7, 11, 12, 3, detach ? 0.0 : 1.0, ridge, detach});
  for (Layout x : {Layout::dense, Layout::reversed, Layout::shared})
    lanes({4, 6, 9, 10, 2, 0.5, RidgeKind::trace, false, x, Layout::padded});
  for (int wanted = 0; wanted < 8; ++wanted)
    lanes({5, 6, 9, 10, 2, 0.5, RidgeKind::trace, false, Layout::dense, Layout::dense, wanted});
}

void bad_problems_stay_alone(bool lanes) {
  Case c{4, 6, 40, 9, 2};
  c.lanes = lanes;
  Problems<double> p(c);
  const Result<double> whole = p.run(1);
  p.hypers->memory[size_t(p.hypers->hyper.bs) + 2] = -1;
  p.x_s_in->memory[size_t(2 * c.s * c.d)] = std::numeric_limits<double>::quiet_NaN();
  for (int threads : {1, 3}) {
    const Result<double> r = p.run(threads);
    CHECK(r.status[1] == ssdd::kBadParameter && r.status[2] == 1, r.status[1] << " " << r.status[2]);
    for (size_t b : {size_t(0), size_t(3)})
      CHECK(r.status[b] == 0 && std::fabs(r.loss[b] / whole.loss[b] - 1) < 1e-12, "problem " << b << " changed");
  }
}

TEST(krr_fused_bad_problems_stay_alone) {
  bad_problems_stay_alone(false);
  bad_problems_stay_alone(true);
}

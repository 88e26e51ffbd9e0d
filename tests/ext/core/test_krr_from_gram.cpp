// krr_from_gram() and its backward against explicit inverses in fp64.
#include "krr.h"
#include "naive.h"

using namespace test;
using ssdd::OnFailure;
using ssdd::RidgeKind;

namespace {

struct Case {
  int64_t batch, s, q, c;
  RidgeKind ridge = RidgeKind::trace;
  bool detach = false, loss = true;
  Layout k = Layout::dense, y = Layout::dense;
  int wanted = 3;  // bits: k_ss, k_qs
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B=" << c.batch << " S=" << c.s << " Q=" << c.q << " C=" << c.c << " " << name(c.ridge)
             << (c.detach ? " detached " : " ") << (c.loss ? "loss " : "predictions ") << name(c.k) << " " << name(c.y)
             << " wanted " << c.wanted;
}

template <class T>
struct Result {
  std::vector<T> out, loss, moment, factor, alpha, aux, jitter, k_ss, y_s, k_qs;
  std::vector<int32_t> status;
};

template <class T>
struct Problems {
  Case c;
  double v;
  std::vector<Matrix> k_ss, y_s, k_qs, y_q, p_bar, g;
  std::unique_ptr<Input<T>> k_ss_in, y_s_in, k_qs_in, y_q_in, p_bar_in, g_in;
  std::unique_ptr<Hypers<T>> hypers;

  explicit Problems(const Case& which) : c(which), v(c.ridge == RidgeKind::absolute ? 0.3 : 0.05) {
    if (c.ridge == RidgeKind::mean_trace) v *= double(c.s);
    for (int64_t b = 0; b < c.batch; ++b) {
      const Matrix x = random(c.s, c.s + 3);
      k_ss.push_back((1.0 / double(c.s + 3)) * (x * transpose(x)));
      y_s.push_back(random(c.s, c.c));
      k_qs.push_back(random(c.q, c.s));
      y_q.push_back(random(c.q, c.c));
      p_bar.push_back(random(c.q, c.c));
      g.push_back(random(1, 1));
    }
    k_ss_in.reset(new Input<T>(k_ss, c.k)), k_qs_in.reset(new Input<T>(k_qs, c.k));
    y_s_in.reset(new Input<T>(y_s, c.y)), y_q_in.reset(new Input<T>(y_q, c.y));
    p_bar_in.reset(new Input<T>(p_bar, c.y)), g_in.reset(new Input<T>(g, Layout::dense));
    hypers.reset(new Hypers<T>({{v}}, false));
  }

  Result<T> run(int threads, bool keeps, OnFailure on_failure = OnFailure::nan) const {
    const int64_t sc = c.batch * c.s * c.c, ss = c.batch * c.s * c.s, qc = c.batch * c.q * c.c;
    Result<T> r{poisoned<T>(qc),
                poisoned<T>(c.batch),
                poisoned<T>(sc),
                poisoned<T>(ss),
                poisoned<T>(sc),
                poisoned<T>(3 * c.batch),
                poisoned<T>(c.batch),
                poisoned<T>(ss),
                poisoned<T>(sc),
                poisoned<T>(c.batch * c.q * c.s),
                std::vector<int32_t>(size_t(c.batch), 77)};
    ssdd::FromGramArgs<T> a{};
    a.batch = c.batch;
    a.s = c.s;
    a.q = c.q;
    a.c = c.c;
    a.k_ss = k_ss_in->view;
    a.y_s = y_s_in->view;
    a.k_qs = k_qs_in->view;
    if (c.loss) a.y_q = y_q_in->view;
    a.out = r.out.data();
    a.loss = c.loss ? r.loss.data() : nullptr;
    a.moment = keeps ? r.moment.data() : nullptr;
    a.factor = r.factor.data();
    a.alpha = r.alpha.data();
    a.aux = r.aux.data();
    a.jitter = r.jitter.data();
    a.status = r.status.data();
    a.hyper = hypers->hyper;
    a.ridge = c.ridge;
    a.on_failure = on_failure;
    a.threads = threads;
    a.work = workspace<T>(ssdd::cpu::krr_from_gram_workspace(c.batch, c.s, c.c, threads));
    ssdd::cpu::krr_from_gram(a);
    ssdd::FromGramBackwardArgs<T> d{};
    d.batch = c.batch;
    d.s = c.s;
    d.q = c.q;
    d.c = c.c;
    d.k_qs = k_qs_in->view;
    d.e = p_bar_in->view;
    if (c.loss) {
      d.e = {r.out.data(), c.q * c.c, c.c, 1};
      d.g = g_in->view;
    }
    d.moment = keeps ? r.moment.data() : nullptr;
    d.factor = r.factor.data();
    d.alpha = r.alpha.data();
    d.aux = r.aux.data();
    d.grad_k_ss = c.wanted & 1 ? r.k_ss.data() : nullptr;
    d.grad_y_s = r.y_s.data();
    d.grad_k_qs = c.wanted & 2 ? r.k_qs.data() : nullptr;
    d.hyper = hypers->hyper;
    d.ridge = c.ridge;
    d.detach = c.detach;
    d.threads = threads;
    d.work = workspace<T>(ssdd::cpu::krr_from_gram_workspace(c.batch, c.s, c.c, threads));
    ssdd::cpu::krr_from_gram_backward(d);
    return r;
  }
};

template <class T>
void check(const Case& c) {
  if (!in_sample(c.s)) return;
  const Problems<T> p(c);
  const double bound = tolerance<T>(3000 + 100 * double(c.s));
  for (int threads : {1, 2, 3})
    for (bool keeps : {false, true}) {
      if (keeps && !c.loss) continue;
      const Result<T> got = p.run(threads, keeps), again = p.run(threads, keeps);
      CHECK(std::memcmp(got.y_s.data(), again.y_s.data(), got.y_s.size() * sizeof(T)) == 0 && got.out == again.out,
            c << ": different bits the second time");
      for (int64_t b = 0; b < c.batch; ++b) {
        const size_t e = size_t(b);
        const double slope = ridge_slope(c.ridge, trace(p.k_ss[e]), c.s);
        const Matrix inverse_a = inverse(add_to_diagonal(p.k_ss[e], p.v * slope)), alpha = inverse_a * p.y_s[e];
        const Matrix out = p.k_qs[e] * alpha - (c.loss ? 1.0 : 0.0) * p.y_q[e];
        const double loss = dot(out, out) / double(c.q * c.c);
        const Matrix p_bar = c.loss ? (2 * p.g[e](0, 0) / double(c.q * c.c)) * out : p.p_bar[e];
        const Matrix y_bar = inverse_a * (transpose(p.k_qs[e]) * p_bar);
        Matrix k_ss_bar = -0.5 * (y_bar * transpose(alpha) + alpha * transpose(y_bar));
        if (!c.detach) k_ss_bar = add_to_diagonal(k_ss_bar, -trace_slope(c.ridge, p.v, c.s) * dot(y_bar, alpha));
        CHECK(got.status[e] == 0, c << ": status " << got.status[e]);
        if (c.loss) CHECK(std::fabs(double(got.loss[e]) / loss - 1) <= bound, c << ": loss " << got.loss[e]);
        const auto compare = [&](bool wanted, const char* what, const std::vector<T>& v, const Matrix& m) {
          if (!wanted) {
            CHECK(all_nan(problem(v, b, m.rows, m.columns)), c << ": " << what << " was written");
            return;
          }
          const double off = error(problem(v, b, m.rows, m.columns), m);
          CHECK(off <= bound, type_name<T>() << " " << c << ", " << threads << " threads, kept " << keeps << ": "
                                             << what << " is off by " << off);
        };
        compare(true, "out", got.out, out);
        compare(keeps, "moment", got.moment, transpose(p.k_qs[e]) * out);
        compare(true, "grad_y_s", got.y_s, y_bar);
        compare(c.wanted & 1, "grad_k_ss", got.k_ss, k_ss_bar);
        compare(c.wanted & 2, "grad_k_qs", got.k_qs, p_bar * transpose(alpha));
      }
    }
}

void both(const Case& c) {
  check<float>(c);
  check<double>(c);
}

}  // namespace

TEST(krr_from_gram_sizes) {
  for (int64_t s : {1, 7, 40, 150})
    for (int64_t q : {1, 37, 300})
      for (int64_t c : {1, 10, 33}) both({1, s, q, c});
  both({1, 30, 2500, 4});  // several blocks of K_qs
  both({5, 20, 50, 3});    // a batch, by lanes
  both({3, 140, 60, 5});   // a batch, one problem per thread
}

TEST(krr_from_gram_ridges_layouts_and_wanted) {
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true})
      for (bool loss : {false, true}) both({3, 8, 30, 4, ridge, detach, loss});
  for (Layout k : kLayouts)
    for (Layout y : kLayouts) both({2, 8, 30, 4, RidgeKind::trace, false, y == k, k, y});
  for (int wanted = 0; wanted < 4; ++wanted)
    both({2, 8, 30, 4, RidgeKind::trace, false, true, Layout::dense, Layout::dense, wanted});
}

TEST(krr_from_gram_bad_problems_stay_alone) {
  const Case c{4, 6, 40, 2};
  Problems<double> p(c);
  const Result<double> whole = p.run(1, true);
  p.k_ss_in->memory[size_t(c.s * c.s)] = -100;
  for (int threads : {1, 3}) {
    const Result<double> r = p.run(threads, true);
    CHECK(r.status[1] == 1 && std::isnan(r.loss[1]), r.status[1] << " " << r.loss[1]);
    for (double value : problem(r.k_qs, 1, c.q, c.s).v) CHECK(std::isnan(value), value);
    for (size_t b : {size_t(0), size_t(2), size_t(3)})
      CHECK(r.status[b] == 0 && std::fabs(r.loss[b] / whole.loss[b] - 1) < 1e-12, "problem " << b << " changed");
  }
}

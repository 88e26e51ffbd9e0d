// One problem per lane of a vector: every order and rest of a vector, KRR against the naive problem, and that no problem
// reads what its neighbours are.
#include <algorithm>

#include "cholesky.h"
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
  bool detach = false, loss = true, save = true;
  Layout x = Layout::dense, y = Layout::dense;
  int wanted = 15;  // bits: x_s, y_s, x_q, hyper-parameters
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B=" << c.batch << " S=" << c.s << " Q=" << c.q << " D=" << c.d << " C=" << c.c << " bias " << c.bias
             << " " << name(c.ridge) << (c.detach ? " detached " : " ") << (c.loss ? "loss " : "") << name(c.x) << " "
             << name(c.y) << " wanted " << c.wanted;
}

template <class T>
struct Result {
  std::vector<T> out, loss, factor, coef, aux, jitter, x_s, y_s, x_q, hyper;
  std::vector<int32_t> status;
};

template <class T>
struct Problems {
  Case c;
  std::vector<Matrix> x_s, y_s, x_q, y_q, g;
  std::unique_ptr<Input<T>> x_s_in, y_s_in, x_q_in, y_q_in, g_in;
  std::unique_ptr<Hypers<T>> hypers;
  std::vector<std::vector<double>> values;

  explicit Problems(const Case& which) : c(which) {
    for (int64_t b = 0; b < c.batch; ++b) {
      x_s.push_back(random(c.s, c.d)), y_s.push_back(random(c.s, c.c));
      x_q.push_back(random(c.q, c.d)), y_q.push_back(random(c.q, c.c));
      g.push_back(random(1, 1));
      double v = 0.05;
      if (c.ridge == RidgeKind::mean_trace) v *= double(c.s);
      if (c.ridge == RidgeKind::absolute) v *= double(c.s * c.d);
      values.push_back({1.5, c.bias, v});
    }
    x_s_in.reset(new Input<T>(x_s, c.x)), x_q_in.reset(new Input<T>(x_q, c.x));
    y_s_in.reset(new Input<T>(y_s, c.y)), y_q_in.reset(new Input<T>(y_q, c.y));
    g_in.reset(new Input<T>(g, Layout::dense));
    hypers.reset(new Hypers<T>(values, true));
  }

  ssdd::KrrShape shape(int threads) const {
    ssdd::KrrShape s{c.batch,        c.s, c.q,    c.d, c.c, c.s, KernelKind::linear, c.ridge, c.detach, false,
                     Plan::low_rank, 1,   threads};
    CHECK(ssdd::cpu::krr_lanes_fit(s), c << ": should fit lanes");
    s.lanes = true;
    return s;
  }

  Result<T> run(int threads, OnFailure on_failure = OnFailure::nan) const {
    const ssdd::KrrShape s = shape(threads);
    Result<T> r;
    r.out = poisoned<T>(c.batch * c.q * c.c), r.loss = poisoned<T>(c.batch);
    r.factor = poisoned<T>(c.batch * c.s * c.s), r.coef = poisoned<T>(c.batch * c.s * c.c);
    r.aux = poisoned<T>(3 * c.batch), r.jitter = poisoned<T>(c.batch), r.status.assign(size_t(c.batch), 77);
    ssdd::KrrForwardArgs<T> a{};
    a.shape = s;
    a.x_s = x_s_in->view, a.y_s = y_s_in->view, a.x_q = x_q_in->view;
    if (c.loss) a.y_q = y_q_in->view, a.loss = r.loss.data();
    a.out = r.out.data(), a.aux = r.aux.data(), a.jitter = r.jitter.data(), a.status = r.status.data();
    if (c.save) a.factor = r.factor.data(), a.coef = r.coef.data();
    a.hyper = hypers->hyper, a.on_failure = on_failure;
    a.work = workspace<T>(ssdd::cpu::krr_workspace(s, false));
    ssdd::cpu::krr_forward(a);
    if (!c.save) return r;
    r.x_s = poisoned<T>(c.batch * c.s * c.d), r.y_s = poisoned<T>(c.batch * c.s * c.c);
    r.x_q = poisoned<T>(c.batch * c.q * c.d), r.hyper = poisoned<T>(c.batch * 3);
    ssdd::KrrBackwardArgs<T> g{};
    g.shape = s;
    g.x_s = a.x_s, g.y_s = a.y_s, g.x_q = a.x_q;
    g.e = c.loss ? ssdd::Batch<const T>{r.out.data(), c.q * c.c, c.c, 1} : y_q_in->view;
    if (c.loss) g.g = g_in->view;
    g.factor = a.factor, g.coef = a.coef, g.aux = a.aux, g.hyper = a.hyper;
    if (c.wanted & 1) g.grad_x_s = r.x_s.data();
    if (c.wanted & 2) g.grad_y_s = r.y_s.data();
    if (c.wanted & 4) g.grad_x_q = r.x_q.data();
    if (c.wanted & 8) g.grad_hyper = r.hyper.data();
    g.work = workspace<T>(ssdd::cpu::krr_workspace(s, true));
    ssdd::cpu::krr_backward(g);
    return r;
  }
};

template <class T>
void check(const Case& c) {
  if (!in_sample()) return;
  const Problems<T> p(c);
  const double bound = tolerance<T>(5000 + 100 * double(c.s) + 20 * double(c.d));
  for (int threads : {1, 3}) {
    const Result<T> got = p.run(threads);
    for (int64_t b = 0; b < c.batch; ++b) {
      const size_t e = size_t(b);
      const auto where = [&] {
        std::ostringstream text;
        text << type_name<T>() << " " << c << ", " << threads << " threads, problem " << b;
        return text.str();
      };
      NaiveKrr n{
          p.x_s[e], p.y_s[e], p.x_q[e], {KernelKind::linear, 1.5, c.bias}, c.ridge, c.detach, p.values[e][2], {}, {},
          {},       {},       {}};
      n.forward();
      const Matrix residual = n.p - p.y_q[e];
      CHECK(got.status[e] == 0 && got.jitter[e] == 0, where() << ": status " << got.status[e]);
      const double off = error(problem(got.out, b, c.q, c.c), c.loss ? residual : n.p);
      CHECK(off <= bound, where() << ": predictions are off by " << off);
      const double loss = dot(residual, residual) / double(c.q * c.c);
      CHECK(!c.loss || std::fabs(double(got.loss[e]) / loss - 1) <= bound, where() << ": loss " << got.loss[e]);
      if (!c.save) continue;
      const double off_coef = error(problem(got.coef, b, c.s, c.c), n.alpha);
      CHECK(off_coef <= bound, where() << ": coefficients are off by " << off_coef);
      const NaiveKrr::Gradients want = n.backward(c.loss ? 2 * p.g[e](0, 0) / double(c.q * c.c) * residual : p.y_q[e]);
      const auto compare = [&](int bit, const char* what, const std::vector<T>& v, const Matrix& m) {
        if (!(c.wanted & bit)) {
          CHECK(all_nan(problem(v, b, m.rows, m.columns)), where() << ": " << what << " was written");
          return;
        }
        const double off_by = error(problem(v, b, m.rows, m.columns), m);
        CHECK(off_by <= bound, where() << ": " << what << " is off by " << off_by);
      };
      compare(1, "grad_x_s", got.x_s, want.x_s);
      compare(2, "grad_y_s", got.y_s, want.y_s);
      compare(4, "grad_x_q", got.x_q, want.x_q);
      if (!(c.wanted & 8)) continue;
      const auto number = [&](const char* what, size_t i, double value, double size) {
        const double off_by = std::fabs(double(got.hyper[3 * e + i]) - value) / (size > 0 ? size : 1);
        CHECK(off_by <= bound, where() << ": " << what << " is off by " << off_by);
      };
      number("grad_scale", 0, want.first, want.first_size);
      number("grad_bias", 1, want.bias, want.bias_size);
      number("grad_v", 2, want.v, want.v_size);
    }
  }
}

void both(const Case& c) {
  check<float>(c);
  check<double>(c);
}

template <class T>
std::vector<T> part(const std::vector<T>& all, int64_t b, int64_t each) {
  return {all.begin() + b * each, all.begin() + (b + 1) * each};
}

}  // namespace

TEST(lanes_krr_sizes) {
  for (int64_t s : {1, 4, 7, 18})
    for (int64_t q : {1, 35})
      for (int64_t d : {1, 19, 64}) both({5, s, q, d, 3});
  for (int64_t batch : {2, 16, 17, 33}) both({batch, 6, 5, 9, 2});
  both({3, 64, 40, 64, 10});
  both({3, 5, 70, 192, 11});
}

TEST(lanes_krr_ridges_layouts_and_wanted) {
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true})
      for (double bias : {0.0, 1.0}) both({3, 8, 30, 12, 4, bias, ridge, detach});
  for (Layout x : kLayouts)
    for (Layout y : kLayouts) both({3, 8, 13, 12, 4, 0.5, RidgeKind::trace, false, true, true, x, y});
  for (bool loss : {false, true})
    for (int wanted = 0; wanted < 16; ++wanted)
      both({5, 8, 30, 12, 4, 0.5, RidgeKind::trace, false, loss, true, Layout::dense, Layout::dense, wanted});
  both({5, 8, 30, 12, 4, 0.5, RidgeKind::trace, false, true, false});  // nothing is saved for a backward
}

// The bits of a problem are those it has among other neighbours, in another lane and on another thread; a bad neighbour is
// told and stays alone.
TEST(lanes_krr_problems_stay_alone) {
  const Case c{21, 9, 14, 11, 3};
  Problems<float> p(c);
  const Result<float> whole = p.run(1);
  p.hypers->memory[size_t(p.hypers->hyper.bs) + 2] = -1;
  p.x_s_in->memory[size_t(2 * c.s * c.d)] = std::numeric_limits<float>::quiet_NaN();
  p.x_s_in->memory[size_t(17 * c.s * c.d + 3)] = std::numeric_limits<float>::infinity();
  for (int threads : {1, 2})
    for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter}) {
      const Result<float> r = p.run(threads, on_failure);
      CHECK(r.status[1] == ssdd::kBadParameter && r.status[2] == 1 && r.status[17] > 0,
            r.status[1] << " " << r.status[2] << " " << r.status[17]);
      for (int64_t b = 0; b < c.batch; ++b) {
        if (b == 1 || b == 2 || b == 17) {
          CHECK(all_nan(problem(r.out, b, c.q, c.c)) && all_nan(problem(r.x_s, b, c.s, c.d)) &&
                    all_nan(problem(r.y_s, b, c.s, c.c)) && all_nan(problem(r.x_q, b, c.q, c.d)),
                "problem " << b << " is not all NaN");
          continue;
        }
        CHECK(r.status[size_t(b)] == 0 && part(r.out, b, c.q * c.c) == part(whole.out, b, c.q * c.c) &&
                  part(r.x_s, b, c.s * c.d) == part(whole.x_s, b, c.s * c.d) &&
                  part(r.hyper, b, 3) == part(whole.hyper, b, 3),
              "problem " << b << " changed");
      }
    }
}

TEST(lanes_krr_moved_problems_keep_their_bits) {
  const Case c{19, 10, 14, 23, 3};
  Problems<float> p(c);
  const Result<float> whole = p.run(1);
  // The same problems, the last ones first.
  Problems<float> moved(c);
  const auto reverse = [&](const Input<float>& from, Input<float>& to, int64_t each) {
    for (int64_t b = 0; b < c.batch; ++b)
      std::copy_n(from.memory.begin() + b * each, each, to.memory.begin() + (c.batch - 1 - b) * each);
  };
  reverse(*p.x_s_in, *moved.x_s_in, c.s * c.d), reverse(*p.y_s_in, *moved.y_s_in, c.s * c.c);
  reverse(*p.x_q_in, *moved.x_q_in, c.q * c.d), reverse(*p.y_q_in, *moved.y_q_in, c.q * c.c);
  reverse(*p.g_in, *moved.g_in, 1);
  for (int threads : {1, 2}) {
    const Result<float> r = moved.run(threads);
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t at = c.batch - 1 - b;
      CHECK(part(r.out, at, c.q * c.c) == part(whole.out, b, c.q * c.c) &&
                part(r.factor, at, c.s * c.s) == part(whole.factor, b, c.s * c.s) &&
                part(r.x_s, at, c.s * c.d) == part(whole.x_s, b, c.s * c.d),
            "problem " << b << " changed");
    }
  }
}

TEST(lanes_cholesky_keeps_the_bits_of_moved_problems) {
  for (int64_t s : {3, 16, 37}) {
    constexpr int64_t kBatch = 19, kColumns = 35;  // more columns than are solved at a time
    std::vector<float> a(size_t(kBatch * s * s)), y(size_t(kBatch * s * kColumns));
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t i = 0; i < s; ++i) {
        for (int64_t j = 0; j < s; ++j) a[size_t((b * s + i) * s + j)] = float(i == j ? double(s) : uniform(-1, 1));
        for (int64_t j = 0; j < kColumns; ++j) y[size_t((b * s + i) * kColumns + j)] = float(uniform(-1, 1));
      }
    const auto solved = [&](int64_t first, int64_t count, int threads) {
      std::vector<float> factor = poisoned<float>(count * s * s), x = poisoned<float>(count * s * kColumns),
                         jitter = poisoned<float>(count), aux = poisoned<float>(3 * count);
      std::vector<int32_t> status(size_t(count), 77);
      ssdd::SolveArgs<float> args{};
      args.batch = count, args.s = s, args.c = kColumns, args.threads = threads;
      args.a = {a.data() + first * s * s, s * s, s, 1},
      args.y = {y.data() + first * s * kColumns, s * kColumns, kColumns, 1};
      args.factor = factor.data(), args.x = x.data(), args.jitter = jitter.data(), args.aux = aux.data();
      args.status = status.data();
      args.work = workspace<float>(ssdd::cpu::cholesky_workspace(count, s, kColumns, threads));
      ssdd::cpu::solve(args);
      factor.insert(factor.end(), x.begin(), x.end());
      return factor;
    };
    const std::vector<float> whole = solved(0, kBatch, 1);
    CHECK(whole == solved(0, kBatch, 3), "S=" << s << ": the threads change the bits");
    const int64_t count = 6, first = 11;
    const std::vector<float> some = solved(first, count, 1);
    for (int64_t b = 0; b < count; ++b) {
      CHECK(part(some, b, s * s) == part(whole, first + b, s * s), "S=" << s << ": the factor of problem " << b);
      for (int64_t e = 0; e < s * kColumns; ++e)
        CHECK(some[size_t(count * s * s + b * s * kColumns + e)] ==
                  whole[size_t(kBatch * s * s + (first + b) * s * kColumns + e)],
              "S=" << s << ": x of problem " << b);
    }
  }
}

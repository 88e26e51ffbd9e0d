// solve() and solve_backward(): factor, ridges, failures, jitter, gradients.
#include "cholesky.h"

#include "naive.h"

using namespace test;
using ssdd::OnFailure;
using ssdd::RidgeKind;

namespace {

constexpr int64_t kAux = 3;

struct Case {
  int64_t batch, s, c;
  RidgeKind ridge = RidgeKind::trace;
  bool has_ridge = true, tensor = false, detach = false;
  Layout a = Layout::dense, y = Layout::dense;
  OnFailure on_failure = OnFailure::nan;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B=" << c.batch << " S=" << c.s << " C=" << c.c << " " << (c.has_ridge ? name(c.ridge) : "no ridge")
             << (c.detach ? " detached " : " ") << name(c.a) << " " << name(c.y)
             << (c.on_failure == OnFailure::jitter ? " jitter" : "");
}

Matrix from_lower(Matrix a) {
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < i; ++j) a(j, i) = a(i, j);
  return a;
}

Matrix nan_above(Matrix a) {
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = i + 1; j < a.columns; ++j) a(i, j) = std::numeric_limits<double>::quiet_NaN();
  return a;
}

// A symmetric matrix with a condition number of a few tens, and NaN in its upper triangle.
Matrix gram_like(int64_t s) {
  const Matrix x = random(s, s + 5);
  return nan_above(add_to_diagonal((1.0 / double(s + 5)) * (x * transpose(x)), 0.1));
}

template <class T>
struct Solution {
  std::vector<T> factor, x, jitter, aux;
  std::vector<int32_t> status;
};

template <class T>
Solution<T> solve(const Case& c, const Input<T>& a, const Input<T>& y, const Hypers<T>& hypers, int threads) {
  Solution<T> out{poisoned<T>(c.batch * c.s * c.s), poisoned<T>(c.batch * c.s * c.c), poisoned<T>(c.batch),
                  poisoned<T>(c.batch * kAux), std::vector<int32_t>(size_t(c.batch), 77)};
  ssdd::SolveArgs<T> args{};
  args.batch = c.batch;
  args.s = c.s;
  args.c = c.c;
  args.a = a.view;
  if (c.c > 0) args.y = y.view;
  args.factor = out.factor.data();
  args.x = c.c > 0 ? out.x.data() : nullptr;
  args.jitter = out.jitter.data();
  args.aux = out.aux.data();
  args.status = out.status.data();
  args.hyper = hypers.hyper;
  args.ridge = c.ridge;
  args.on_failure = c.on_failure;
  args.threads = threads;
  args.work = workspace<T>(ssdd::cpu::cholesky_workspace(c.batch, c.s, c.c, threads));
  ssdd::cpu::solve(args);
  return out;
}

template <class T>
void check_backward(const Case& c, const Solution<T>& solved, const Input<T>& gradient, const Hypers<T>& hypers,
                    int threads, bool with_a, bool with_v, const std::vector<Matrix>& inverses,
                    const std::vector<Matrix>& a, const std::vector<Matrix>& grad, const std::vector<Matrix>& x,
                    double v) {
  std::vector<T> grad_a = poisoned<T>(c.batch * c.s * c.s), grad_y = poisoned<T>(c.batch * c.s * c.c),
                 grad_v = poisoned<T>(c.batch);
  ssdd::SolveBackwardArgs<T> args{};
  args.batch = c.batch;
  args.s = c.s;
  args.c = c.c;
  args.grad = gradient.view;
  args.factor = solved.factor.data();
  args.x = solved.x.data();
  args.aux = solved.aux.data();
  args.grad_a = with_a ? grad_a.data() : nullptr;
  args.grad_y = grad_y.data();
  args.grad_v = with_v ? grad_v.data() : nullptr;
  args.hyper = hypers.hyper;
  args.ridge = c.ridge;
  args.detach = c.detach;
  args.threads = threads;
  args.work = workspace<T>(ssdd::cpu::cholesky_workspace(c.batch, c.s, c.c, threads));
  ssdd::cpu::solve_backward(args);
  for (int64_t b = 0; b < c.batch; ++b) {
    const size_t e = size_t(b);
    const double trace_a = trace(a[e]);
    const Matrix u = inverses[e] * grad[e];
    const double lambda_bar = -dot(u, x[e]);
    Matrix a_bar = -0.5 * (u * transpose(x[e]) + x[e] * transpose(u));
    if (c.has_ridge && !c.detach) a_bar = add_to_diagonal(a_bar, trace_slope(c.ridge, v, c.s) * lambda_bar);
    const double bound = tolerance<T>(3000 + 100 * double(c.s));
    const double off_y = error(problem(grad_y, b, c.s, c.c), u);
    CHECK(off_y <= bound, type_name<T>() << " " << c << ", " << threads << " threads: grad_y is off by " << off_y);
    if (with_a) {
      const double off_a = error(problem(grad_a, b, c.s, c.s), a_bar);
      CHECK(off_a <= bound, type_name<T>() << " " << c << ", " << threads << " threads: grad_a is off by " << off_a);
    }
    if (with_v) {
      const double size = std::sqrt(dot(u, u) * dot(x[e], x[e])) * ridge_slope(c.ridge, trace_a, c.s);
      const double off_v = std::fabs(double(grad_v[e]) - lambda_bar * ridge_slope(c.ridge, trace_a, c.s)) / size;
      CHECK(off_v <= bound, type_name<T>() << " " << c << ", " << threads << " threads: grad_v is off by " << off_v);
    }
  }
}

template <class T>
void run(const Case& c) {
  if (!in_sample(c.s)) return;
  const double v = c.ridge == RidgeKind::trace ? 0.001 : 0.05;
  std::vector<Matrix> a, y, grad, x, inverses;
  std::vector<std::vector<double>> hyper;
  for (int64_t b = 0; b < c.batch; ++b) {
    a.push_back(gram_like(c.s));
    y.push_back(random(c.s, c.c));
    grad.push_back(random(c.s, c.c));
    hyper.push_back(c.has_ridge ? std::vector<double>{v} : std::vector<double>{});
  }
  const Input<T> a_in(a, c.a), y_in(y, c.y), grad_in(grad, c.y);
  const Hypers<T> hypers(hyper, c.tensor && c.has_ridge);
  std::vector<Matrix> shifted;
  for (int64_t b = 0; b < c.batch; ++b) {
    const size_t e = size_t(b);
    a[e] = from_lower(a[e]);
    const double lambda = c.has_ridge ? v * ridge_slope(c.ridge, trace(a[e]), c.s) : 0;
    shifted.push_back(add_to_diagonal(a[e], lambda));
    inverses.push_back(inverse(shifted[e]));
    x.push_back(inverses[e] * y[e]);
  }
  for (int threads = 1; threads <= most_threads(2); ++threads) {
    const Solution<T> out = solve(c, a_in, y_in, hypers, threads);
    const Solution<T> again = solve(c, a_in, y_in, hypers, threads);
    CHECK(out.factor == again.factor && out.x == again.x, c << ": different bits the second time");
    for (int64_t b = 0; b < c.batch; ++b) {
      const size_t e = size_t(b);
      const auto where = [&] {
        std::ostringstream text;
        text << type_name<T>() << " " << c << ", " << threads << " threads, problem " << b;
        return text.str();
      };
      CHECK(out.status[e] == 0, where() << ": status " << out.status[e]);
      CHECK(out.jitter[e] == 0, where() << ": jitter " << out.jitter[e]);
      const double off_trace = std::fabs(double(out.aux[e * kAux]) / trace(a[e]) - 1);
      CHECK(off_trace <= tolerance<T>(8), where() << ": the trace is off by " << off_trace);
      const double lambda = trace(shifted[e] - a[e]) / double(c.s);
      CHECK(std::fabs(double(out.aux[e * kAux + 1]) - lambda) <= tolerance<T>(100), where() << ": lambda");
      Matrix l = problem(out.factor, b, c.s, c.s);
      for (int64_t i = 0; i < c.s; ++i)
        for (int64_t j = i + 1; j < c.s; ++j) l(i, j) = 0;
      const double off_factor = error(l * transpose(l), shifted[e]);
      CHECK(off_factor <= tolerance<T>(30 + double(c.s)), where() << ": L L^T is off by " << off_factor);
      if (c.c > 0) {
        const double off_x = error(problem(out.x, b, c.s, c.c), x[e]);
        CHECK(off_x <= tolerance<T>(1000 + 30 * double(c.s)), where() << ": x is off by " << off_x);
      }
    }
    if (c.c > 0) {
      check_backward(c, out, grad_in, hypers, threads, true, c.has_ridge, inverses, a, grad, x, v);
      check_backward(c, out, grad_in, hypers, threads, false, false, inverses, a, grad, x, v);
    }
  }
}

void both(const Case& c) {
  run<float>(c);
  run<double>(c);
}

}  // namespace

TEST(cholesky_sizes) {
  for (int64_t s : {1, 2, 31, 96, 97})
    for (int64_t c : {0, 1, 10}) both({1, s, c});
  both({1, 201, 70});  // a team of threads, several diagonal blocks
}

TEST(cholesky_ridges) {
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true})
      for (bool tensor : {false, true}) {
        Case c{3, 20, 4, ridge};
        c.detach = detach;
        c.tensor = tensor;
        both(c);
      }
  Case c{2, 20, 4};
  c.has_ridge = false;
  both(c);
}

TEST(cholesky_layouts) {
  for (Layout a : kLayouts)
    for (Layout y : kLayouts) {
      Case c{3, 17, 5};
      c.a = a;
      c.y = y;
      both(c);
    }
}

TEST(cholesky_batches) {
  for (int64_t batch : {0, 2, 7, 40}) both({batch, 12, 3});
  for (int64_t s : {1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 100, 128, 129}) both({3, s, s % 7});  // lanes, but for the last
  both({3, 110, 9});  // the batch over the threads
  Case c{3, 110, 9};
  c.on_failure = OnFailure::jitter;  // unused by problems that succeed
  both(c);
}

namespace {

// Of three problems the middle one is indefinite. Only it fails, at that pivot; with jitter only if the pivot is small.
template <class T>
void failing(int64_t s, int64_t pivot, double depth, OnFailure on_failure, int threads, bool rescued) {
  if (!in_sample(s)) return;
  Case c{3, s, 2};
  c.has_ridge = false;
  c.on_failure = on_failure;
  std::vector<Matrix> a{gram_like(s), Matrix(s, s), gram_like(s)}, y{random(s, 2), random(s, 2), random(s, 2)};
  a[1] = add_to_diagonal(a[1], 1);
  a[1](pivot - 1, pivot - 1) = -depth;
  const Input<T> a_in(a, Layout::dense), y_in(y, Layout::dense);
  const Hypers<T> hypers({}, false);
  const Solution<T> out = solve(c, a_in, y_in, hypers, threads);
  const auto where = [&] {
    std::ostringstream text;
    text << type_name<T>() << " S=" << s << " pivot " << pivot << " of -" << depth << ", " << threads
         << " threads, jitter " << (on_failure == OnFailure::jitter);
    return text.str();
  };
  for (int64_t b : {0, 2}) CHECK(out.status[size_t(b)] == 0 && out.jitter[size_t(b)] == 0, where() << ": a neighbour");
  for (int64_t b = 0; b < 3; ++b)
    for (double value : problem(out.x, b, s, 2).v)
      CHECK(std::isnan(value) == (b == 1 && !rescued), where() << ": x of problem " << b << " is " << value);
  if (rescued) {
    CHECK(out.status[1] == 0 && out.jitter[1] > T(depth), where() << ": jitter " << out.jitter[1]);
    return;
  }
  CHECK(out.status[1] == pivot, where() << ": status " << out.status[1]);
  std::vector<Matrix> grad{random(s, 2), random(s, 2), random(s, 2)};
  const Input<T> grad_in(grad, Layout::dense);
  std::vector<T> grad_a = poisoned<T>(3 * s * s), grad_y = poisoned<T>(3 * s * 2);
  ssdd::SolveBackwardArgs<T> args{};
  args.batch = 3;
  args.s = s;
  args.c = 2;
  args.grad = grad_in.view;
  args.factor = out.factor.data();
  args.x = out.x.data();
  args.aux = out.aux.data();
  args.grad_a = grad_a.data();
  args.grad_y = grad_y.data();
  args.threads = threads;
  args.work = workspace<T>(ssdd::cpu::cholesky_workspace(3, s, 2, threads));
  ssdd::cpu::solve_backward(args);
  for (int64_t b = 0; b < 3; ++b)
    for (double value : problem(grad_a, b, s, s).v)
      CHECK(std::isnan(value) == (b == 1), where() << ": grad_a of problem " << b << " is " << value);
}

}  // namespace

TEST(cholesky_failure_is_told_and_stays_alone) {
  for (int threads : {1, 2})
    for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter}) {
      for (int64_t pivot : {1, 5, 12}) {
        failing<float>(12, pivot, 0.5, on_failure, threads, false);
        failing<double>(12, pivot, 0.5, on_failure, threads, false);
      }
      failing<float>(150, 130, 0.5, on_failure, threads, false);
    }
}

TEST(cholesky_jitter_rescues_what_is_nearly_positive) {
  for (int threads = 1; threads <= most_threads(2); ++threads) {
    failing<float>(12, 5, 1e-5, OnFailure::jitter, threads, true);
    failing<double>(12, 5, 1e-9, OnFailure::jitter, threads, true);
    failing<float>(150, 130, 1e-5, OnFailure::jitter, threads, true);
  }
}

TEST(cholesky_bad_ridge) {
  std::vector<Matrix> a{gram_like(6), gram_like(6), gram_like(6)}, y{random(6, 2), random(6, 2), random(6, 2)};
  const Input<double> a_in(a, Layout::dense), y_in(y, Layout::dense);
  const double infinity = std::numeric_limits<double>::infinity();
  for (double bad : {-1e-3, infinity, std::numeric_limits<double>::quiet_NaN()}) {
    const Hypers<double> hypers({{0.1}, {bad}, {0.2}}, true);
    const Solution<double> out = solve({3, 6, 2}, a_in, y_in, hypers, 1);
    CHECK(out.status[0] == 0 && out.status[1] == ssdd::kBadParameter && out.status[2] == 0, "ridge " << bad);
    for (int64_t b = 0; b < 3; ++b)
      for (double value : problem(out.x, b, 6, 2).v) CHECK(std::isnan(value) == (b == 1), "ridge " << bad);
  }
}

TEST(cholesky_nan_input) {
  std::vector<Matrix> a{gram_like(9), gram_like(9)}, y{random(9, 1), random(9, 1)};
  a[1](4, 2) = std::numeric_limits<double>::quiet_NaN();
  const Input<float> a_in(a, Layout::dense), y_in(y, Layout::dense);
  Case c{2, 9, 1};
  c.has_ridge = false;
  const Solution<float> out = solve(c, a_in, y_in, Hypers<float>({}, false), 1);
  CHECK(out.status[0] == 0 && out.status[1] == 5, "status " << out.status[0] << " " << out.status[1]);
}

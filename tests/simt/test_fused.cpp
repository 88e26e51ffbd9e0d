// factorise_points(): Gram matrix, ridge, factor, retries and solve in one launch, against the formula in fp64.
#include <algorithm>

#include "cuda/factor.cuh"
#include "naive.h"
#include <simt.cuh>

using namespace test;
using ssdd::KernelKind;
using ssdd::OnFailure;
using ssdd::RidgeKind;

namespace {

struct Case {
  int64_t batch, n, d, c;
  KernelKind kernel = KernelKind::linear;
  Layout x = Layout::dense;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << name(c.kernel) << " B=" << c.batch << " n=" << c.n << " D=" << c.d << " C=" << c.c << " " << name(c.x);
}

template <class T>
struct Outcome {
  std::vector<T> factor, x, jitter, aux;
  std::vector<int32_t> status;
  int64_t launches;
};

template <class T>
Outcome<T> factorise(const Case& c, const Input<T>& points, const Input<T>& y, const Hypers<T>& hypers,
                     OnFailure on_failure) {
  Outcome<T> o{poisoned<T>(c.batch * c.n * c.n), poisoned<T>(c.batch * c.n * c.c),          poisoned<T>(c.batch),
               poisoned<T>(c.batch * 3),         std::vector<int32_t>(size_t(c.batch), 77), 0};
  std::vector<T> scalars = poisoned<T>(c.batch * ssdd::cuda::kScalars);
  ssdd::cuda::set_scalars<T>({c.batch, hypers.hyper, c.kernel, ssdd::parameter_count(c.kernel), {}, 0, scalars.data()},
                             nullptr);
  const int64_t before = simt::launches();
  ssdd::cuda::Factor<T> f{c.batch,
                          c.n,
                          c.n,
                          {},
                          o.factor.data(),
                          false,
                          y.view,
                          o.x.data(),
                          c.c,
                          scalars.data(),
                          RidgeKind::mean_trace,
                          on_failure,
                          o.status.data(),
                          o.jitter.data(),
                          o.aux.data(),
                          nullptr};
  ssdd::cuda::factorise_points<T>(f, {points.view, c.d, c.kernel}, nullptr);
  o.launches = simt::launches() - before;
  return o;
}

template <class T>
void run(const Case& c) {
  if (!in_sample(c.n)) return;
  std::vector<Matrix> points, y;
  std::vector<std::vector<double>> hyper;
  for (int64_t b = 0; b < c.batch; ++b) {
    points.push_back(random(c.n, c.d));
    y.push_back(random(c.n, c.c));
    const double v = 0.1;
    hyper.push_back(c.kernel == KernelKind::linear ? std::vector<double>{1.25, 0.5, v}
                                                   : std::vector<double>{std::sqrt(double(c.d) + 1), v});
  }
  const Input<T> points_in(points, c.x), y_in(y, Layout::padded);
  const Hypers<T> hypers(hyper, true);
  const Outcome<T> o = factorise(c, points_in, y_in, hypers, OnFailure::jitter);
  CHECK(o.launches == (c.c > ssdd::cuda::kPassLimit ? 2 : 1), c << ": " << o.launches << " launches");
  for (int64_t b = 0; b < c.batch; ++b) {
    const size_t e = size_t(b);
    const Kernel kernel{c.kernel, hyper[e][0], c.kernel == KernelKind::linear ? hyper[e][1] : 0};
    const Matrix k = naive_gram(kernel, points[e], points[e]);
    const Matrix a = add_to_diagonal(k, hyper[e].back() * trace(k) / double(c.n));
    CHECK(o.status[e] == 0 && o.jitter[e] == 0, c << ": status " << o.status[e] << ", jitter " << o.jitter[e]);
    const Matrix got = problem(o.factor, b, c.n, c.n);
    Matrix l(c.n, c.n), above(c.n, c.n), k_above(c.n, c.n);
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t j = 0; j < c.n; ++j) {
        (j <= i ? l : above)(i, j) = got(i, j);
        if (j > i) k_above(i, j) = k(i, j);
      }
    const double off_k = error(above, k_above, 1), off_l = error(l * transpose(l), a);
    CHECK(off_k <= tolerance<T>(10 + 0.5 * double(c.d)), type_name<T>() << " " << c << ": K is off by " << off_k);
    CHECK(off_l <= tolerance<T>(30 + double(c.n) + 0.5 * double(c.d)),
          type_name<T>() << " " << c << ": L L^T is off by " << off_l);
    const Matrix x = problem(o.x, b, c.n, c.c);
    const double off_x = error(a * x, y[e]);
    CHECK(off_x <= tolerance<T>(1000 + 30 * double(c.n)), type_name<T>() << " " << c << ": A x is off by " << off_x);
  }
}

void both(Case c) {
  if (c.n > std::min(ssdd::cuda::fused_limit<float>(), ssdd::cuda::fused_limit<double>()))
    return;  // the smaller device
  for (KernelKind kernel : {KernelKind::linear, KernelKind::rbf}) {
    c.kernel = kernel;
    run<float>(c);
    run<double>(c);
  }
}

}  // namespace

TEST(fused_sizes) {
  // One to eight warps per square, one and two rounds; full, partial and absent stages of features.
  for (int64_t n : {1, 10, 32, 33, 64, 65, 96, 100, 128})
    for (int64_t d : {1, 16, 21}) both({1, n, d, 3});
  both({1, 40, 0, 2});
  both({2, 20, 100, 70});  // more columns than the one-block kernel solves
}

TEST(fused_at_its_limit) {
  if (simt::shared_limit() == 227 << 10) {  // an H100's: what ssdd_ext/plan/gpu.py counts with (tests/ext/test_plan.py)
    CHECK(ssdd::cuda::fused_limit<float>() == 220 && ssdd::cuda::fused_limit<double>() == 150,
          "fused: " << ssdd::cuda::fused_limit<float>() << ", " << ssdd::cuda::fused_limit<double>());
    CHECK(ssdd::cuda::block_limit<float>() == 228 && ssdd::cuda::block_limit<double>() == 158,
          "one block: " << ssdd::cuda::block_limit<float>() << ", " << ssdd::cuda::block_limit<double>());
  }
  for (int64_t n : {ssdd::cuda::fused_limit<float>(), ssdd::cuda::fused_limit<double>()}) {
    CHECK(n >= 64, "fused up to " << n << " only");
    if (n <= ssdd::cuda::fused_limit<float>()) run<float>({1, n, 24, 1});
    if (n <= ssdd::cuda::fused_limit<double>()) run<double>({1, n, 24, 1});
  }
}

TEST(fused_layouts) {
  for (Layout x : kLayouts) both({3, 37, 18, 2, {}, x});
  both({3, 37, 32, 2});  // 16 bytes per copy
}

// Enough columns for wide blocks of the solve; one test per type, so that the sanitizers run both.
TEST(fused_many) {
  run<float>({66, 33, 4, 40});
  both({100, 7, 5, 1});
  if (simt::shared_limit() == 227 << 10) run<float>({10000, 3, 2, 1});  // once
}

TEST(fused_many_of_doubles) { run<double>({66, 33, 4, 40}); }

TEST(fused_fails_and_is_rescued) {
  // Of three problems the middle one has all points equal: with no ridge its second pivot is 0.
  for (int64_t n : {20, 70})
    for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter}) {
      if (!in_sample(n)) continue;
      const bool rescued = on_failure == OnFailure::jitter;
      Case c{3, n, 80, 2};
      std::vector<Matrix> points{random(n, 80), Matrix(n, 80, 0.5), random(n, 80)},
          y{random(n, 2), random(n, 2), random(n, 2)};
      const Input<float> points_in(points, Layout::dense), y_in(y, Layout::dense);
      const Hypers<float> hypers({{1, 0, 0.1}, {1, 0, 0}, {1, 0, 0.1}}, true);
      const Outcome<float> o = factorise(c, points_in, y_in, hypers, on_failure);
      CHECK(o.status[0] == 0 && o.status[2] == 0 && o.jitter[0] == 0, "n = " << n << ": a neighbour");
      CHECK((o.status[1] == 0) == rescued && (o.jitter[1] > 0) == rescued,
            "n = " << n << ": status " << o.status[1] << ", jitter " << o.jitter[1]);
      for (int64_t b = 0; b < 3; ++b)
        for (double x : problem(o.x, b, n, 2).v)
          CHECK(std::isnan(x) == (b == 1 && !rescued), "n = " << n << ": x of " << b);
      if (!rescued) continue;
      // The retry started from the original K.
      Matrix l = problem(o.factor, 1, n, n);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i + 1; j < n; ++j) l(i, j) = 0;
      const Matrix a = add_to_diagonal(Matrix(n, n, 20), double(o.jitter[1]));
      CHECK(error(l * transpose(l), a) <= tolerance<float>(100), "n = " << n << ": L L^T is not K + jitter I");
    }
}

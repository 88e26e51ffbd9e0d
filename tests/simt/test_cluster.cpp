// The factorisation in one cluster of blocks beside the tiled one: sizes around its tiles and its clusters, layouts,
// failures in any tile, retries, ill-conditioned matrices, and which calls take it.
#include <algorithm>
#include <cstdio>

#include "cuda/factor.cuh"
#include "naive.h"
#include "runtime.h"

using namespace test;
using ssdd::OnFailure;
using ssdd::RidgeKind;

namespace {

struct Call {
  OnFailure on_failure = OnFailure::nan;
  Layout layout = Layout::dense;
  bool in_place = false;  // A is in the factor's memory, and its upper triangle is not written
  double ridge = 0;
  RidgeKind kind = RidgeKind::absolute;
  bool cluster = true;
};

struct Outcome {
  std::vector<float> factor, x, jitter, aux;
  std::vector<int32_t> status;
  int64_t launches;
};

Outcome run(std::vector<Matrix>& a, std::vector<Matrix>& y, const Call& call = {}) {
  const int64_t batch = int64_t(a.size()), n = a[0].rows, c = y.empty() ? 0 : y[0].columns;
  const Input<float> a_in(a, call.layout), y_in(y, Layout::padded);
  Outcome o{poisoned<float>(batch * n * n), poisoned<float>(batch * n * c),          poisoned<float>(batch),
            poisoned<float>(batch * 3),     std::vector<int32_t>(size_t(batch), 77), 0};
  std::vector<float> scalars = poisoned<float>(batch * ssdd::cuda::kScalars),
                     work = poisoned<float>(ssdd::cuda::factor_room(batch, n, c));
  ssdd::Hyper<float> hyper{};
  hyper.count = 1;
  hyper.values[0] = call.ridge;
  ssdd::cuda::set_scalars<float>({batch, hyper, ssdd::KernelKind::linear, 0, {}, 0, scalars.data()}, nullptr);
  if (call.in_place) o.factor.assign(a_in.view.p, a_in.view.p + batch * n * n);
  const int64_t before = simt::launches();
  ssdd::cuda::Factor<float> f{};
  f.batch = batch;
  f.n = f.order = n;
  f.source = call.in_place ? ssdd::Batch<const float>{o.factor.data(), n * n, n, 1} : a_in.view;
  f.factor = o.factor.data();
  f.zero_upper = !call.in_place;
  f.y = y_in.view;
  f.x = c > 0 ? o.x.data() : nullptr;
  f.c = c;
  f.scalars = scalars.data();
  f.ridge = call.kind;
  f.on_failure = call.on_failure;
  f.status = o.status.data();
  f.jitter = o.jitter.data();
  f.aux = o.aux.data();
  f.work = work.data();
  f.cluster = call.cluster;
  if (!call.cluster)
    ssdd::cuda::factorise_large(f, nullptr);
  else
    ssdd::cuda::factorise_cluster(f, nullptr);
  o.launches = simt::launches() - before;
  return o;
}

bool fits() {
  ssdd::cuda::Factor<float> f{};
  f.batch = 1;
  f.n = 512;
  f.cluster = true;
  return ssdd::cuda::takes_cluster(f);
}

Matrix positive(int64_t n) {
  const Matrix x = random(n, n + 5);
  return add_to_diagonal((1.0 / double(n + 5)) * (x * transpose(x)), 0.1);
}

// Points on a line under a smooth kernel: the pivots become small within the first tiles.
Matrix smooth(int64_t n, double ridge) {
  Matrix a(n, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a(i, j) = std::exp(-0.5 * std::pow(double(i - j) / (0.1 * double(n)), 2));
  return add_to_diagonal(a, ridge);
}

// |L L^T - A| / |A|, and checks that nothing stands above the diagonal.
double off(const std::vector<float>& factor, int64_t b, const Matrix& a) {
  const Matrix l = problem(factor, b, a.rows, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = i + 1; j < a.rows; ++j) CHECK(l(i, j) == 0, "n = " << a.rows << ": above the diagonal");
  return error(l * transpose(l), a);
}

}  // namespace

TEST(cluster_sizes) {
  if (!fits()) return;
  for (int64_t n : {65, 64, 132, 257, 512}) {
    if (!in_sample()) continue;
    std::vector<Matrix> a, y;
    for (int b = 0; b < (n < 200 ? 2 : 1); ++b) {
      a.push_back(positive(n));
      y.push_back(random(n, 3));
    }
    const Outcome o = run(a, y);
    CHECK(o.launches == 3, "n = " << n << ": " << o.launches << " launches");
    if (n == 132) {
      const Outcome same = run(a, y);
      CHECK(o.factor == same.factor && o.x == same.x, "n = " << n << ": different bits the second time");
    }
    const bool compares = n <= 257;  // with the tiles, which are as accurate at 512
    Call by_tiles;
    by_tiles.cluster = false;
    const Outcome tiled = compares ? run(a, y, by_tiles) : o;
    for (size_t b = 0; b < a.size(); ++b) {
      CHECK(o.status[b] == 0 && o.jitter[b] == 0, "n = " << n << ": status " << o.status[b]);
      const double here = off(o.factor, int64_t(b), a[b]), there = off(tiled.factor, int64_t(b), a[b]);
      const double off_x = error(a[b] * problem(o.x, int64_t(b), n, 3), y[b]);
      CHECK(here <= tolerance<float>(5), "n = " << n << ": off by " << here);
      CHECK(here <= 1.5 * there + tolerance<float>(2), "n = " << n << ": off by " << here << ", by tiles " << there);
      CHECK(off_x <= tolerance<float>(500 + 10 * double(n)), "n = " << n << ": A x is off by " << off_x);
    }
  }
}

// The upper triangle of A is not read: NaN there changes no bit. A of any strides, and in place, has the same factor.
TEST(cluster_sources) {
  if (!fits()) return;
  const int64_t n = 132;
  std::vector<Matrix> a{positive(n), positive(n)}, y;
  a[1] = add_to_diagonal(Matrix(n, n), 1);
  a[1](n / 2, n / 2) = -1e-5;  // needs a retry
  Call call;
  call.on_failure = OnFailure::jitter;
  call.in_place = true;
  const Outcome in_place = run(a, y, call);
  call.in_place = false;
  const Outcome dense = run(a, y, call);
  CHECK(dense.status[0] == 0 && dense.status[1] == 0 && dense.jitter[1] > 0 && dense.jitter[0] == 0,
        "status " << dense.status[1]);
  CHECK(in_place.jitter == dense.jitter && in_place.status == dense.status, "in place");
  for (int64_t b = 0; b < 2; ++b) {
    const Matrix here = problem(in_place.factor, b, n, n), there = problem(dense.factor, b, n, n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        CHECK(here(i, j) == (j <= i ? there(i, j) : a[size_t(b)](i, j)), "in place at " << i << ", " << j);
  }
  CHECK(off(dense.factor, 1, add_to_diagonal(a[1], double(dense.jitter[1]))) <= tolerance<float>(200), "with jitter");
  for (Matrix& m : a)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) m(i, j) = NAN;
  for (Layout layout : {Layout::dense, Layout::transposed, Layout::strided}) {
    call.layout = layout;
    CHECK(run(a, y, call).factor == dense.factor, name(layout));
  }
}

TEST(cluster_failures_stay_alone) {
  if (!fits()) return;
  for (int64_t pivot : {150, 5, 16, 17, 64, 65}) {
    if (!in_sample()) continue;
    std::vector<Matrix> a{positive(150), add_to_diagonal(Matrix(150, 150), 1)}, y{random(150, 2), random(150, 2)};
    a[1](pivot - 1, pivot - 1) = -0.5;
    Call call;
    call.on_failure = pivot % 2 ? OnFailure::nan : OnFailure::jitter;
    const Outcome o = run(a, y, call);
    CHECK(o.status[0] == 0 && o.status[1] == pivot, "pivot " << pivot << ": status " << o.status[1]);
    CHECK(!std::isnan(o.aux[1]) && std::isnan(o.aux[4]), "pivot " << pivot << ": the ridge of a failed problem");
    for (int64_t b = 0; b < 2; ++b)
      for (double x : problem(o.x, b, 150, 2).v) CHECK(std::isnan(x) == (b == 1), "pivot " << pivot << ": x of " << b);
    const Matrix l = problem(o.factor, 1, 150, 150);
    for (int64_t i = 0; i < 150; ++i)
      for (int64_t j = 0; j < 150; ++j)
        CHECK(j <= i ? std::isnan(l(i, j)) : l(i, j) == 0, "pivot " << pivot << ": the factor of a failed problem");
  }
}

TEST(cluster_ridge_and_parameters) {
  if (!fits()) return;
  std::vector<Matrix> a{positive(132)}, y;
  for (RidgeKind kind : {RidgeKind::trace, RidgeKind::mean_trace}) {
    Call call;
    call.ridge = 0.01;
    call.kind = kind;
    const Outcome o = run(a, y, call);
    const double lambda = 0.01 * test::ridge_slope(kind, trace(a[0]), 132);
    CHECK(std::fabs(double(o.aux[0]) - trace(a[0])) <= 1e-5 * trace(a[0]), "trace " << o.aux[0]);
    CHECK(std::fabs(double(o.aux[1]) - lambda) <= 1e-5 * lambda, "ridge " << o.aux[1]);
    CHECK(off(o.factor, 0, add_to_diagonal(a[0], lambda)) <= tolerance<float>(160), "with a ridge");
  }
  Call call;
  call.ridge = -1;
  const Outcome o = run(a, y, call);
  CHECK(o.status[0] == ssdd::kBadParameter, "a negative ridge: status " << o.status[0]);
  for (int64_t i = 0; i < 132; ++i)
    for (int64_t j = 0; j <= i; ++j) CHECK(std::isnan(o.factor[size_t(i * 132 + j)]), "a negative ridge: the factor");
}

// Diagonal tiles that are nearly singular: with their inverses instead of substitution a pivot would fail here.
TEST(cluster_of_ill_conditioned_matrices) {
  if (!fits()) return;
  const int64_t n = 200;
  for (double ridge : {3e-6, 1e-1, 1e-3, 1e-5}) {
    if (!in_sample()) continue;
    std::vector<Matrix> a{smooth(n, ridge)}, truth{random(n, 3)}, y;
    {
      const Input<float> rounded(a, Layout::dense);
    }
    y.push_back(a[0] * truth[0]);
    Call by_tiles;
    by_tiles.cluster = false;
    const Outcome o = run(a, y), tiled = run(a, y, by_tiles);
    CHECK(o.status[0] == 0, "ridge " << ridge << ": status " << o.status[0]);
    const double here = off(o.factor, 0, a[0]), there = off(tiled.factor, 0, a[0]);
    const Matrix exact = inverse(a[0]) * y[0];
    const double off_x = error(problem(o.x, 0, n, 3), exact), tiled_off = error(problem(tiled.x, 0, n, 3), exact);
    CHECK(here <= 3 * there + tolerance<float>(4), "ridge " << ridge << ": off by " << here << ", by tiles " << there);
    CHECK(off_x <= 3 * tiled_off + tolerance<float>(4),
          "ridge " << ridge << ": x is off by " << off_x << ", by tiles " << tiled_off);
  }
}

// Only float problems beyond one block's shared memory, few enough of them, on a device with clusters.
TEST(cluster_is_taken) {
  if (!fits()) return;
  ssdd::cuda::Factor<float> f{};
  f.batch = 1;
  f.n = 300;
  CHECK(!ssdd::cuda::takes_cluster(f), "not asked for");
  f.cluster = true;
  CHECK(ssdd::cuda::takes_cluster(f), "asked for");
  f.n = 513;
  CHECK(!ssdd::cuda::takes_cluster(f), "too large");
  f.n = 300;
  f.batch = 17;
  CHECK(!ssdd::cuda::takes_cluster(f), "too many");
  f.batch = 1;
  simt::set_clusters(false);
  const bool without = ssdd::cuda::takes_cluster(f);
  simt::set_clusters(true);
  CHECK(!without, "a GPU without clusters");
}

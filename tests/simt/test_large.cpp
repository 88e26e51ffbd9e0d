// The tiled factorisation and solve: sizes around its tiles, failures in any tile, retries, and the accuracy of the
// solve compared with plain substitution.
#include <algorithm>
#include <cstdio>

#include "cuda/factor.cuh"
#include "naive.h"
#include "runtime.h"

using namespace test;
using ssdd::OnFailure;
using ssdd::RidgeKind;

namespace {

template <class T>
struct Outcome {
  std::vector<T> factor, x, again, jitter, aux;
  std::vector<int32_t> status;
  int64_t launches;
};

// Calls the tiled path directly, for any size: A x = y, then the same with the factor alone. in_place: A is in the
// factor's memory, and its upper triangle is not written.
template <class T>
Outcome<T> run(std::vector<Matrix>& a, std::vector<Matrix>& y, OnFailure on_failure = OnFailure::nan,
               Layout layout = Layout::dense, bool in_place = false) {
  const int64_t batch = int64_t(a.size()), n = a[0].rows, c = y[0].columns;
  const Input<T> a_in(a, layout), y_in(y, Layout::padded);
  Outcome<T> o{poisoned<T>(batch * n * n),
               poisoned<T>(batch * n * c),
               {},
               poisoned<T>(batch),
               poisoned<T>(batch * 3),
               std::vector<int32_t>(size_t(batch), 77),
               0};
  std::vector<T> scalars = poisoned<T>(batch * ssdd::cuda::kScalars),
                 work = poisoned<T>(ssdd::cuda::factor_room(batch, n, c));
  ssdd::cuda::set_scalars<T>({batch, {}, ssdd::KernelKind::linear, 0, {}, 0, scalars.data()}, nullptr);
  if (in_place) o.factor.assign(a_in.view.p, a_in.view.p + batch * n * n);
  const ssdd::Batch<const T> source = in_place ? ssdd::Batch<const T>{o.factor.data(), n * n, n, 1} : a_in.view;
  const int64_t before = simt::launches();
  ssdd::cuda::factorise_large<T>(
      {batch, n, n, source, o.factor.data(), !in_place, y_in.view, o.x.data(), c, scalars.data(), RidgeKind::absolute,
       on_failure, o.status.data(), o.jitter.data(), o.aux.data(), work.data()},
      nullptr);
  o.launches = simt::launches() - before;
  o.again.resize(o.x.size());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < c; ++j) o.again[size_t((b * n + i) * c + j)] = T(y[size_t(b)](i, j));
  std::fill(work.begin(), work.end(), std::numeric_limits<T>::quiet_NaN());
  ssdd::cuda::solve_large(batch, n, o.factor.data(), c, o.again.data(), work.data(), nullptr);
  return o;
}

Matrix positive(int64_t n) {
  const Matrix x = random(n, n + 5);
  return add_to_diagonal((1.0 / double(n + 5)) * (x * transpose(x)), 0.1);
}

template <class T>
void solves(int64_t batch, int64_t n, int64_t c) {
  if (!in_sample(n + 64)) return;  // the solve of a smaller device reads nothing ahead
  std::vector<Matrix> a, y;
  for (int64_t b = 0; b < batch; ++b) a.push_back(positive(n)), y.push_back(random(n, c));
  const Outcome<T> o = run<T>(a, y), same = run<T>(a, y);
  CHECK(o.factor == same.factor && o.x == same.x && o.again == same.again,
        "n = " << n << ": different bits the second time");
  CHECK(o.launches == 4, "n = " << n << ": " << o.launches << " launches");
  for (int64_t b = 0; b < batch; ++b) {
    const Matrix l = problem(o.factor, b, n, n), x = problem(o.x, b, n, c), again = problem(o.again, b, n, c);
    const Matrix &own = a[size_t(b)], &want = y[size_t(b)];
    CHECK(o.status[size_t(b)] == 0, "n = " << n << ": status " << o.status[size_t(b)]);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) CHECK(l(i, j) == 0, "n = " << n << ": above the diagonal");
    const double off_l = error(l * transpose(l), own), off_x = error(own * x, want),
                 off_again = error(own * again, want);
    CHECK(off_l <= tolerance<T>(30 + double(n)), type_name<T>() << " n = " << n << ": L L^T is off by " << off_l);
    CHECK(off_x <= tolerance<T>(500 + 10 * double(n)), type_name<T>() << " n = " << n << ": A x is off by " << off_x);
    CHECK(off_again <= tolerance<T>(500 + 10 * double(n)), type_name<T>()
                                                               << " n = " << n << ": again off by " << off_again);
  }
}

// The upper triangle of A is not read: NaN there changes no bit. A of any strides, and in place, has the same factor.
template <class T>
void reads_the_lower_triangle(int64_t n, int64_t c) {
  if (!in_sample(n + 64)) return;  // the solve of a smaller device reads nothing ahead
  std::vector<Matrix> a{positive(n), positive(n)}, y{random(n, c), random(n, c)};
  a[1] = add_to_diagonal(Matrix(n, n), 1);
  a[1](n / 2, n / 2) = -1e-5;  // needs a retry
  const Outcome<T> dense = run<T>(a, y, OnFailure::jitter),
                   in_place = run<T>(a, y, OnFailure::jitter, Layout::dense, true);
  CHECK(dense.status[0] == 0 && dense.status[1] == 0 && dense.jitter[1] > 0,
        "n = " << n << ": status " << dense.status[1]);
  CHECK(in_place.x == dense.x && in_place.jitter == dense.jitter, "n = " << n << ": in place");
  for (int64_t b = 0; b < 2; ++b) {
    const Matrix here = problem(in_place.factor, b, n, n), there = problem(dense.factor, b, n, n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        CHECK(here(i, j) == (j <= i ? there(i, j) : a[size_t(b)](i, j)),
              "n = " << n << ": in place at " << i << ", " << j);
  }
  for (Matrix& m : a)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) m(i, j) = NAN;
  for (Layout layout : {Layout::dense, Layout::transposed, Layout::strided}) {
    const Outcome<T> o = run<T>(a, y, OnFailure::jitter, layout);
    CHECK(o.factor == dense.factor && o.x == dense.x, "n = " << n << ": " << name(layout));
  }
}

// Points on a line under a smooth kernel: the pivots become small within the first tiles.
Matrix smooth(int64_t n, double ridge) {
  Matrix a(n, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a(i, j) = std::exp(-0.5 * std::pow(double(i - j) / (0.1 * double(n)), 2));
  return add_to_diagonal(a, ridge);
}

// Computes x by plain substitution in float with the same factor.
Matrix substituted(const Matrix& l, Matrix x) {
  const int64_t n = l.rows;
  for (int64_t c = 0; c < x.columns; ++c) {
    for (int64_t i = 0; i < n; ++i) {
      float sum = float(x(i, c));
      for (int64_t k = 0; k < i; ++k) sum = std::fma(-float(l(i, k)), float(x(k, c)), sum);
      x(i, c) = double(sum / float(l(i, i)));
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      float sum = float(x(i, c));
      for (int64_t k = n - 1; k > i; --k) sum = std::fma(-float(l(k, i)), float(x(k, c)), sum);
      x(i, c) = double(sum / float(l(i, i)));
    }
  }
  return x;
}

double norm(const Matrix& m) { return std::sqrt(dot(m, m)); }

}  // namespace

TEST(large_sizes) {
  solves<double>(2, 70, 65);  // first, so that a sampled table contains it
  for (int64_t n : {40, 63, 64, 65, 130, 200}) {
    solves<float>(1, n, 3);
    solves<double>(1, n, 3);
  }
  solves<float>(1, 132, 68);  // 16 bytes per copy, two chunks of columns
  solves<float>(5, 100, 1);
}

TEST(large_sources) {
  reads_the_lower_triangle<float>(150, 2);
  reads_the_lower_triangle<double>(130, 3);
}

TEST(large_failures_stay_alone) {
  for (int64_t pivot : {5, 64, 65, 150}) {
    if (!in_sample()) continue;
    std::vector<Matrix> a{positive(150), add_to_diagonal(Matrix(150, 150), 1), positive(150)}, y;
    for (int b = 0; b < 3; ++b) y.push_back(random(150, 2));
    a[1](pivot - 1, pivot - 1) = -0.5;
    for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter}) {
      const Outcome<float> o = run<float>(a, y, on_failure);
      CHECK(o.status[0] == 0 && o.status[1] == pivot && o.status[2] == 0,
            "pivot " << pivot << ": status " << o.status[1]);
      for (int64_t b = 0; b < 3; ++b)
        for (double x : problem(o.x, b, 150, 2).v)
          CHECK(std::isnan(x) == (b == 1), "pivot " << pivot << ": x of " << b);
      CHECK(all_nan(problem(o.factor, 1, 150, 150)), "pivot " << pivot << ": the factor of a failed problem");
    }
    a[1](pivot - 1, pivot - 1) = -1e-5;
    const Outcome<float> o = run<float>(a, y, OnFailure::jitter);
    CHECK(o.status[1] == 0 && o.jitter[1] > 1e-5f && o.jitter[0] == 0, "pivot " << pivot << ": jitter " << o.jitter[1]);
    const Matrix l = problem(o.factor, 1, 150, 150);
    CHECK(error(l * transpose(l), add_to_diagonal(a[1], double(o.jitter[1]))) <= tolerance<float>(200),
          "pivot " << pivot);
  }
}

TEST(large_inverses_beside_substitution) {
  const int64_t n = 200;
  for (double ridge : {1e-1, 1e-3, 1e-5, 3e-6}) {
    if (!in_sample()) continue;
    std::vector<Matrix> a{smooth(n, ridge)}, truth{random(n, 3)}, y;
    {
      const Input<float> rounded(a, Layout::dense);
    }
    y.push_back(a[0] * truth[0]);
    const Outcome<float> o = run<float>(a, y);
    CHECK(o.status[0] == 0, "ridge " << ridge << ": status " << o.status[0]);
    const Matrix exact = inverse(a[0]) * y[0], x = problem(o.again, 0, n, 3);
    const Matrix plain = substituted(problem(o.factor, 0, n, n), y[0]);
    const double residual = norm(a[0] * x - y[0]) / (norm(a[0]) * norm(x)),
                 plain_residual = norm(a[0] * plain - y[0]) / (norm(a[0]) * norm(plain));
    const double off = error(x, exact), plain_off = error(plain, exact);
    std::printf("ridge %g: residual %.2g (substitution %.2g), error %.2g (%.2g)\n", ridge, residual, plain_residual,
                off, plain_off);
    CHECK(residual <= 3 * plain_residual + tolerance<float>(4),
          "ridge " << ridge << ": residual " << residual << ", " << plain_residual);
    CHECK(off <= 3 * plain_off + tolerance<float>(4),
          "ridge " << ridge << ": error " << off << ", by substitution " << plain_off);
  }
}

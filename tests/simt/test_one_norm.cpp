// Sums of |a - b| and of a sign(b - from), the products of the kernels of the 1-norm: values, layouts, splits, triangles,
// equal coordinates and what is not finite.
#include "cuda/product.cuh"

#include <algorithm>
#include <cstring>

#include "naive.h"

using namespace test;
using ssdd::cuda::Inner;
using ssdd::cuda::Triangle;

namespace {

struct Case {
  int64_t batch, m, n, k;
  Inner inner;
  Layout a = Layout::dense, b = Layout::transposed;
  Triangle triangle = Triangle::full;
  bool split = false, accumulate = false;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << (c.inner == Inner::sign ? "signs" : "1-norms") << " B=" << c.batch << " " << c.m << " x " << c.n
             << " x " << c.k << " " << name(c.a) << " " << name(c.b) << (c.split ? " split" : "");
}

// Numbers of which many are equal: multiples of 1/4.
Matrix coarse(int64_t rows, int64_t columns) {
  Matrix m = random(rows, columns);
  for (double& x : m.v) x = std::round(4 * x) / 4;
  return m;
}

// The memory and the arguments of one product, whose outputs are poisoned.
template <class T>
struct Run {
  Run(const Case& c, const Input<T>& a, const Input<T>& b, const Input<T>& from)
      : out(poisoned<T>(c.batch * c.m * c.n)),
        split(poisoned<T>(c.split ? ssdd::cuda::split_room(c.batch, c.m, c.n, c.k) : 0)),
        counters(ssdd::cuda::kCounters) {
    CHECK(!c.split || !split.empty(), c << ": not a case that is split");
    p.batch = c.batch;
    p.m = c.m;
    p.n = c.n;
    p.k = c.k;
    p.a = a.view;
    p.b = b.view;
    if (c.triangle != Triangle::full) p.b = p.a.t();
    p.c = out.data();
    p.c_bs = c.m * c.n;
    p.ld = c.n;
    p.inner = c.inner;
    p.triangle = c.triangle;
    p.accumulate = c.accumulate;
    if (c.inner == Inner::sign) p.from = from.view;
    if (c.accumulate) std::fill(out.begin(), out.end(), T(0.5));
    p.alpha = -1;
    p.split = split.data();
    p.split_elements = int64_t(split.size());
    p.counters = counters.data();
    ssdd::cuda::product(p, nullptr);
    CHECK(std::count(counters.begin(), counters.end(), 0) == ssdd::cuda::kCounters, c << ": a counter is not put back");
  }
  std::vector<T> out, split;
  std::vector<int> counters;
  ssdd::cuda::Product<T> p{};
};

template <class T>
void run(const Case& c) {
  if (!in_sample()) return;
  std::vector<Matrix> a, b, from;
  for (int64_t e = 0; e < c.batch; ++e) {
    a.push_back(c.inner == Inner::sign ? random(c.m, c.k) : coarse(c.m, c.k));
    b.push_back(coarse(c.k, c.n));
    from.push_back(coarse(c.m, c.n));
  }
  const Input<T> a_in(a, c.a), b_in(b, c.b), from_in(from, Layout::padded);
  const Run<T> ran(c, a_in, b_in, from_in);
  for (int64_t e = 0; e < c.batch; ++e) {
    const Matrix& x = a[size_t(e)];
    const Matrix z = c.triangle == Triangle::full ? b[size_t(e)] : transpose(x);
    const Matrix got = problem(ran.out, e, c.m, c.n);
    double worst = 0;
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0, size = 0.5;
        for (int64_t k = 0; k < c.k; ++k) {
          const double apart = z(k, j) - (c.inner == Inner::sign ? from[size_t(e)](i, j) : x(i, k));
          const double sign = apart > 0 ? 1 : apart < 0 ? -1 : 0;
          sum += c.inner == Inner::sign ? x(i, k) * sign : std::fabs(apart);
          size += c.inner == Inner::sign ? std::fabs(x(i, k)) : std::fabs(apart);
        }
        worst = std::max(worst, std::fabs(got(i, j) - (c.accumulate ? 0.5 : 0) + sum) / size);
        if (c.triangle != Triangle::full && i == j) CHECK(got(i, j) == 0, c << ": the 1-norm of 0 is " << got(i, j));
      }
    // Runs of 16 terms, then at most k / 16 of these.
    CHECK(worst <= tolerance<T>(4 + 0.05 * double(c.k)), type_name<T>() << " " << c << ": error " << worst);
  }
}

void both(const Case& c) {
  run<float>(c);
  run<double>(c);
}

}  // namespace

TEST(one_norm_products) {
  for (Inner inner : {Inner::absolute, Inner::sign}) {
    for (int64_t m : {1, 65})
      for (int64_t k : {1, 17, 130}) both({2, m, 37, k, inner});
    for (Layout a : kLayouts)
      for (Layout b : kLayouts) both({1, 9, 70, 21, inner, a, b});
    both({3, 1, 1, 5, inner});
    Case c{1, 66, 34, 1100, inner};
    c.split = true;
    both(c);
    c.k = 33;
    c.split = false;
    c.accumulate = true;
    both(c);
  }
  for (Triangle triangle : {Triangle::both}) {
    Case c{2, 70, 70, 40, Inner::absolute, Layout::dense, Layout::transposed, triangle};
    both(c);
  }
}

// A NaN or an infinity in a row is in that row's sums only. Infinite coordinates that are equal are no distance.
TEST(one_norm_of_what_is_not_finite) {
  const double infinite = std::numeric_limits<double>::infinity();
  std::vector<Matrix> a{random(5, 20)}, b{random(20, 6)};
  a[0](1, 3) = NAN;
  a[0](2, 4) = infinite;
  b[0](7, 5) = -infinite;
  b[0](4, 0) = infinite;
  const Input<float> a_in(a, Layout::dense), b_in(b, Layout::transposed);
  const Run<float> ran({1, 5, 6, 20, Inner::absolute}, a_in, b_in, a_in);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t j = 0; j < 6; ++j) {
      const float got = -ran.out[size_t(i * 6 + j)];
      const bool is_nan = i == 1 || (i == 2 && j == 0), is_infinite = i == 2 || j == 5 || j == 0;
      CHECK(is_nan        ? std::isnan(got)
            : is_infinite ? got == INFINITY
                          : std::isfinite(got),
            i << ", " << j << ": " << got);
    }
}

// Neighbouring numbers, and the smallest one beside 0, differ.
TEST(one_norm_signs_are_exact) {
  const float x = 1.5f, next = std::nextafter(x, 2.0f), least = std::numeric_limits<float>::denorm_min();
  const float z[] = {x, next, least, -least, 0, -0.0f}, own[] = {x, x, 0, 0, -0.0f, 0}, want[] = {0, 1, 1, -1, 0, 0};
  for (int e = 0; e < 6; ++e) {
    float out = NAN;
    const float g = 3;
    ssdd::cuda::Product<float> p{};
    p.batch = p.m = p.n = p.k = p.ld = 1;
    p.a = {&g, 0, 1, 1};
    p.b = {z + e, 0, 1, 1};
    p.from = {own + e, 0, 1, 1};
    p.inner = Inner::sign;
    p.c = &out;
    ssdd::cuda::product(p, nullptr);
    CHECK(out == 3 * want[e], "the sign of " << z[e] << " - " << own[e] << ": " << out / 3);
  }
}

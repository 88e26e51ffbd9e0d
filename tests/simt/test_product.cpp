// product(): accuracy compared with fp32, every layout, alignment and epilogue, splits of k, and memory traffic.
#include "cuda/product.cuh"
#include "cuda/vector.cuh"

#include <algorithm>
#include <cstring>
#include <limits>

#include "naive.h"

using namespace test;
using ssdd::cuda::Triangle;

namespace {

struct Case {
  int64_t batch, m, n, k;
  Layout a = Layout::dense, b = Layout::transposed;
  Triangle triangle = Triangle::full;
  bool distance = false, epilogue = false, split = false;
  int tile = 0;
  bool always = false;  // the sanitizers' sample always contains this row
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B=" << c.batch << " " << c.m << " x " << c.n << " x " << c.k << " " << name(c.a) << " " << name(c.b)
             << (c.distance ? " distance" : "") << (c.epilogue ? " epilogue" : "") << (c.split ? " split" : "")
             << (c.tile ? " large tile" : "");
}

template <class T>
void run(const Case& c) {
  if (!in_sample(0, c.always)) return;
  std::vector<Matrix> a, b, add;
  for (int64_t e = 0; e < c.batch; ++e) {
    a.push_back(random(c.m, c.k));
    b.push_back(c.triangle == Triangle::full ? random(c.k, c.n) : transpose(a.back()));
    add.push_back(random(c.m, c.n));
  }
  const Input<T> a_in(a, c.a), b_in(b, c.b), add_in(add, Layout::padded);
  if (c.triangle != Triangle::full) {
    b.clear();
    std::transform(a.begin(), a.end(), std::back_inserter(b), transpose);
  }
  std::vector<T> out = poisoned<T>(c.batch * c.m * c.n), scalars(size_t(c.batch * ssdd::cuda::kScalars)),
                 row(size_t(c.n));
  for (T& x : scalars) x = T(uniform(0.5, 1));
  for (T& x : row) x = T(uniform(-1, 1));
  ssdd::cuda::Product<T> p{};
  p.batch = c.batch;
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = a_in.view;
  p.b = b_in.view;
  if (c.triangle != Triangle::full) p.b = {a_in.view.p, a_in.view.bs, a_in.view.cs, a_in.view.rs};
  p.c = out.data();
  p.c_bs = c.m * c.n;
  p.ld = c.n;
  p.triangle = c.triangle;
  if (c.distance) p.inner = ssdd::cuda::Inner::distance;
  p.tile = c.tile;
  if (c.epilogue) {
    p.alpha = -0.5;
    p.alpha_of = scalars.data();
    p.plus_of = scalars.data() + 1;
    p.row = row.data();
    p.add = add_in.view;
    p.add_factor = 3;
    p.add_of = scalars.data() + 2;
    p.accumulate = true;
    for (T& x : out) x = T(0.25);
  }
  std::vector<T> split = poisoned<T>(c.split ? ssdd::cuda::split_room(c.batch, c.m, c.n, c.k) : 0);
  CHECK(!c.split || !split.empty(), c << ": not a case that is split");
  std::vector<int> counters(ssdd::cuda::kCounters);
  p.split = split.data();
  p.split_elements = int64_t(split.size());
  p.counters = counters.data();
  ssdd::cuda::product(p, nullptr);
  CHECK(std::count(counters.begin(), counters.end(), 0) == ssdd::cuda::kCounters, c << ": a counter is not put back");
  for (int64_t e = 0; e < c.batch; ++e) {
    Matrix want(c.m, c.n), got = problem(out, e, c.m, c.n);
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double x = a[size_t(e)](i, k), z = b[size_t(e)](k, j);
          sum += c.distance ? (x - z) * (x - z) : x * z;
        }
        const T* own = scalars.data() + e * ssdd::cuda::kScalars;
        if (c.epilogue) sum = -0.5 * own[0] * sum + 0.25 + own[1] + row[size_t(j)] + 3 * own[2] * add[size_t(e)](i, j);
        want(i, j) = sum;
        if (c.triangle == Triangle::lower && j > i) {
          CHECK(std::isnan(got(i, j)), c << ": wrote above the diagonal");
          want(i, j) = got(i, j) = 0;
        }
        if (c.triangle == Triangle::both) CHECK(got(i, j) == got(j, i), c << ": not symmetric at " << i << ", " << j);
        if (c.triangle != Triangle::full && c.distance && i == j) CHECK(got(i, j) == 0, c << ": distance to itself");
      }
    const double off = error(got, want, std::sqrt(double(c.m * c.n)));
    CHECK(off <= tolerance<T>(8 + 0.2 * double(c.k)), type_name<T>() << " " << c << ": error " << off);
  }
}

void both(const Case& c) {
  run<float>(c);
  run<double>(c);
}

// The largest relative error of a row of products, and that of the same sums in fp32, in order.
void accuracy(int64_t k, double low, double high, int tile) {
  if (!in_sample()) return;
  const int64_t n = 48;
  std::vector<Matrix> a{Matrix(n, k)}, b{Matrix(n, k)};
  for (Matrix* m : {&a[0], &b[0]})
    for (double& x : m->v) x = uniform(low, high);
  const Input<float> a_in(a, Layout::dense), b_in(b, Layout::dense);
  std::vector<float> out = poisoned<float>(n * n);
  ssdd::cuda::Product<float> p{};
  p.batch = 1;
  p.m = p.n = n;
  p.k = k;
  p.a = a_in.view;
  p.b = {b_in.view.p, 0, 1, k};
  p.c = out.data();
  p.c_bs = n * n;
  p.ld = n;
  p.tile = tile;
  ssdd::cuda::product(p, nullptr);
  double ours = 0, plain = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double exact = 0;
      float sum = 0;
      for (int64_t e = 0; e < k; ++e) {
        exact += a[0](i, e) * b[0](j, e);
        sum = std::fma(float(a[0](i, e)), float(b[0](j, e)), sum);
      }
      ours += std::pow(double(out[size_t(i * n + j)]) - exact, 2);
      plain += std::pow(double(sum) - exact, 2);
    }
  const double ratio = std::sqrt(ours / plain);
  CHECK(ratio <= 2, "k = " << k << " in (" << low << ", " << high << "): " << ratio << " times the error of fp32");
}

}  // namespace

TEST(product_as_accurate_as_fp32) {
  for (int64_t k : {1, 10, 47, 48, 64, 100, 200, 1000, 4096}) {
    for (int tile : {ssdd::cuda::kTile, ssdd::cuda::kLargeTile}) {
      accuracy(k, -1, 1, tile);
      accuracy(k, 0, 1, tile);  // all of one sign: the truncation toward zero does not cancel
    }
  }
}

TEST(product_layouts_and_sizes) {
  for (Layout a : kLayouts)
    for (Layout b : kLayouts) both({2, 37, 70, 45, a, b});
  for (int64_t m : {1, 16, 65})
    for (int64_t n : {1, 7, 130})
      for (int64_t k : {0, 1, 16, 33, 100}) both({1, m, n, k});
  both({1, 5, 6, 8193});
}

TEST(product_vectors_at_the_edge) {
  // 16-byte copies whose last is partly beyond the end, in both directions.
  for (int64_t k : {64, 68, 67})
    for (int64_t m : {64, 68, 67})
      for (Layout a : {Layout::dense, Layout::transposed})
        for (Layout b : {Layout::dense, Layout::transposed}) run<float>({1, m, m, k, a, b});
}

TEST(product_reaches_every_kernel) {
  for (int tile : {ssdd::cuda::kTile, ssdd::cuda::kLargeTile})
    for (Layout a : {Layout::dense, Layout::transposed})
      for (Layout b : {Layout::dense, Layout::transposed}) {
        Case c{1, 20, 36, 64, a, b};
        c.tile = tile;
        c.always = true;
        run<float>(c);
      }
}

TEST(product_large_tiles) {
  // More than one tile, edges on both sides, every layout and alignment, and every epilogue.
  for (Layout a : {Layout::dense, Layout::transposed, Layout::padded})
    for (Layout b : {Layout::dense, Layout::transposed, Layout::padded})
      for (int64_t k : {67, 48, 132}) {
        // Rows that are not aligned are copied in the same way for any k.
        if (k != 67 && (a == Layout::padded || b == Layout::padded)) continue;
        Case c{1, 132, 140, k, a, b};
        c.tile = ssdd::cuda::kLargeTile;
        run<float>(c);
      }
  for (Triangle triangle : {Triangle::full, Triangle::lower, Triangle::both})
    for (int64_t k : {100, 552}) {
      Case c{2, 150, 150, k, Layout::dense, Layout::dense, triangle};
      c.tile = ssdd::cuda::kLargeTile;
      c.split = k > 512;
      run<float>(c);
      c.epilogue = triangle == Triangle::full;
      run<float>(c);
    }
  Case small{2, 5, 3, 90};
  small.tile = ssdd::cuda::kLargeTile;
  run<float>(small);
}

TEST(product_picks_large_tiles_where_they_fill_the_chip) {
  simt::record_launches(simt::Recording::instead_of_run);
  const auto threads = [](int64_t batch, int64_t m, int64_t n, int64_t k) {
    ssdd::cuda::Product<float> p{};
    p.batch = batch;
    p.m = m;
    p.n = n;
    p.k = k;
    p.ld = n;
    p.a = {nullptr, 0, k, 1};
    p.b = {nullptr, 0, n, 1};
    ssdd::cuda::product(p, nullptr);
    return simt::recorded().back().threads;
  };
  const bool fits = simt::shared_limit() >= ssdd::cuda::kLargeTileBytes;
  CHECK(threads(1, 4096, 4096, 4096) == (fits ? 256 : 128), "a large product");
  CHECK(threads(1, 64, 64, 4096) == 128, "one small tile");
  CHECK(threads(1, 1024, 10, 2048) == 128, "few columns");
  CHECK(threads(1, 4096, 4096, 40) == 256, "a short k takes the ordinary units");
  simt::record_launches(simt::Recording::off);
}

TEST(product_of_what_is_not_finite) {
  // The result of the ordinary units, also if an operand is not a sum of two TF32 numbers.
  const int64_t n = 66;
  for (int64_t k : {int64_t(64), int64_t(1030)})
    for (int tile : {ssdd::cuda::kTile, ssdd::cuda::kLargeTile})
      for (bool transposed : {false, true}) {
        if (!in_sample()) continue;
        std::vector<float> a(size_t(n * k)), b(size_t(n * k));
        for (float& x : a) x = float(uniform(-1, 1));
        for (float& x : b) x = float(uniform(-1, 1));
        const auto at = [&](std::vector<float>& m, int64_t row, int64_t step) -> float& {
          return m[size_t(transposed ? step * n + row : row * k + step)];
        };
        const float largest = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
        at(a, 1, 3) = infinite;
        at(a, 2, 5) = NAN;
        at(a, 3, 7) = largest;
        uint32_t all_ones = 0xffffffffu;  // a NaN that rounds to a zero
        std::memcpy(&at(a, 4, 9), &all_ones, 4);
        at(b, 6, 11) = -infinite;
        at(b, 7, 3) = 0;  // times an infinity: a NaN
        at(b, 8, 7) = 2;  // times the largest float: infinite
        for (int64_t j = 0; j < n; ++j)
          if (j != 8 && j != 6) at(b, j, 7) *= 0.25f;
        std::vector<float> out = poisoned<float>(n * n), split = poisoned<float>(ssdd::cuda::split_room(1, n, n, k));
        std::vector<int> counters(ssdd::cuda::kCounters);
        ssdd::cuda::Product<float> p{};
        p.batch = 1;
        p.m = p.n = n;
        p.k = k;
        p.tile = tile;
        p.a = {a.data(), 0, transposed ? 1 : k, transposed ? n : 1};
        p.b = {b.data(), 0, transposed ? n : 1, transposed ? 1 : k};
        p.c = out.data();
        p.c_bs = n * n;
        p.ld = n;
        p.split = split.data();
        p.split_elements = int64_t(split.size());
        p.counters = counters.data();
        ssdd::cuda::product(p, nullptr);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < n; ++j) {
            double want = 0, size = 0;
            for (int64_t e = 0; e < k; ++e) {
              const double term = double(at(a, i, e)) * double(at(b, j, e));
              want += term;
              size += std::fabs(term);
            }
            const float got = out[size_t(i * n + j)], cut = float(want);
            const bool same = std::isfinite(cut) ? std::fabs(double(got) - want) <= 1e-6 * size
                              : std::isnan(cut)  ? std::isnan(got)
                                                 : got == cut;
            CHECK(same, "element " << i << ", " << j << " of k = " << k << ": " << got << ", not " << cut);
          }
      }
}

TEST(product_triangles) {
  for (Triangle triangle : {Triangle::lower, Triangle::both})
    for (bool distance : {false, true})
      for (int64_t m : {1, 64, 150}) {
        Case c{2, m, m, 40, Layout::dense, Layout::dense, triangle, distance};
        both(c);
      }
}

TEST(product_epilogue) {
  Case c{3, 33, 47, 40};
  c.epilogue = true;
  both(c);
  c.k = 1100;
  c.batch = 1;
  c.split = true;
  both(c);
}

TEST(product_splits) {
  for (Triangle triangle : {Triangle::full, Triangle::both}) {
    Case c{2, 66, 66, 1025, Layout::dense, Layout::dense, triangle};
    c.split = true;
    both(c);
  }
}

namespace {

// The squares of all elements are summed by the last of several blocks and over several launches. The next call finds
// the counters unchanged.
template <class T>
void squares(int tile) {
  const int64_t batch = 2, n = 70, k = 600, first = 66, rows = 130;  // two launches of 2 x 2 and 1 x 2 tiles; split
  std::vector<Matrix> a{random(rows, k), random(rows, k)}, b{random(k, n), random(k, n)};
  const Input<T> a_in(a, Layout::dense), b_in(b, Layout::dense);
  std::vector<T> split = poisoned<T>(ssdd::cuda::split_room(batch, rows, n, k)), parts = poisoned<T>(batch * 6);
  std::vector<int> counters(size_t(ssdd::cuda::kCounters + batch));
  CHECK(!split.empty(), "not a case that is split");
  for (int time = 0; time < 2; ++time) {
    std::vector<T> out = poisoned<T>(batch * rows * n), sums = poisoned<T>(batch);
    for (int64_t i0 = 0; i0 < rows; i0 += first) {
      ssdd::cuda::Product<T> p{};
      p.batch = batch;
      p.m = std::min(first, rows - i0);
      p.n = n;
      p.k = k;
      p.a = ssdd::cuda::Source<T>(a_in.view).from(i0, 0);
      p.b = b_in.view;
      p.c = out.data() + i0 * n;
      p.c_bs = rows * n;
      p.ld = n;
      p.tile = tile;
      p.split = split.data();
      p.split_elements = int64_t(split.size());
      p.counters = counters.data();
      p.squares = {sums.data(), parts.data(), counters.data() + ssdd::cuda::kCounters, 0, 0, 0.5};
      ssdd::cuda::Product<T> whole = p, last = p;
      whole.m = first;
      last.m = rows - first;
      const int64_t parts = ssdd::cuda::tiles_in(whole);
      p.squares.first = i0 ? parts : 0;
      p.squares.all = parts + ssdd::cuda::tiles_in(last);
      CHECK(i0 == 0 || std::isnan(sums[0]), "the sum came before its last part");
      ssdd::cuda::product(p, nullptr);
    }
    CHECK(std::count(counters.begin(), counters.end(), 0) == int64_t(counters.size()), "a counter is not put back");
    for (size_t e = 0; e < size_t(batch); ++e) {
      const Matrix want = a[e] * b[e];
      const double sum = 0.5 * dot(want, want);
      CHECK(std::fabs(double(sums[e]) - sum) <= tolerance<T>(20 + std::sqrt(double(rows * n))) * sum,
            type_name<T>() << ": " << sums[e] << ", not " << sum);
    }
  }
}

}  // namespace

TEST(product_squares) {
  squares<float>(ssdd::cuda::kTile);
  squares<float>(ssdd::cuda::kLargeTile);
  squares<double>(ssdd::cuda::kTile);
}

TEST(product_of_a_failed_problem) {
  for (int64_t k : {40, 1100}) {
    std::vector<Matrix> a{random(9, k), random(9, k)};
    const Input<float> in(a, Layout::dense);
    std::vector<float> out(2 * 81, 0.5f), split = poisoned<float>(ssdd::cuda::split_room(2, 9, 9, k));
    const float aux[] = {1, NAN, 0, 1, 1, 0};
    std::vector<int> counters(ssdd::cuda::kCounters);
    ssdd::cuda::Product<float> p{};
    p.batch = 2;
    p.m = p.n = 9;
    p.k = k;
    p.a = in.view;
    p.b = {in.view.p, in.view.bs, 1, k};
    p.c = out.data();
    p.c_bs = 81;
    p.ld = 9;
    p.lambda_of = aux + 1;
    p.split = split.data();
    p.split_elements = int64_t(split.size());
    p.counters = counters.data();
    p.accumulate = true;
    p.accumulate_from = 4;
    ssdd::cuda::product(p, nullptr);
    CHECK(all_nan(problem(out, 0, 9, 9)), "a failed problem is not NaN");
    Matrix want = a[1] * transpose(a[1]);
    for (int64_t i = 4; i < 9; ++i)
      for (int64_t j = 0; j < 9; ++j) want(i, j) += 0.5;
    CHECK(error(problem(out, 1, 9, 9), want) <= tolerance<float>(8 + 0.2 * double(k)),
          "the rows that are added to, k = " << k);
  }
}

TEST(product_inactive_problems_are_left_alone) {
  std::vector<Matrix> a{random(9, 40), random(9, 40)};
  const Input<float> in(a, Layout::dense);
  std::vector<float> out = poisoned<float>(2 * 81);
  const int32_t active[] = {0, 1};
  ssdd::cuda::Product<float> p{};
  p.batch = 2;
  p.m = p.n = 9;
  p.k = 40;
  p.a = in.view;
  p.b = {in.view.p, in.view.bs, 1, 40};
  p.c = out.data();
  p.c_bs = 81;
  p.ld = 9;
  p.active = active;
  ssdd::cuda::product(p, nullptr);
  CHECK(all_nan(problem(out, 0, 9, 9)), "an inactive problem was written");
  CHECK(!std::isnan(out[81]), "an active problem was not written");
}

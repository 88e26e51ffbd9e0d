// Squared distances by products (csrc/cuda/distances.cu): their error for points anywhere, the form that a tile takes,
// layouts, batches, triangles, splits, and what is not finite.
#include "cuda/distances.cuh"
#include "gram.h"

#include <algorithm>
#include <cstring>

#include "naive.h"

using namespace test;
using ssdd::Element;
using ssdd::KernelKind;
using ssdd::cuda::Inner;
using ssdd::cuda::Source;
using ssdd::cuda::Triangle;

namespace {

const char* const kKinds[] = {"gaussian",        "clusters_1e2", "clusters_1e6", "three_clusters",
                              "near_duplicates", "outliers",     "plane",        "far_from_0"};

// Points x [s, d] and z [q, d] of a kind; those of tests/ext/test_distances.py.
struct Points {
  Matrix x, z;
};
Points points(const std::string& kind, int64_t s, int64_t q, int64_t d) {
  Points p{random(s, d), random(q, d)};
  for (Matrix* m : {&p.x, &p.z})
    for (int64_t i = 0; i < m->rows; ++i) {
      const double cluster = std::floor(uniform(0, kind == "three_clusters" ? 3 : 40));
      for (int64_t k = 0; k < d; ++k) {
        double& v = (*m)(i, k);
        if (kind == "clusters_1e2") v += 1e2 * cluster;
        if (kind == "clusters_1e6") v += 1e6 * cluster;
        if (kind == "three_clusters") v += 1e3 * cluster;
        if (kind == "far_from_0") v += 1e3;
        if (kind == "outliers" && m == &p.x && i % 20 == 0) v *= 1e3;
        if (kind == "plane") v = k < 2 ? v : (*m)(i, k % 2) * std::cos(double(k));
      }
    }
  const int64_t half = std::min(s, q) / 2;
  for (int64_t i = 0; kind == "near_duplicates" && i < half; ++i)
    for (int64_t k = 0; k < d; ++k)  // every second one is equal
      p.z(i, k) = i % 2 ? p.x(i, k) : p.x(i, k) + 1e-4 * p.z(i, k);
  return p;
}

struct Case {
  int64_t m, n, k;
  bool symmetric = false;
  Layout a = Layout::dense, b = Layout::dense;
};

// Distances of every problem of a batch, by products if `memory` has room for them. Everything is poisoned.
template <class T>
std::vector<T> distances(const Case& c, int64_t batch, const Source<T>& x, const Source<T>& z, bool products) {
  const int64_t splits = ssdd::cuda::split_room(batch, c.m, c.n, c.k);
  std::vector<T> out = poisoned<T>(batch * c.m * c.n), split = poisoned<T>(splits),
                 memory = poisoned<T>(ssdd::cuda::distance_room(batch, c.m, c.n, c.k));
  std::vector<int> counters(ssdd::cuda::kCounters);
  ssdd::cuda::Product<T> p{};
  p.batch = batch;
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = x;
  p.b = c.symmetric ? x.t() : z.t();
  p.c = out.data();
  p.c_bs = c.m * c.n;
  p.ld = c.n;
  p.inner = Inner::distance;
  if (c.symmetric) p.triangle = Triangle::both;
  p.split = split.data();
  p.split_elements = splits;
  p.counters = counters.data();
  if (products)
    ssdd::cuda::distance_product(p, memory.data(), nullptr);
  else
    ssdd::cuda::product(p, nullptr);
  CHECK(std::count(counters.begin(), counters.end(), 0) == ssdd::cuda::kCounters, "a counter is not put back");
  return out;
}

long double exact(const Matrix& x, int64_t i, const Matrix& z, int64_t j) {
  long double sum = 0;
  for (int64_t k = 0; k < x.columns; ++k) {
    const long double apart = static_cast<long double>(x(i, k)) - static_cast<long double>(z(j, k));
    sum += apart * apart;
  }
  return sum;
}

template <class T>
void round_to(Matrix& m) {
  for (double& v : m.v) v = double(T(v));
}

// A batch with one problem of each kind.
template <class T>
void table(const std::vector<std::string>& kinds, const Case& c) {
  if (!in_sample()) return;
  std::vector<Matrix> x, z;
  for (const std::string& kind : kinds) {
    Points p = points(kind, c.m, c.n, c.k);
    round_to<T>(p.x);
    round_to<T>(p.z);
    x.push_back(p.x);
    z.push_back(p.z);
  }
  const Input<T> x_in(x, c.a), z_in(z, c.b);
  const int64_t batch = int64_t(kinds.size());
  const std::vector<T> got = distances<T>(c, batch, x_in.view, z_in.view, true);
  // An error of r of 8 e u is one of the rbf kernel of at most 8 u, for any lengthscale. The bound that distances.cu states
  // is far above it.
  const double unit = double(std::numeric_limits<T>::epsilon()) / 2;
  for (int64_t e = 0; e < batch; ++e) {
    const Matrix& other = c.symmetric ? x[size_t(e)] : z[size_t(e)];
    double worst = 0;
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) {
        const long double want = exact(x[size_t(e)], i, other, j);
        const T r = got[size_t((e * c.m + i) * c.n + j)];
        if (want == 0) CHECK(r == 0, kinds[size_t(e)] << ": the distance of equal points is " << r);
        if (c.symmetric) CHECK(r == got[size_t((e * c.m + j) * c.n + i)], kinds[size_t(e)] << " is not symmetric");
        if (want > 0) worst = std::max(worst, double(std::fabs(static_cast<long double>(r) - want) / want));
        if (!(r == r)) worst = INFINITY;
      }
    CHECK(worst <= 8 * std::exp(1.0) * unit, type_name<T>()
                                                 << " " << kinds[size_t(e)] << " D=" << c.k
                                                 << (c.symmetric ? " symmetric" : "") << ": " << worst / unit << " u");
  }
}

const std::vector<std::string> kAll(std::begin(kKinds), std::end(kKinds));

}  // namespace

TEST(distances_of_any_points) {
  for (bool symmetric : {false, true}) {
    table<float>(kAll, {70, symmetric ? 70 : 67, 130, symmetric});
    table<double>({"gaussian", "near_duplicates", "clusters_1e6", "three_clusters"},
                  {66, symmetric ? 66 : 9, 40, symmetric});
  }
  table<float>(kAll, {9, 14, 1});
  table<float>(kAll, {1, 3, 50});
}

TEST(distances_of_many_features) {
  for (bool symmetric : {false, true})
    table<float>({"gaussian", "near_duplicates", "three_clusters", "plane"},
                 {10, symmetric ? 10 : 12, 8192, symmetric});
}

TEST(distances_layouts) {
  for (Layout a : kLayouts)
    for (Layout b : kLayouts) table<float>({"gaussian", "near_duplicates"}, {13, 21, 59, false, a, b});
}

// A tile without lost distances takes the product's, one with many takes differences, with the same bits as without
// products, and one with few has those few by differences.
TEST(distances_form_of_a_tile) {
  for (int64_t k : {int64_t(100), int64_t(1100)}) {
    if (!in_sample()) continue;
    const Case c{128, 64, k};
    Points p = points("gaussian", c.m, c.n, k);
    for (int64_t e = 0; e < k; ++e) {  // the second tile: all points near four of z
      for (int64_t j = 1; j < 4; ++j) p.z(j, e) = p.z(0, e) + 0.1 * p.z(j, e);
      for (int64_t i = 64; i < c.m; ++i) p.x(i, e) = p.z(0, e) + 0.1 * p.x(i, e);
    }
    for (int64_t i : {3, 40})  // and two in the first
      for (int64_t e = 0; e < k; ++e) p.x(i, e) = p.z(5, e) + 1e-3 * p.x(i, e);
    round_to<float>(p.x);
    round_to<float>(p.z);
    std::vector<Matrix> x{p.x}, z{p.z};
    const Input<float> x_in(x, Layout::dense), z_in(z, Layout::dense);
    const auto got = distances<float>(c, 1, x_in.view, z_in.view, true),
               apart = distances<float>(c, 1, x_in.view, z_in.view, false);
    int64_t same = 0;
    for (int64_t i = 0; i < 64; ++i)
      for (int64_t j = 0; j < c.n; ++j) same += got[size_t(i * c.n + j)] == apart[size_t(i * c.n + j)];
    CHECK(same < 3600, "the first tile is by differences: " << same << " equal bits");
    CHECK(std::memcmp(&got[64 * 64], &apart[64 * 64], 64 * 64 * sizeof(float)) == 0, "the second tile is by products");
    for (int64_t i : {3, 40}) {
      const double want = double(exact(p.x, i, p.z, 5)), r = double(got[size_t(i * c.n + 5)]);
      CHECK(std::fabs(r - want) <= 1e-6 * want,
            "a near point of a tile that takes products: " << r << ", not " << want);
    }
  }
}

// Points far from 0, each problem somewhere else: about their own mean few distances are lost, so products are taken.
TEST(distances_about_the_mean) {
  for (bool symmetric : {false, true})
    for (int64_t n : {40, 5}) {
      if (!in_sample()) continue;
      const Case c{64, symmetric ? 64 : n, 300, symmetric};
      std::vector<Matrix> x{random(c.m, c.k), random(c.m, c.k), random(c.m, c.k)},
          z{random(c.n, c.k), random(c.n, c.k), random(c.n, c.k)};
      for (size_t e = 0; e < x.size(); ++e)
        for (auto* m : {&x[e], &z[e]}) {
          for (int64_t i = 0; i < m->rows; ++i)
            for (int64_t k = 0; k < c.k; ++k) (*m)(i, k) += 100 * double(e + 1) * double(k % 7 - 3);
          round_to<float>(*m);
        }
      for (Matrix& m : x)  // two near points, which are not too many beside the diagonal
        for (int64_t k = 0; k < c.k; ++k) m(20, k) = m(10, k) + (k == 0);
      const Input<float> x_in(x, Layout::dense), z_in(z, Layout::dense);
      const auto got = distances<float>(c, 3, x_in.view, z_in.view, true),
                 apart = distances<float>(c, 3, x_in.view, z_in.view, false);
      for (int64_t e = 0; e < 3; ++e) {
        int64_t same = 0;
        for (int64_t i = 0; i < c.m * c.n; ++i)
          same += got[size_t(e * c.m * c.n + i)] == apart[size_t(e * c.m * c.n + i)];
        CHECK(same < c.m * c.n * 7 / 8, "problem " << e << " is by differences: " << same << " equal bits");
      }
    }
}

TEST(distances_of_what_is_not_finite) {
  const Case c{70, 66, 40};
  Points p = points("gaussian", c.m, c.n, c.k);
  p.x(3, 5) = NAN;
  p.x(69, 7) = INFINITY;
  p.z(8, 1) = -INFINITY;
  p.z(65, 2) = INFINITY;
  for (int64_t k = 0; k < c.k; ++k) p.x(10, k) = p.z(11, k) = 1e30;  // whose squares are not
  std::vector<Matrix> x{p.x}, z{p.z};
  const Input<float> x_in(x, Layout::dense), z_in(z, Layout::dense);
  for (bool symmetric : {false, true}) {
    const Case own{c.m, symmetric ? c.m : c.n, c.k, symmetric};
    const auto got = distances<float>(own, 1, x_in.view, z_in.view, true),
               want = distances<float>(own, 1, x_in.view, z_in.view, false);
    for (size_t e = 0; e < got.size(); ++e) {
      const bool same = std::isnan(want[e])   ? std::isnan(got[e])
                        : std::isinf(want[e]) ? got[e] == want[e]
                                              : std::fabs(got[e] - want[e]) <= 1e-5f * want[e];
      CHECK(same, e / size_t(own.n) << ", " << e % size_t(own.n) << ": " << got[e] << ", not " << want[e]);
    }
  }
}

// Two values of 16-bit features: products are of their floats, and differences read them as they are.
TEST(distances_of_narrow_features) {
  const Case c{20, 30, 64};
  for (Element element : {Element::bf16, Element::f16}) {
    std::vector<uint16_t> x(size_t(c.m * c.k)), z(size_t(c.n * c.k));
    for (auto* m : {&x, &z})
      for (uint16_t& v : *m) v = uint16_t((uniform(0, 1) < 0.5 ? 0x8000 : 0) | (0x3c00 + int(uniform(0, 256))));
    std::copy_n(x.begin(), c.k, z.begin() + 3 * c.k);
    const auto widen = [&](const std::vector<uint16_t>& m) {
      std::vector<float> out;
      for (uint16_t v : m) out.push_back(simt::widen(v, element == Element::f16));
      return out;
    };
    const auto source = [&](const void* m, int64_t rows, Element e) {
      Source<float> s(static_cast<const float*>(m), rows * c.k, c.k, 1);
      s.element = e;
      return s;
    };
    const std::vector<float> x_wide = widen(x), z_wide = widen(z);
    const auto got = distances<float>(c, 1, source(x.data(), c.m, element), source(z.data(), c.n, element), true),
               want = distances<float>(c, 1, source(x_wide.data(), c.m, Element::own),
                                       source(z_wide.data(), c.n, Element::own), true);
    CHECK(std::memcmp(got.data(), want.data(), got.size() * 4) == 0, "not those of the float values");
    CHECK(got[3] == 0, "equal points");
  }
}

// Every kernel of a distance, of two problems with lengthscales of their own; and no feature at all.
TEST(distances_gram) {
  for (const Kernel& kernel :
       {Kernel{KernelKind::rbf, 8, 0}, Kernel{KernelKind::matern_1, 8, 0}, Kernel{KernelKind::matern_5, 8, 0},
        Kernel{KernelKind::rational_quadratic, 8, 0.7}, Kernel{KernelKind::laplace_1, 50, 0}})
    for (bool symmetric : {false, true}) {
      if (!in_sample()) continue;
      const int64_t s = 66, q = symmetric ? s : 20, d = 60;
      Points p = points("near_duplicates", s, q, d);
      round_to<float>(p.x);
      round_to<float>(p.z);
      std::vector<Matrix> x{p.x, p.x}, z{p.z, p.z};
      const Input<float> x_in(x, Layout::dense), z_in(z, Layout::dense);
      Kernel other = kernel;
      other.first *= 0.5;
      const Hypers<float> hypers({parameters(kernel), parameters(other)}, true);
      std::vector<float> out = poisoned<float>(2 * s * q);
      ssdd::GramArgs<float> args{2, s, q, d, x_in.view, {}, out.data(), hypers.hyper, kernel.kind, nullptr, 1};
      if (!symmetric) args.z = z_in.view;
      args.products = true;
      args.work = workspace<float>(ssdd::cuda::gram_workspace(2, s, q, d, true));
      ssdd::cuda::gram(args, nullptr);
      for (int64_t b = 0; b < 2; ++b) {
        const Matrix got = problem(out, b, s, q);
        const Matrix want = naive_gram(b ? other : kernel, p.x, symmetric ? p.x : p.z);
        double worst = 0;
        for (size_t e = 0; e < got.v.size(); ++e) worst = std::max(worst, std::fabs(got.v[e] - want.v[e]));
        CHECK(worst <= tolerance<float>(8), name(kernel.kind) << (symmetric ? " symmetric" : "") << ": " << worst);
        for (int64_t i = 0; symmetric && i < s; ++i) CHECK(got(i, i) == 1, "diagonal of " << name(kernel.kind));
      }
    }
  std::vector<float> out = poisoned<float>(6);
  const float none = 0;
  const Hypers<float> one({{1.0}}, false);
  ssdd::GramArgs<float> args{
      1, 2, 3, 0, {&none, 0, 0, 1}, {&none, 0, 0, 1}, out.data(), one.hyper, KernelKind::rbf, nullptr, 1};
  args.products = true;
  args.work = workspace<float>(ssdd::cuda::gram_workspace(1, 2, 3, 0, true));
  ssdd::cuda::gram(args, nullptr);
  CHECK(std::count(out.begin(), out.end(), 1.0f) == 6, "points without features are equal");
}

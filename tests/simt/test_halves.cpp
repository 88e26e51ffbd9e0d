// product() from half-precision instructions: as accurate as from TF32, in every layout, and rows without a scale.
#include "cuda/product.cuh"
#include "krr.h"

#include <cstring>
#include <limits>

#include "naive.h"

using namespace test;
using ssdd::cuda::Triangle;

namespace {

struct Case {
  int64_t batch, m, n, k;
  bool a_major = true, b_major = true;  // k is the direction of unit stride
  Triangle triangle = Triangle::full;
  bool split = false;
};

// The operands [batch, rows, k] of a product, and what comes of it.
struct Operands {
  explicit Operands(const Case& which)
      : c(which), a(size_t(c.batch * c.m * c.k)), b(c.triangle == Triangle::full ? size_t(c.batch * c.n * c.k) : 0) {
    for (std::vector<float>* x : {&a, &b})
      for (float& e : *x) e = float(uniform(-1, 1));
  }
  float& of_a(int64_t e, int64_t i, int64_t k) {
    return a[size_t(e * c.m * c.k + (c.a_major ? i * c.k + k : k * c.m + i))];
  }
  float& of_b(int64_t e, int64_t j, int64_t k) {
    if (c.triangle != Triangle::full) return of_a(e, j, k);
    return b[size_t(e * c.n * c.k + (c.b_major ? j * c.k + k : k * c.n + j))];
  }

  std::vector<float> product(bool halves) {
    std::vector<float> out = poisoned<float>(c.batch * c.m * c.n), scales = poisoned<float>(c.batch * (c.m + c.n));
    std::vector<float> parts = poisoned<float>(c.split ? ssdd::cuda::split_room(c.batch, c.m, c.n, c.k) : 0);
    std::vector<int> counters(ssdd::cuda::kCounters);
    ssdd::cuda::Product<float> p{};
    p.batch = c.batch;
    p.m = c.m;
    p.n = c.n;
    p.k = c.k;
    p.a = {a.data(), c.m * c.k, c.a_major ? c.k : 1, c.a_major ? 1 : c.m};
    p.b = c.triangle == Triangle::full
              ? ssdd::cuda::Source<float>(b.data(), c.n * c.k, c.b_major ? 1 : c.n, c.b_major ? c.k : 1)
              : p.a.t();
    p.c = out.data();
    p.c_bs = c.m * c.n;
    p.ld = c.n;
    p.tile = ssdd::cuda::kLargeTile;
    p.triangle = c.triangle;
    p.split = parts.data();
    p.split_elements = int64_t(parts.size());
    p.counters = counters.data();
    if (halves) p.scales = scales.data();
    ssdd::cuda::product(p, nullptr);
    return out;
  }

  // The largest error of an element, relative to the sum of the sizes of its terms; the root of their mean square.
  double error(const std::vector<float>& out, double* mean = nullptr) {
    double most = 0, squares = 0;
    for (int64_t e = 0; e < c.batch; ++e)
      for (int64_t i = 0; i < c.m; ++i)
        for (int64_t j = 0; j < c.n; ++j) {
          double want = 0, size = 0;
          for (int64_t k = 0; k < c.k; ++k) {
            const double term = double(of_a(e, i, k)) * double(of_b(e, j, k));
            want += term;
            size += std::fabs(term);
          }
          const float got = out[size_t((e * c.m + i) * c.n + j)];
          if (!std::isfinite(float(want))) {
            CHECK(std::isnan(want) ? std::isnan(got) : double(got) == double(float(want)),
                  i << ", " << j << ": " << got);
            continue;
          }
          const double off = size > 0 ? std::fabs(double(got) - want) / size : std::fabs(double(got));
          most = std::max(most, off);
          squares += off * off;
        }
    if (mean) *mean = std::sqrt(squares / double(out.size()));
    return most;
  }

  const Case c;
  std::vector<float> a, b;
};

bool fits() { return simt::shared_limit() >= ssdd::cuda::halves_bytes(); }

}  // namespace

TEST(product_halves_are_as_accurate_as_tf32) {
  if (!fits()) return;
  for (int64_t k : {48, 64, 200, 1000, 4096})
    for (int kind = 0; kind < 3; ++kind) {
      if (!in_sample()) continue;
      Operands o({1, 40, 40, k});
      for (std::vector<float>* x : {&o.a, &o.b})
        for (float& e : *x) {
          if (kind == 1) e = std::fabs(e);                         // the truncation does not cancel
          if (kind == 2) e = std::ldexp(e, int(uniform(-20, 0)));  // far apart, some of them 0
          if (kind == 2 && uniform(0, 1) < 0.2) e = 0;
        }
      double halves, tf32;
      o.error(o.product(true), &halves);
      o.error(o.product(false), &tf32);
      CHECK(halves <= tf32, "k = " << k << ", kind " << kind << ": error " << halves << ", of TF32 " << tf32);
    }
}

TEST(product_halves_layouts) {
  if (!fits()) return;
  for (bool a_major : {true, false})
    for (bool b_major : {true, false})
      for (int64_t k : {100, 552}) {
        Case c{2, 132, 140, k, a_major, b_major};
        c.split = k > 512;
        Operands o(c);
        const double off = o.error(o.product(true));
        CHECK(off <= 4e-7, "k = " << k << ", " << a_major << b_major << ": error " << off);
      }
  for (Triangle triangle : {Triangle::both}) {
    Operands o({2, 132, 132, 100, true, true, triangle});
    const double off = o.error(o.product(true));
    CHECK(off <= 4e-7, "a triangle: error " << off);
  }
}

TEST(product_halves_rows_without_a_scale) {
  if (!fits()) return;
  const float largest = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
  struct {
    std::vector<float> a, b;  // the first elements of a row of a and of one of b; the others are 0
    bool scaled;              // else the tile takes TF32
  } const rows[] = {
      {{}, {}, true},
      {{0, -0.0f, 3}, {1, 2, 1e-3f}, true},
      {{1, 0x1p-28f}, {0x1p-28f, 1}, true},
      {{0x1p45f, -0x1p20f}, {0x1p-45f, 0x1p-45f}, true},
      {{1, 0x1p-29f}, {1, 1}, false},
      {{1e6f, 1e-6f}, {1e-6f, 1e6f}, false},
      {{1, 1}, {1e-40f, 2}, false},
      {{0x1p46f, 1}, {1, 1}, false},
      {{1, 1}, {0x1p-46f, 0x1p-50f}, false},
      {{largest, infinite, 1}, {1, 1, -infinite}, false},
      {{1, 1}, {-2, std::numeric_limits<float>::quiet_NaN()}, false},
  };
  int number = 0;
  for (const auto& row : rows) {
    const bool major = ++number % 2;
    Operands o({1, 20, 20, 64, major, !major});
    for (int64_t k = 0; k < 64; ++k) {
      o.of_a(0, 3, k) = k < int64_t(row.a.size()) ? row.a[size_t(k)] : 0;
      o.of_b(0, 5, k) = k < int64_t(row.b.size()) ? row.b[size_t(k)] : 0;
    }
    const std::vector<float> halves = o.product(true), tf32 = o.product(false);
    const double off = o.error(halves);
    CHECK(off <= 4e-7, "rows " << number << ": error " << off);
    const bool same = std::memcmp(halves.data(), tf32.data(), halves.size() * 4) == 0;
    CHECK(same != row.scaled, "rows " << number << (same ? " take TF32" : " do not take TF32"));
  }
  // Two tiles of which one has such a row.
  Operands o({1, 136, 20, 64});
  o.of_a(0, 130, 0) = 0x1p-30f;
  const std::vector<float> halves = o.product(true), tf32 = o.product(false);
  CHECK(o.error(halves) <= 4e-7, "one tile of two: error " << o.error(halves));
  CHECK(std::memcmp(&halves[128 * 20], &tf32[128 * 20], 8 * 20 * 4) == 0, "the tile with the row is not that of TF32");
  CHECK(std::memcmp(halves.data(), tf32.data(), 128 * 20 * 4) != 0, "the tile without it is");
}

// The large products of a regression take halves if it says so, with room for their scales. Nothing is computed.
TEST(product_halves_in_a_regression) {
  if (!fits()) return;
  using ssdd::Plan;
  const int64_t s = 1000, q = 1024, d = 8192, c = 512;
  for (Plan plan : {Plan::dense, Plan::low_rank})
    for (bool on : {false, true}) {
      simt::record_launches(simt::Recording::instead_of_run);
      ssdd::KrrForwardArgs<float> f{};
      f.shape.batch = 1;
      f.shape.s = f.shape.n = s;
      f.shape.q = f.shape.chunk = q;
      f.shape.d = d;
      f.shape.c = c;
      f.shape.plan = plan;
      f.shape.halves = on;
      float* const memory = reinterpret_cast<float*>(uintptr_t(1) << 40);  // never touched
      const int64_t far = int64_t(1) << 30;
      f.x_s = {memory, s * d, d, 1};
      f.y_s = {memory, s * c, c, 1};
      f.x_q = {memory, q * d, d, 1};
      f.out = f.factor = f.coef = f.aux = f.jitter = memory + far;
      f.kept = plan == Plan::dense ? memory + far : nullptr;
      f.work = memory + 2 * far;
      int used = 0;
      const auto count = [&](int64_t room) {
        for (const simt::Launch& launch : simt::recorded()) {
          if (launch.shared_bytes != ssdd::cuda::halves_bytes()) continue;
          ++used;
          ssdd::cuda::Product<float> p;
          std::memcpy(&p, launch.arguments[0].bytes.data(), sizeof(p));
          CHECK(p.scales >= f.work && p.scales + p.batch * (p.m + p.n) <= f.work + room, "scales outside of the room");
        }
      };
      ssdd::cuda::krr_forward(f, nullptr);
      count(ssdd::cuda::krr_workspace(f.shape, false));
      simt::record_launches(simt::Recording::off);
      simt::record_launches(simt::Recording::instead_of_run);
      ssdd::KrrBackwardArgs<float> g{};
      g.shape = f.shape;
      g.x_s = f.x_s;
      g.x_q = f.x_q;
      g.e = {memory, q * c, c, 1};
      g.factor = g.coef = g.aux = memory + far;
      g.kept = f.kept;
      g.grad_x_s = g.grad_y_s = memory + far;
      g.work = f.work;
      ssdd::cuda::krr_backward(g, nullptr);
      count(ssdd::cuda::krr_workspace(g.shape, true));
      simt::record_launches(simt::Recording::off);
      CHECK(on ? used >= 4 : used == 0, used << " products of halves");
    }
}

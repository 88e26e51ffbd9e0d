// 16-bit features, compared with the same numbers as floats: products, Gram matrices, KRR forward and backward.
#include <algorithm>
#include <cstring>

#include "cuda/product.cuh"
#include "gram.h"
#include "krr.h"
#include "naive_krr.h"

using namespace test;
using ssdd::Element;
using ssdd::KernelKind;
using ssdd::Plan;

namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
uint16_t narrow(float x, Element element) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u;
  if (element == Element::bf16) return uint16_t(bits >> 16);
  if (x == 0) return uint16_t(sign);
  const int exponent = int(bits >> 23 & 255u) - 112;
  if (exponent > 0) return uint16_t(sign | uint32_t(exponent) << 10 | (bits >> 13 & 1023u));
  return uint16_t(sign | uint32_t(std::lround(std::fabs(x) * 16777216.0f)));  // subnormal
}

// The numbers of a matrix rounded to 8 bits, which both 16-bit types hold, a few of them subnormal halves: as floats,
// and as 16-bit floats in the same layout.
struct Features {
  std::vector<uint16_t> memory;
  std::unique_ptr<Input<float>> wide;
  Element element;
  Features(std::vector<Matrix>& problems, Layout layout, Element which) : element(which) {
    for (Matrix& m : problems)
      for (size_t e = 0; e < m.v.size(); ++e) {
        const uint32_t bits = bits_of(float(m.v[e])) & 0xffff0000u;
        float x;
        std::memcpy(&x, &bits, sizeof(x));
        m.v[e] = std::fabs(x) < 1e-3f ? 0.0 : e % 50 == 7 ? std::ldexp(double(e % 13), -24) : double(x);
      }
    wide.reset(new Input<float>(problems, layout));
    for (float x : wide->memory) memory.push_back(std::isnan(x) ? uint16_t(0x7fff) : narrow(x, element));
  }
  ssdd::Batch<const float> view() const {
    ssdd::Batch<const float> v = wide->view;
    if (element != Element::own)
      v.p = reinterpret_cast<const float*>(memory.data() + (wide->view.p - wide->memory.data()));
    return v;
  }
};

void products(int64_t m, int64_t n, int64_t k, Layout a_layout, Layout b_layout, Element a_element, Element b_element,
              bool distance, int tile = 0) {
  std::vector<Matrix> a{random(m, k), random(m, k)}, b{random(k, n), random(k, n)};
  const Features a_in(a, a_layout, a_element), b_in(b, b_layout, b_element);
  std::vector<float> out = poisoned<float>(2 * m * n);
  ssdd::cuda::Product<float> p{};
  p.batch = 2;
  p.m = m;
  p.n = n;
  p.k = k;
  if (distance) p.inner = ssdd::cuda::Inner::distance;
  p.a = {a_in.view(), a_element};
  p.b = {b_in.view(), b_element};
  p.c = out.data();
  p.c_bs = m * n;
  p.ld = n;
  p.tile = tile;
  ssdd::cuda::product(p, nullptr);
  for (int64_t e = 0; e < 2; ++e) {
    Matrix want(m, n);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t s = 0; s < k; ++s) {
          const double x = a[size_t(e)](i, s), z = b[size_t(e)](s, j);
          want(i, j) += distance ? (x - z) * (x - z) : x * z;
        }
    const double off = error(problem(out, e, m, n), want, 1);
    CHECK(off <= tolerance<float>(8 + 0.2 * double(k)), m << " x " << n << " x " << k << " " << name(a_layout) << " "
                                                          << name(b_layout) << " elements " << int(a_element) << " "
                                                          << int(b_element) << ": " << off);
  }
}

constexpr Element kElements[] = {Element::own, Element::bf16, Element::f16};

}  // namespace

TEST(narrow_products) {
  for (Element a : kElements)
    for (Element b : kElements) {
      if (a == Element::own && b == Element::own) continue;
      for (int64_t k : {5, 64, 100}) products(37, 70, k, Layout::dense, Layout::transposed, a, b, false);
      products(20, 33, 30, Layout::dense, Layout::transposed, a, b, true);
      products(68, 72, 64, Layout::transposed, Layout::dense, a, b, false);  // four at a time across k
      for (Layout both : {Layout::dense, Layout::transposed}) products(40, 36, 52, both, both, a, b, false);
    }
  for (Layout a : kLayouts)
    for (Layout b : kLayouts) products(19, 23, 67, a, b, Element::bf16, a == b ? Element::own : Element::f16, false);
}

TEST(narrow_products_in_both_tiles) {
  // Two operands of one type and aligned, multiplied directly, in every layout, with edges of rows, columns and k.
  for (Element element : {Element::bf16, Element::f16})
    for (int tile : {ssdd::cuda::kTile, ssdd::cuda::kLargeTile})
      for (Layout a : {Layout::dense, Layout::transposed})
        for (Layout b : {Layout::dense, Layout::transposed}) {
          if (in_sample(0, true)) products(24, 40, 48, a, b, element, element, false, tile);
          for (int64_t k : {72, 136})
            if (in_sample()) products(136, 144, k, a, b, element, element, false, tile);
        }
}

TEST(narrow_products_of_two_are_exact) {
  // 8 bits times 8 bits of one power of two: every sum is exact in float, and in one pass.
  const int64_t n = 32, k = 256;
  std::vector<Matrix> a{Matrix(n, k)}, b{Matrix(k, n)};
  for (double& x : a[0].v) x = std::round(uniform(-127, 127));
  for (double& x : b[0].v) x = std::round(uniform(-127, 127));
  for (Element element : {Element::bf16, Element::f16}) {
    std::vector<uint16_t> a_bits, b_bits;
    for (double x : a[0].v) a_bits.push_back(narrow(float(x), element));
    for (double x : b[0].v) b_bits.push_back(narrow(float(x), element));
    std::vector<float> out = poisoned<float>(n * n);
    ssdd::cuda::Product<float> p{};
    p.batch = 1;
    p.m = p.n = n;
    p.k = k;
    p.a = {ssdd::Batch<const float>{reinterpret_cast<const float*>(a_bits.data()), 0, k, 1}, element};
    p.b = {ssdd::Batch<const float>{reinterpret_cast<const float*>(b_bits.data()), 0, n, 1}, element};
    p.c = out.data();
    p.c_bs = n * n;
    p.ld = n;
    ssdd::cuda::product(p, nullptr);
    const Matrix want = a[0] * b[0], got = problem(out, 0, n, n);
    for (size_t e = 0; e < want.v.size(); ++e)
      CHECK(got.v[e] == want.v[e], "element " << e << ": " << got.v[e] << ", not " << want.v[e]);
  }
}

TEST(narrow_gram) {
  for (KernelKind kind : {KernelKind::linear, KernelKind::rbf})
    for (int64_t d : {10, 90})
      for (bool symmetric : {false, true}) {
        if (!in_sample()) continue;
        std::vector<Matrix> x{random(40, d)}, z{random(21, d)};
        const Features x_in(x, Layout::padded, Element::bf16), z_in(z, Layout::dense, Element::f16);
        const double first = kind == KernelKind::rbf ? std::sqrt(double(d)) : 1.25;
        const Hypers<float> hypers(
            {kind == KernelKind::rbf ? std::vector<double>{first} : std::vector<double>{first, 0.5}}, false);
        const int64_t q = symmetric ? 40 : 21;
        std::vector<float> out = poisoned<float>(40 * q);
        ssdd::GramArgs<float> args{1, 40, q, d, x_in.view(), {}, out.data(), hypers.hyper, kind, nullptr, 1};
        args.x_element = Element::bf16;
        if (!symmetric) {
          args.z = z_in.view();
          args.z_element = Element::f16;
        }
        args.work = workspace<float>(ssdd::cuda::gram_workspace(1, 40, q, d));
        ssdd::cuda::gram(args, nullptr);
        const Matrix want = naive_gram({kind, first, kind == KernelKind::rbf ? 0 : 0.5}, x[0], symmetric ? x[0] : z[0]);
        const double off = error(problem(out, 0, 40, q), want);
        CHECK(off <= tolerance<float>(8 + 2 * double(d)), name(kind) << " D=" << d << ": " << off);
        for (int64_t i = 0; symmetric && kind == KernelKind::rbf && i < 40; ++i)
          CHECK(out[size_t(41 * i)] == 1, "diagonal");
      }
}

namespace {

struct Passes {
  std::vector<float> out, factor, coef, kept, aux, jitter, x_s, y_s, x_q, hyper;
  std::vector<int32_t> status;
};

Passes both_passes(const ssdd::KrrShape& s, Plan backward, const Features& x_s, const Features& x_q, bool wide,
                   const Input<float>& y_s, const Input<float>& e, const ssdd::Hyper<float>& hyper) {
  const int64_t b = s.batch;
  Passes r{poisoned<float>(b * s.q * s.c),
           poisoned<float>(b * s.n * s.n),
           poisoned<float>(b * s.n * s.c),
           poisoned<float>(s.plan == Plan::dense ? b * s.q * s.s : 0),
           poisoned<float>(3 * b),
           poisoned<float>(b),
           poisoned<float>(b * s.s * s.d),
           poisoned<float>(b * s.s * s.c),
           poisoned<float>(b * s.q * s.d),
           poisoned<float>(b * hyper.count),
           std::vector<int32_t>(size_t(b), 77)};
  const auto views = [&](auto& a) {
    a.x_s = wide ? x_s.wide->view : x_s.view();
    a.x_q = wide ? x_q.wide->view : x_q.view();
    a.y_s = y_s.view;
    if (!wide) {
      a.s_element = x_s.element;
      a.q_element = x_q.element;
    }
    a.hyper = hyper;
    a.factor = r.factor.data();
    a.coef = r.coef.data();
    a.kept = r.kept.empty() ? nullptr : r.kept.data();
    a.aux = r.aux.data();
  };
  ssdd::KrrForwardArgs<float> f{};
  f.shape = s;
  views(f);
  f.out = r.out.data();
  f.jitter = r.jitter.data();
  f.status = r.status.data();
  f.work = workspace<float>(ssdd::cuda::krr_workspace(s, false));
  ssdd::cuda::krr_forward(f, nullptr);
  ssdd::KrrBackwardArgs<float> g{};
  g.shape = s;
  g.shape.plan = backward;
  views(g);
  g.e = e.view;
  g.grad_x_s = r.x_s.data();
  g.grad_y_s = r.y_s.data();
  g.grad_x_q = r.x_q.data();
  g.grad_hyper = r.hyper.data();
  g.work = workspace<float>(ssdd::cuda::krr_workspace(g.shape, true));
  ssdd::cuda::krr_backward(g, nullptr);
  return r;
}

}  // namespace

TEST(narrow_krr) {
  struct Way {
    KernelKind kernel;
    Plan forward, backward;
    int64_t d;
    bool fused;
  };
  for (const Way& way : {Way{KernelKind::linear, Plan::dense, Plan::dense, 70, true},
                         Way{KernelKind::linear, Plan::low_rank, Plan::low_rank, 70, false},
                         Way{KernelKind::linear, Plan::dense, Plan::mixed, 50, false},
                         Way{KernelKind::linear, Plan::primal, Plan::primal, 9, false},
                         Way{KernelKind::rbf, Plan::dense, Plan::dense, 20, true},
                         Way{KernelKind::rbf, Plan::dense, Plan::dense, 70, false}})
    for (Element q_element : {Element::bf16, Element::own}) {
      if (!in_sample()) continue;
      const int64_t batch = 2, s = 30, q = 26, c = 5, d = way.d;
      std::vector<Matrix> x_s{random(s, d), random(s, d)}, x_q{random(q, d), random(q, d)},
          y{random(s, c), random(s, c)}, e{random(q, c), random(q, c)};
      const Features x_s_in(x_s, Layout::dense, q_element == Element::own ? Element::bf16 : Element::f16),
          x_q_in(x_q, Layout::padded, q_element);
      const Input<float> y_in(y, Layout::dense), e_in(e, Layout::dense);
      const bool primal = way.forward == Plan::primal, rbf = way.kernel == KernelKind::rbf;
      const Hypers<float> hypers(
          {rbf ? std::vector<double>{std::sqrt(double(d)), 0.05} : std::vector<double>{1.5, 0.5, 0.05}}, false);
      const ssdd::KrrShape shape{
          batch, s,      q,           d, c, primal ? d + 1 : s, way.kernel, ssdd::RidgeKind::trace,
          false, primal, way.forward, q, 1, way.fused};
      const Passes got = both_passes(shape, way.backward, x_s_in, x_q_in, false, y_in, e_in, hypers.hyper);
      const Passes want = both_passes(shape, way.backward, x_s_in, x_q_in, true, y_in, e_in, hypers.hyper);
      CHECK(got.status[0] == 0 && got.status[1] == 0, "status " << got.status[0]);
      const auto compare = [&](const char* what, const std::vector<float>& a, const std::vector<float>& b) {
        double off = 0, size = 0;
        for (size_t i = 0; i < a.size(); ++i) {
          off += std::pow(double(a[i]) - double(b[i]), 2);
          size += std::pow(double(b[i]), 2);
        }
        CHECK(std::sqrt(off / size) <= 2e-5, name(way.kernel) << " D=" << d << " fused " << way.fused << ": " << what
                                                              << " is off by " << std::sqrt(off / size));
      };
      compare("out", got.out, want.out);
      compare("grad_x_s", got.x_s, want.x_s);
      compare("grad_y_s", got.y_s, want.y_s);
      compare("grad_x_q", got.x_q, want.x_q);
      compare("grad_hyper", got.hyper, want.hyper);
    }
}

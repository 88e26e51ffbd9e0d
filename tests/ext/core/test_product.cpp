// product(): strided operands, one triangle, distances, epilogues, teams of threads.
#include <omp.h>

#include "cpu/kernel_rows.h"
#include "cpu/micro.h"
#include "cpu/product.h"
#include "test_core.h"

using namespace test;
using ssdd::cpu::Inner;
using ssdd::cpu::Team;

namespace {

struct Case {
  int64_t m, n, k;
  bool lower = false;
  Inner inner = Inner::dot;
  double alpha = 1, beta = 0;
  Layout a = Layout::dense, b = Layout::dense;
  bool epilogue = false;
};

// One term of the sum: a(i, k), b(k, j) and x(i, j).
double term(Inner inner, double a, double b, double x) {
  switch (inner) {
    case Inner::dot:
      return a * b;
    case Inner::distance:
      return (a - b) * (a - b);
    case Inner::absolute:
      return std::fabs(a - b);
    case Inner::difference:
      return a * (b - x);
    default:
      return b > x ? a : b < x ? -a : 0;
  }
}

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.m << "x" << c.n << "x" << c.k << (c.lower ? " lower" : "") << " inner " << static_cast<int>(c.inner)
             << " " << c.alpha << " " << c.beta << " " << name(c.a) << " " << name(c.b)
             << (c.epilogue ? " epilogue" : "");
}

// An epilogue that gives a wrong number if it is applied twice, or with a wrong position.
double after(double x, int64_t i, int64_t j) { return 2 * x + double(i % 7) - double(j % 5); }

template <class T>
void apply(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld) {
  const int64_t lower = *static_cast<const bool*>(context);
  for (int y = 0; y < m; ++y)
    for (int x = 0; x < n; ++x) {
      if (lower && j + x > i + y) throw Failure("epilogue on the upper triangle");
      c[y * ld + x] = static_cast<T>(after(c[y * ld + x], i + y, j + x));
    }
}

template <class T>
std::vector<T> compute(const Case& c, const ssdd::View<const T>& a, const ssdd::View<const T>& b, const Matrix& start,
                       int64_t ldc, int threads, const ssdd::View<const T>& x = {}) {
  std::vector<T> out = poisoned<T>(c.m == 0 || c.n == 0 ? 1 : (c.m - 1) * ldc + c.n);
  for (int64_t i = 0; i < c.m && c.beta != 0; ++i)
    for (int64_t j = 0; j < (c.lower ? std::min(c.n, i + 1) : c.n); ++j)
      out[size_t(i * ldc + j)] = static_cast<T>(start(i, j));
  T* memory = workspace<T>(ssdd::cpu::packing_elements(c.n, threads));
  const auto packing = ssdd::cpu::packing<T>(memory, c.n, threads);
  const ssdd::cpu::Epilogue<T> epilogue{apply<T>, &c.lower};
  ssdd::cpu::Product<T> p{c.m, c.n, c.k, a, b, out.data(), ldc};
  p.alpha = static_cast<T>(c.alpha);
  p.beta = static_cast<T>(c.beta);
  p.lower = c.lower;
  p.inner = c.inner;
  p.x = x;
  if (c.epilogue) p.epilogue = &epilogue;
  if (threads == 1) {
    ssdd::cpu::product(Team{}, packing, p);
  } else {
#pragma omp parallel num_threads(threads)
    ssdd::cpu::product(Team{omp_get_thread_num(), omp_get_num_threads()}, packing, p);
  }
  return out;
}

template <class T>
void run(const Case& c) {
  if (!in_sample()) return;
  std::vector<Matrix> a{random(c.m, c.k)}, b{random(c.k, c.n)}, from{random(c.m, c.n)};
  const Input<T> a_in(a, c.a), b_in(b, c.b), from_in(from, c.a);
  const Matrix start = random(c.m, c.n);
  Matrix want(c.m, c.n);
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < c.k; ++k) sum += term(c.inner, a[0](i, k), b[0](k, j), from[0](i, j));
      want(i, j) = c.alpha * sum + (c.beta == 0 ? 0 : c.beta * start(i, j));
      if (c.epilogue) want(i, j) = after(want(i, j), i, j);
    }
  const int64_t ldc = c.n + 2;
  for (int threads : {1, 2, 3}) {
    const std::vector<T> out = compute<T>(c, a_in.view[0], b_in.view[0], start, ldc, threads, from_in.view[0]);
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < ldc && i * ldc + j < int64_t(out.size()); ++j) {
        const T got = out[size_t(i * ldc + j)];
        const auto where = [&] {
          std::ostringstream text;
          text << type_name<T>() << " " << c << ", " << threads << " threads, at " << i << "," << j << ": " << got;
          return text.str();
        };
        if (j >= c.n || (c.lower && j > i)) {
          CHECK(std::isnan(got), "written beside the output: " << where());
        } else {
          const double bound = tolerance<T>(8 + double(c.k)) * (4 + 4 * double(c.k));
          CHECK(std::fabs(got - want(i, j)) <= bound, where() << ", wanted " << want(i, j));
        }
      }
    if (threads != 2) continue;
    // Same inputs and threads, same bits.
    const std::vector<T> again = compute<T>(c, a_in.view[0], b_in.view[0], start, ldc, threads, from_in.view[0]);
    for (size_t e = 0; e < out.size(); ++e)
      CHECK(out[e] == again[e] || std::isnan(out[e]), "different bits the second time: " << c);
  }
}

void both(const Case& c) {
  run<float>(c);
  run<double>(c);
}

}  // namespace

TEST(product_sizes) {
  for (int64_t m : {1, 5, 17, 97})
    for (int64_t n : {1, 8, 25, 100})
      for (int64_t k : {1, 2, 63}) both({m, n, k});
}

TEST(product_deep) {
  for (int64_t k : {255, 256, 257, 1025})
    for (int64_t n : {3, 60, 150}) {
      both({70, n, k});
      both({2, n, k});
    }
  both({9, 1100, 40});
  both({200, 130, 30});
}

TEST(product_of_few_terms_in_strips) {
  both({41, 701, 9});  // two, and the last is narrower
}

TEST(product_layouts) {
  for (Layout a : kLayouts)
    for (Layout b : kLayouts) {
      Case c{37, 53, 19};
      c.a = a;
      c.b = b;
      run<float>(c);
      c.inner = Inner::distance;
      run<double>(c);
      c.inner = Inner::absolute;
      run<float>(c);
    }
}

TEST(product_factors) {
  for (int64_t k : {0, 9, 300})
    for (double alpha : {1.0, -0.5})
      for (double beta : {0.0, 1.0, -2.0})
        for (int64_t n : {7, 61}) {
          Case c{45, n, k};
          c.alpha = alpha;
          c.beta = beta;
          both(c);
          c.epilogue = true;
          both(c);
        }
}

TEST(product_lower) {
  for (int64_t m : {1, 2, 15, 64, 215})
    for (int64_t k : {0, 1, 270})
      for (bool epilogue : {false, true}) {
        Case c{m, m, k, true};
        c.epilogue = epilogue;
        c.beta = 1;
        c.alpha = -1;
        both(c);
        c.beta = 0;
        for (Inner inner : {Inner::distance, Inner::absolute}) {
          c.inner = inner;
          both(c);
        }
      }
}

TEST(product_differences) {
  for (int64_t m : {1, 5, 18, 97})
    for (int64_t n : {1, 8, 25, 100, 1600})
      for (int64_t k : {0, 1, 63, 300}) {
        if (n > 1000 && m != 18) continue;
        Case c{m, n, k};
        c.inner = Inner::difference;
        c.alpha = -2;
        c.beta = k % 2 ? 0 : 1;
        c.a = m == 18 ? Layout::transposed : Layout::dense;
        c.b = n == 25 ? Layout::transposed : Layout::dense;
        both(c);
        c.inner = Inner::sign;
        both(c);
      }
}

TEST(product_sign_of_equal_points) {
  // The sign of a difference of 0 is 0, and a NaN stays in its row.
  std::vector<Matrix> a{random(6, 5)}, b{random(5, 20)}, x{random(6, 20)};
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 20; ++j) x[0](i, j) = b[0](i % 5, j);
  for (int64_t k = 0; k < 5; ++k) a[0](k, k) = 1e6;  // of the differences that are 0
  a[0](5, 2) = std::nan("");
  const Input<double> a_in(a, Layout::dense), b_in(b, Layout::dense), x_in(x, Layout::dense);
  Case c{6, 20, 5};
  c.inner = Inner::sign;
  const auto out = compute<double>(c, a_in.view[0], b_in.view[0], Matrix(), 20, 1, x_in.view[0]);
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 20; ++j) {
      const double got = out[size_t(i * 20 + j)];
      CHECK(i == 5 ? std::isnan(got) : std::fabs(got) <= 4, "at " << i << "," << j << ": " << got);
    }
}

TEST(product_difference_has_no_cancellation) {
  // All points are at 1e6 plus a multiple of 1 / 8, which a float holds there: the sums contain only these differences.
  std::vector<Matrix> a{random(9, 40)}, b{random(40, 21)}, x{random(9, 21)};
  for (auto* points : {&b[0], &x[0]})
    for (double& v : points->v) v = std::round(8 * v) / 8;
  const Matrix want = [&] {
    Matrix sum(9, 21);
    for (int64_t i = 0; i < 9; ++i)
      for (int64_t j = 0; j < 21; ++j)
        for (int64_t k = 0; k < 40; ++k) sum(i, j) += a[0](i, k) * (b[0](k, j) - x[0](i, j));
    return sum;
  }();
  for (auto* points : {&b[0], &x[0]})
    for (double& v : points->v) v += 1e6;
  const Input<float> a_in(a, Layout::dense), b_in(b, Layout::dense), x_in(x, Layout::dense);
  Case c{9, 21, 40};
  c.inner = Inner::difference;
  const Matrix out = problem(compute<float>(c, a_in.view[0], b_in.view[0], Matrix(), 21, 1, x_in.view[0]), 0, 9, 21);
  CHECK(error(out, want) <= tolerance<float>(50), "error " << error(out, want));
}

TEST(product_empty) {
  both({0, 5, 3});
  both({5, 0, 3});
}

TEST(product_distance_has_no_cancellation) {
  // Equal points far from the origin: exactly zero, while |x|^2 + |z|^2 - 2xz would be noise.
  std::vector<Matrix> a{random(20, 33)};
  for (double& x : a[0].v) x += 1000;
  const Input<float> in(a, Layout::dense);
  Case c{20, 20, 33};
  c.inner = Inner::distance;
  const auto out = compute<float>(c, in.view[0], in.view[0].t(), Matrix(), 20, 2);
  for (int64_t i = 0; i < 20; ++i) CHECK(out[size_t(i * 21)] == 0.0f, "diagonal " << i << ": " << out[size_t(i * 21)]);
}

// Every length up to more than four vectors, over the whole range, its ends and NaN. Elements beyond the length do not
// change.
template <class T>
void exponentials() {
  const double u = std::numeric_limits<T>::epsilon(), tiny = std::numeric_limits<T>::min();
  const double lowest = sizeof(T) == 4 ? -110 : -760;
  for (int n = 0; n < 70; ++n)
    for (double factor : {-0.5, -1.0 / 3, -40.0}) {
      std::vector<T> x = poisoned<T>(n + 1), want(x);
      for (int j = 0; j < n; ++j) x[size_t(j)] = static_cast<T>(j % 9 == 4 ? 0 : uniform(lowest, 0) / factor);
      if (n > 6) {
        x[5] = std::numeric_limits<T>::infinity();
        x[6] = std::numeric_limits<T>::quiet_NaN();
      }
      for (int j = 0; j < n; ++j) want[size_t(j)] = x[size_t(j)];
      ssdd::cpu::KernelRow<T> row{ssdd::KernelKind::rbf, 0, {static_cast<T>(factor)}, T(0), nullptr, false};
      ssdd::cpu::kernel_rows<T>().values(row, n, x.data(), x.data());
      CHECK(std::isnan(x[size_t(n)]), "wrote behind the end, n = " << n);
      for (int j = 0; j < n; ++j) {
        const T in = want[size_t(j)], got = x[size_t(j)];
        const double exact = std::exp(double(T(factor) * in));
        // The largest argument is rounded once, as any float32 formula rounds it.
        const bool right = std::isnan(in) ? std::isnan(got) : std::abs(got - exact) <= 2 * u * exact + u * tiny;
        CHECK(right && (in != T(0) || got == T(1)),
              "exp(" << factor << " * " << in << ") = " << got << ", not " << exact);
      }
    }
}
TEST(exponentials_float) { exponentials<float>(); }
TEST(exponentials_double) { exponentials<double>(); }

// x <- L^-1 x and L^-T x for all widths around the vectors of every instruction set. Columns behind the last one do not
// change.
template <class T>
void triangular_solves() {
  for (int n : {1, 3, 4, 5, 18})
    for (int columns : {1, 2, 5, 8, 13, 24, 30})
      for (bool transposed : {false, true}) {
        Matrix l = random(n, n), x = random(n, columns);
        std::vector<double> inverse, panel(size_t(n * ssdd::cpu::kSolveColumns + 8));
        for (int i = 0; i < n; ++i) {
          l(i, i) = 2;
          inverse.push_back(0.5);
          for (int j = i + 1; j < n; ++j) l(i, j) = 0;
        }
        const Matrix b = (transposed ? transpose(l) : l) * x;
        const int64_t ld = columns + 1;
        std::vector<T> out = poisoned<T>(n * ld);
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < columns; ++j) out[size_t(i * ld + j)] = static_cast<T>(b(i, j));
        // Above the diagonal nothing is read.
        for (int i = 0; i < n; ++i)
          for (int j = i + 1; j < n; ++j) l(i, j) = std::numeric_limits<double>::quiet_NaN();
        double* aligned = panel.data() + (64 - reinterpret_cast<uintptr_t>(panel.data()) % 64) % 64 / sizeof(double);
        ssdd::cpu::micro<T>().solve(transposed, n, columns, &l(0, 0), inverse.data(), out.data(), ld, aligned);
        for (int i = 0; i < n; ++i) {
          CHECK(std::isnan(out[size_t(i * ld + columns)]), "wrote behind row " << i << " of " << columns << " columns");
          for (int j = 0; j < columns; ++j)
            CHECK(std::fabs(double(out[size_t(i * ld + j)]) - x(i, j)) <= tolerance<T>(2000),
                  "n = " << n << ", column " << j << " of " << columns << (transposed ? ", transposed: " : ": ")
                         << out[size_t(i * ld + j)] << " not " << x(i, j));
        }
      }
}
TEST(triangular_solves_float) { triangular_solves<float>(); }
TEST(triangular_solves_double) { triangular_solves<double>(); }

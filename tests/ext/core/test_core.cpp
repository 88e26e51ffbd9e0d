// Tests every function of the core against a naive fp64 computation, on each instruction set of this build and this
// CPU. It needs no Python: the same program runs under sanitizers and on other architectures.
//
//   core_tests [PART [EVERY [FEWER]]] runs the tests whose name contains PART, and about one row in EVERY of their tables.
//   With FEWER it says of each row whether it also runs at EVERY = FEWER, a larger number.
#include "test_core.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "cpu/micro.h"
#include "plain_blas.h"

namespace test {
namespace {

struct Entry {
  const char* name;
  void (*body)();
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

std::mt19937_64 generator, lots;  // a separate generator: the sample of rows does not depend on the numbers drawn
uint64_t every = 1, fewer = 0;
bool first_row;
const char* running;

}  // namespace

bool in_sample(int64_t n, bool always) {
  const bool first = first_row;
  first_row = false;
  const uint64_t lot = lots();  // the smaller samples are parts of the larger ones
  const auto is_in = [&](uint64_t one_in) {
    return always || ((lot <= ~uint64_t(0) / one_in || first) && new_here(n));
  };
  if (fewer) row_of(running, is_in(fewer));
  return is_in(every);
}

__attribute__((weak)) bool new_here(int64_t) { return true; }
__attribute__((weak)) void row_of(const char*, bool) {}
__attribute__((weak)) int most_threads(int asked) { return asked; }

Registered::Registered(const char* name, void (*body)()) { entries().push_back({name, body}); }

double uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(generator() >> 11) * 0x1p-53;
}

Matrix random(int64_t rows, int64_t columns) {
  Matrix m(rows, columns);
  for (double& x : m.v) x = uniform(-1, 1);
  return m;
}

Matrix transpose(const Matrix& a) {
  Matrix t(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j) t(j, i) = a(i, j);
  return t;
}

Matrix operator*(const Matrix& a, const Matrix& b) {
  CHECK(a.columns == b.rows, "the test multiplies matrices that do not fit");
  Matrix c(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.columns; ++k)
      for (int64_t j = 0; j < b.columns; ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}

Matrix operator*(double s, const Matrix& a) {
  Matrix c = a;
  for (double& x : c.v) x *= s;
  return c;
}

Matrix operator+(const Matrix& a, const Matrix& b) {
  CHECK(a.rows == b.rows && a.columns == b.columns, "the test adds matrices that do not fit");
  Matrix c = a;
  for (size_t e = 0; e < c.v.size(); ++e) c.v[e] += b.v[e];
  return c;
}

Matrix operator-(const Matrix& a, const Matrix& b) { return a + (-1.0) * b; }

double dot(const Matrix& a, const Matrix& b) {
  CHECK(a.v.size() == b.v.size(), "the test multiplies matrices that do not fit");
  double sum = 0;
  for (size_t e = 0; e < a.v.size(); ++e) sum += a.v[e] * b.v[e];
  return sum;
}

double trace(const Matrix& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows; ++i) sum += a(i, i);
  return sum;
}

Matrix add_to_diagonal(Matrix a, double value) {
  for (int64_t i = 0; i < a.rows; ++i) a(i, i) += value;
  return a;
}

Matrix inverse(const Matrix& a) {
  const int64_t n = a.rows;
  Matrix m = a, x = add_to_diagonal(Matrix(n, n), 1);
  for (int64_t k = 0; k < n; ++k) {
    int64_t pivot = k;
    for (int64_t i = k + 1; i < n; ++i)
      if (std::fabs(m(i, k)) > std::fabs(m(pivot, k))) pivot = i;
    const double scale = 1 / m(pivot, k);
    for (int64_t j = 0; j < n; ++j) {
      std::swap(m(k, j), m(pivot, j));
      std::swap(x(k, j), x(pivot, j));
      m(k, j) *= scale;
      x(k, j) *= scale;
    }
    for (int64_t i = 0; i < n; ++i) {
      const double factor = i == k ? 0 : m(i, k);
      for (int64_t j = 0; factor != 0 && j < n; ++j) {
        m(i, j) -= factor * m(k, j);
        x(i, j) -= factor * x(k, j);
      }
    }
  }
  return x;
}

double error(const Matrix& got, const Matrix& want, double scale) {
  const Matrix difference = got - want;
  const double size = std::fmax(std::sqrt(dot(want, want)), scale), off = std::sqrt(dot(difference, difference));
  if (std::isnan(off)) return std::numeric_limits<double>::infinity();
  return off == 0 ? 0 : off / size;
}

const char* name(Layout layout) {
  static const char* const names[] = {"dense", "transposed", "padded", "strided", "reversed", "shared"};
  return names[static_cast<int>(layout)];
}

}  // namespace test

int main(int argc, char** argv) {
  using ssdd::cpu::Isa;
  const char* part = argc > 1 ? argv[1] : "";
  if (argc > 2) test::every = uint64_t(std::max(1, std::atoi(argv[2])));
  if (argc > 3) test::fewer = uint64_t(std::max(1, std::atoi(argv[3])));
  ssdd::cpu::blas::set_table(plain_blas());
  int passed = 0, failed = 0;
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512}) {
    if (!ssdd::cpu::isa_available(isa)) {
      std::printf("%s: NOT IN THIS BUILD OR NOT ON THIS CPU, NOT RUN\n", ssdd::cpu::isa_name(isa));
      continue;
    }
    ssdd::cpu::force_isa(isa);
    for (const test::Entry& entry : test::entries()) {
      if (!std::strstr(entry.name, part)) continue;
      test::generator.seed(20240607);
      uint64_t seed = 0;
      for (const char* c = entry.name; *c; ++c) seed = 31 * seed + uint64_t(*c);
      seed += uint64_t(isa);  // the instruction sets together run more rows than one
      test::lots.seed(seed);
      test::first_row = true;
      test::running = entry.name;
      test::row_of(entry.name, test::fewer > 0);  // what a test does before its first row
      try {
        entry.body();
        ++passed;
      } catch (const std::exception& failure) {
        ++failed;
        std::printf("FAILED %s on %s: %s\n", entry.name, ssdd::cpu::isa_name(isa), failure.what());
      }
    }
    std::printf("%s: done\n", ssdd::cpu::isa_name(isa));
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

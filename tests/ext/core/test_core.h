// Shared by the core's tests: naive fp64 matrices, inputs in difficult layouts, outputs filled with NaN, a few checks.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensor.h"

namespace test {

// --- tests and checks -------------------------------------------------------------------------------

struct Registered {
  Registered(const char* name, void (*body)());
};
#define TEST(name)                                              \
  static void name();                                           \
  static const test::Registered registered_##name(#name, name); \
  static void name()

// True if this row of a table runs. All rows run by default; with EVERY about one row in so many, the same ones in each
// run, and always the first row of each test. `n`: the order of the matrix that the row factors. always: this row runs in any
// sample.
bool in_sample(int64_t n = 0, bool always = false);

// The host twin overrides these (tests/simt/cuda_as_cpu.cpp). row_of: the next row of this test, and whether it also runs
// in the smaller sample (test_core.cpp) that is asked about. new_here: true if a row that factors n points can take another
// path than on the instruction sets, or devices, before this one. most_threads: how many numbers of threads are tried.
void row_of(const char* name, bool in_smaller_sample);
bool new_here(int64_t n);
int most_threads(int asked);

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// CHECK(condition, "what " << value): the second part names the sizes.
#define CHECK(condition, what)                                                      \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::ostringstream message;                                                   \
      message << __FILE__ << ":" << __LINE__ << ": not (" #condition "): " << what; \
      throw test::Failure(message.str());                                           \
    }                                                                               \
  } while (0)

// --- naive matrices in fp64 -------------------------------------------------------------------------

struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> v;
  Matrix() = default;
  Matrix(int64_t r, int64_t c, double fill = 0) : rows(r), columns(c), v(size_t(r * c), fill) {}
  double& operator()(int64_t i, int64_t j) { return v[size_t(i * columns + j)]; }
  double operator()(int64_t i, int64_t j) const { return v[size_t(i * columns + j)]; }
};

Matrix random(int64_t rows, int64_t columns);  // uniform in (-1, 1), from one seeded generator
double uniform(double low, double high);
Matrix transpose(const Matrix& a);
Matrix operator*(const Matrix& a, const Matrix& b);
Matrix operator*(double s, const Matrix& a);
Matrix operator+(const Matrix& a, const Matrix& b);
Matrix operator-(const Matrix& a, const Matrix& b);
double dot(const Matrix& a, const Matrix& b);
double trace(const Matrix& a);
Matrix inverse(const Matrix& a);  // Gauss-Jordan with pivoting
Matrix add_to_diagonal(Matrix a, double value);

// |got - want| / |want| in the Frobenius norm, with `scale` in place of |want| if that is larger. NaN: infinite.
double error(const Matrix& got, const Matrix& want, double scale = 0);

// --- inputs and outputs of the core -----------------------------------------------------------------

// The memory layout of an input; memory outside of its elements is NaN.
enum class Layout { dense, transposed, padded, strided, reversed, shared };
constexpr Layout kLayouts[] = {Layout::dense,   Layout::transposed, Layout::padded,
                               Layout::strided, Layout::reversed,   Layout::shared};
const char* name(Layout layout);

template <class T>
struct Input {
  std::vector<T> memory;
  ssdd::Batch<const T> view;

  // Rounds the problems to T in place, so that the naive computation has the core's inputs. `shared` replaces all
  // problems by the first one, with batch stride 0.
  Input(std::vector<Matrix>& problems, Layout layout) {
    if (problems.empty() || problems[0].v.empty()) {
      memory.resize(1);
      view = {memory.data(), 0, problems.empty() ? 1 : problems[0].columns, 1};
      return;
    }
    if (layout == Layout::shared)
      for (Matrix& m : problems) m = problems[0];
    const int64_t r = problems[0].rows, c = problems[0].columns;
    int64_t rs = c, cs = 1, bs = r * c, offset = 0;
    if (layout == Layout::transposed) {
      rs = 1;
      cs = r;
    }
    if (layout == Layout::padded) {
      rs = c + 3;
      bs = r * rs + 5;
    }
    if (layout == Layout::strided) {
      rs = 2 * c + 1;
      cs = 2;
      bs = r * rs;
    }
    if (layout == Layout::reversed) {
      rs = -c;
      offset = (r - 1) * c;
    }
    if (layout == Layout::shared) bs = 0;
    const int64_t low = offset + (rs < 0 ? (r - 1) * rs : 0);
    const int64_t high = offset + (rs > 0 ? (r - 1) * rs : 0) + (c - 1) * cs + (int64_t(problems.size()) - 1) * bs;
    memory.assign(size_t(high - low + 1), std::numeric_limits<T>::quiet_NaN());
    for (size_t b = 0; b < problems.size(); ++b)
      for (int64_t i = 0; i < r; ++i)
        for (int64_t j = 0; j < c; ++j) {
          const T rounded = static_cast<T>(problems[b](i, j));
          memory[size_t(offset + int64_t(b) * bs + i * rs + j * cs)] = rounded;
          problems[b](i, j) = static_cast<double>(rounded);
        }
    view = {memory.data() + offset, bs, rs, cs};
  }
};

// Exactly as many elements as in the contract, all NaN: elements that are not written remain NaN, and AddressSanitizer
// finds writes beyond the end.
template <class T>
std::vector<T> poisoned(int64_t count) {
  return std::vector<T>(size_t(count), std::numeric_limits<T>::quiet_NaN());
}

// A workspace of `count` elements, all NaN, at the very end of one allocation: AddressSanitizer finds writes beyond it.
// The next call reuses its memory.
template <class T>
T* workspace(int64_t count) {
  static std::unique_ptr<T[]> memory;
  static int64_t capacity = -1;
  if (count > capacity) {
    memory.reset(new T[size_t(count)]);
    capacity = count;
  }
  T* start = memory.get() + (capacity - count);
  std::memset(static_cast<void*>(start), 0xff, size_t(count) * sizeof(T));  // all bits set is a NaN
  return start;
}

// Problem b of a dense row-major output [B, rows, columns].
template <class T>
Matrix problem(const std::vector<T>& out, int64_t b, int64_t rows, int64_t columns) {
  Matrix m(rows, columns);
  for (size_t e = 0; e < m.v.size(); ++e) m.v[e] = static_cast<double>(out[size_t(b * rows * columns) + e]);
  return m;
}

inline bool all_nan(const Matrix& m) {
  for (double x : m.v)
    if (!std::isnan(x)) return false;
  return true;
}

// The unit roundoff times `growth`.
template <class T>
double tolerance(double growth) {
  return 0.5 * static_cast<double>(std::numeric_limits<T>::epsilon()) * growth;
}

template <class T>
const char* type_name() {
  return sizeof(T) == 4 ? "float" : "double";
}

}  // namespace test

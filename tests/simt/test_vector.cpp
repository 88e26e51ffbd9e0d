// Kernels that the core's table of problems is too small to reach, or reaches in rows that a thinned table leaves out.
#include "cholesky.h"
#include "cuda/vector.cuh"
#include "naive.h"

using namespace test;

namespace {

template <class T>
void long_dots() {
  const int64_t batch = 2, count = 20000;  // three parts each
  std::vector<Matrix> x{random(1, count), random(1, count)}, y{random(1, count), random(1, count)};
  const Input<T> x_in(x, Layout::dense), y_in(y, Layout::dense);
  std::vector<T> out = poisoned<T>(batch), partial = poisoned<T>(ssdd::cuda::dot_room(batch, count));
  CHECK(partial.size() == 6, "not a case of several parts: " << partial.size());
  ssdd::cuda::dot<T>(batch, count, x_in.view.p, y_in.view.p, 0.5, out.data(), partial.data(), nullptr);
  for (size_t b = 0; b < size_t(batch); ++b) {
    const double off = std::fabs(double(out[b]) - 0.5 * dot(x[b], y[b]));
    CHECK(off <= tolerance<T>(100) * std::sqrt(double(count)), type_name<T>() << ": a dot product is off by " << off);
  }
}

template <class T>
void last_rung() {
  const int64_t n = 250, c = 3;  // beyond a block's shared memory in either type
  const Matrix x = random(n, n + 5);
  std::vector<Matrix> a{add_to_diagonal((1.0 / double(n)) * (x * transpose(x)), 0.5)}, y{random(n, c)};
  const Input<T> a_in(a, Layout::dense), y_in(y, Layout::dense);
  std::vector<T> factor = poisoned<T>(n * n), out = poisoned<T>(n * c), jitter = poisoned<T>(1), aux = poisoned<T>(3);
  std::vector<int32_t> status(1, 77);
  ssdd::SolveArgs<T> args{};
  args.batch = 1, args.s = n, args.c = c, args.a = a_in.view, args.y = y_in.view;
  args.factor = factor.data(), args.x = out.data(), args.jitter = jitter.data(), args.aux = aux.data();
  args.status = status.data();
  args.work = workspace<T>(ssdd::cuda::cholesky_workspace(1, n, c));
  ssdd::cuda::solve(args, nullptr);
  CHECK(status[0] == 0, type_name<T>() << ": status " << status[0]);
  const double off = error(a[0] * problem(out, 0, n, c), y[0]);
  CHECK(off <= tolerance<T>(1000), type_name<T>() << ": A x is off by " << off);
}

}  // namespace

TEST(product_of_long_vectors) {
  long_dots<float>();
  long_dots<double>();
}

// "product_" and "cholesky_": names that `make sanitize` runs.
TEST(cholesky_of_the_last_rung) {
  last_rung<float>();
  last_rung<double>();
}

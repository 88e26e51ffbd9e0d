// Kernels that the core's table of problems is too small to run, or runs in rows that a sampled table omits.
#include <algorithm>

#include "cholesky.h"
#include "cuda/factor.cuh"
#include "cuda/vector.cuh"
#include "naive.h"

using namespace test;

namespace {

// The second problem failed. in_solve: within the solve, which does not change u.
template <class T>
void check_after_solve(int64_t rows, int64_t columns, bool in_solve) {
  const int64_t batch = 3, count = rows * columns;
  std::vector<Matrix> x, u;
  for (int64_t b = 0; b < batch; ++b) x.push_back(random(rows, columns)), u.push_back(random(rows, columns));
  const Input<T> x_in(x, Layout::dense), u_in(u, Layout::dense);
  std::vector<T> pack = poisoned<T>(3 * batch * count),
                 partial = poisoned<T>(ssdd::cuda::after_solve_room(batch, rows, columns));
  std::vector<T> scalars(size_t(batch * ssdd::cuda::kScalars), T(0.5)), aux(size_t(3 * batch), T(1));
  std::vector<int> counters(static_cast<size_t>(batch));
  aux[4] = T(NAN);
  std::vector<T> identity(size_t(batch * rows * rows));
  for (int64_t i = 0; i < batch * rows; ++i) identity[size_t(i * rows + i % rows)] = T(1);
  for (int time = 0; time < 2; ++time) {
    std::vector<T> got(u_in.view.p, u_in.view.p + batch * count);
    const ssdd::cuda::AfterSolve<T> args{batch,          rows,        columns,        x_in.view.p,
                                         got.data(),     pack.data(), aux.data(),     ssdd::RidgeKind::mean_trace,
                                         false,          4,           scalars.data(), partial.data(),
                                         counters.data()};
    if (in_solve)
      ssdd::cuda::solve_factored<T>(args, identity.data(), nullptr, nullptr);
    else
      ssdd::cuda::after_solve<T>(args, nullptr);
    for (int64_t b = 0; b < batch; ++b) {
      const T* const own = scalars.data() + b * ssdd::cuda::kScalars;
      if (b == 1) {
        CHECK(all_nan(problem(got, b, rows, columns)) && std::isnan(own[ssdd::cuda::kLambdaBar]),
              "a failed problem is not NaN");
        continue;
      }
      const double want = -dot(x[size_t(b)], u[size_t(b)]), off = tolerance<T>(100) * std::sqrt(double(count));
      CHECK(std::fabs(double(own[ssdd::cuda::kLambdaBar]) - want) <= off,
            type_name<T>() << ": " << own[ssdd::cuda::kLambdaBar] << ", not " << want);
      CHECK(std::fabs(double(own[ssdd::cuda::kThroughTrace]) - want / 8) <= off, type_name<T>()
                                                                                     << ": through the trace");
      CHECK(std::fabs(double(own[ssdd::cuda::kTraceScale]) - want / 8) <= off, type_name<T>() << ": times 2 s");
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const T* const row = pack.data() + (b * rows + i) * 3 * columns + j;
          const int64_t e = b * count + i * columns + j;
          CHECK(row[0] == -u_in.view.p[e] && row[columns] == x_in.view.p[e] && row[2 * columns] == row[0],
                type_name<T>() << ": the pack at " << i << ", " << j);
        }
    }
    CHECK(std::count(counters.begin(), counters.end(), 0) == batch, "a counter is not put back");
  }
}

template <class T>
void nan_in_one() {
  const int64_t count = 300;
  const int32_t status[] = {0, 3};
  std::vector<T> out(2 * count, T(1));
  ssdd::cuda::nan_if_failed<T>(2, count, status, out.data(), nullptr);
  CHECK(std::count(out.begin(), out.begin() + count, T(1)) == count, type_name<T>() << ": a problem that did not fail");
  CHECK(all_nan(problem(out, 1, 1, count)), type_name<T>() << ": the problem that failed");
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
  args.batch = 1;
  args.s = n;
  args.c = c;
  args.a = a_in.view;
  args.y = y_in.view;
  args.factor = factor.data();
  args.x = out.data();
  args.jitter = jitter.data();
  args.aux = aux.data();
  args.status = status.data();
  args.work = workspace<T>(ssdd::cuda::cholesky_workspace(1, n, c));
  ssdd::cuda::solve(args, nullptr);
  CHECK(status[0] == 0, type_name<T>() << ": status " << status[0]);
  const double off = error(a[0] * problem(out, 0, n, c), y[0]);
  CHECK(off <= tolerance<T>(1000), type_name<T>() << ": A x is off by " << off);
}

}  // namespace

TEST(product_nan_where_a_problem_failed) {
  nan_in_one<float>();
  nan_in_one<double>();
}

TEST(product_after_a_solve) {
  for (bool in_solve : {false, true}) {
    check_after_solve<float>(7, 10, in_solve);
    check_after_solve<double>(7, 10, in_solve);
    check_after_solve<float>(65, 70, in_solve);  // three parts per problem, two in the solve
    check_after_solve<double>(65, 70, in_solve);
  }
}

// "product_" and "cholesky_": names that `make sanitize` runs.
TEST(cholesky_of_the_last_rung) {
  last_rung<float>();
  last_rung<double>();
}

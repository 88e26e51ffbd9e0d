// tridiagonal(), tridiagonal_rotate() and tridiagonal_solve(): together they solve for many shifts, for any threads.
#include "tridiagonal.h"

#include <array>

#include "naive.h"

using namespace test;

namespace {

template <class T>
void solves(int64_t batch, int64_t n, int64_t r, int64_t c, bool shared_y, bool shared_shift, int threads) {
  const int64_t work = ssdd::cpu::tridiagonal_workspace(n, r * c, threads), many = shared_y ? 1 : r;
  std::vector<Matrix> a, y;
  std::vector<T> dense(size_t(batch * n * n)), shifts(size_t(batch * r * (shared_shift ? 1 : c)));
  std::vector<T> right(size_t(batch * n * many * c));
  for (int64_t b = 0; b < batch; ++b) {
    const Matrix x = random(n, n + 2);
    a.push_back(x * transpose(x));
    y.push_back(random(n, many * c));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        dense[size_t((b * n + i) * n + j)] = j <= i ? T(a[size_t(b)](i, j)) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < n * many * c; ++i) right[size_t(b * n * many * c + i)] = T(y[size_t(b)].v[size_t(i)]);
  }
  for (T& v : shifts) v = T(uniform(1, 5));
  auto reflectors = poisoned<T>(batch * n * n), tau = poisoned<T>(batch * n), diagonal = poisoned<T>(batch * n),
       beside = poisoned<T>(batch * n), bounds = poisoned<T>(2 * batch), memory = poisoned<T>(work),
       x = poisoned<T>(batch * n * r * c);
  ssdd::cpu::tridiagonal(ssdd::TridiagonalArgs<T>{batch,
                                                  n,
                                                  {dense.data(), n * n, n, 1},
                                                  reflectors.data(),
                                                  tau.data(),
                                                  diagonal.data(),
                                                  beside.data(),
                                                  bounds.data(),
                                                  memory.data(),
                                                  threads});
  ssdd::cpu::tridiagonal_rotate(ssdd::RotateArgs<T>{batch, n, many * c, reflectors.data(), tau.data(), right.data(),
                                                    true, memory.data(), threads});
  ssdd::cpu::tridiagonal_solve(ssdd::ShiftedSolveArgs<T>{batch, n, r, c, shared_y && r > 1, shared_shift,
                                                         diagonal.data(), beside.data(), shifts.data(), right.data(),
                                                         x.data(), memory.data(), threads});
  ssdd::cpu::tridiagonal_rotate(
      ssdd::RotateArgs<T>{batch, n, r * c, reflectors.data(), tau.data(), x.data(), false, memory.data(), threads});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t k = 0; k < r; ++k)
      for (int64_t j = 0; j < c; ++j) {
        const T shift = shifts[size_t((b * r + k) * (shared_shift ? 1 : c) + (shared_shift ? 0 : j))];
        Matrix got(n, 1), want(n, 1);
        for (int64_t i = 0; i < n; ++i) {
          got(i, 0) = double(x[size_t(((b * n + i) * r + k) * c + j)]);
          want(i, 0) = y[size_t(b)](i, (shared_y ? 0 : k) * c + j);
        }
        want = inverse(add_to_diagonal(a[size_t(b)], double(shift))) * want;
        CHECK(error(got, want) < (sizeof(T) == 4 ? 1e-4 : 1e-11),
              "B=" << batch << " N=" << n << " R=" << r << " C=" << c);
        const double trace_of_t = trace(a[size_t(b)]), low = double(bounds[size_t(2 * b)]),
                     high = double(bounds[size_t(2 * b + 1)]);
        CHECK(low <= trace_of_t / double(n) * 1.0001 && high >= trace_of_t / double(n) * 0.9999 &&
                  high <= trace_of_t * 1.01,
              "bounds " << low << " " << high << " of N=" << n);
      }
}

template <class T>
void every() {
  for (int threads : {1, 2, 3})
    for (const auto& [batch, n, r, c] :
         {std::array<int64_t, 4>{1, 1, 1, 1}, {1, 2, 3, 2}, {3, 9, 2, 5}, {1, 33, 4, 67}})
      for (bool shared_y : {false, true})
        for (bool shared_shift : {false, true})
          if (in_sample()) solves<T>(batch, n, r, c, shared_y, shared_shift, threads);
}

TEST(tridiagonal_solves_for_many_shifts) {
  every<float>();
  every<double>();
}

}  // namespace

// The memory traffic of the kernels: sectors per request to global memory, and bank conflicts in shared memory.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cholesky.h"
#include "cuda/product.cuh"
#include "runtime.h"
#include "test_core.h"

using namespace test;

namespace {

const char* base(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash ? slash + 1 : file;
}

// Checks every counted line: at most `waste` times the sectors that its bytes need (and some at the edges of a matrix),
// and bank conflicts of at most two ways.
void check_counts(const char* what, double waste) {
  const simt::Count* counts;
  const int lines = simt::counted(&counts);
  CHECK(lines > 0, what << ": nothing was counted");
  for (int i = 0; i < lines; ++i) {
    const simt::Count& c = counts[i];
    if (c.space == simt::runtime::Space::shared)
      CHECK(c.worst_ways <= 2, what << ", " << base(c.site.file) << ":" << c.site.line << ": a bank conflict of "
                                    << c.worst_ways << " ways");
    else
      CHECK(double(c.sectors) <= waste * double(c.least_sectors) + 64,
            what << ", " << base(c.site.file) << ":" << c.site.line << ": " << c.sectors << " sectors where "
                 << c.least_sectors << " hold the bytes");
  }
  simt::count_accesses(false);
}

template <class T>
void product(int64_t m, int64_t k, bool a_transposed, bool b_transposed, bool distance, double waste) {
  alignas(32) static T a[160 * 160], b[160 * 160], c[160 * 160];
  for (int i = 0; i < 160 * 160; ++i) a[i] = b[i] = T(i % 7);
  ssdd::cuda::Product<T> p{};
  p.batch = 1;
  p.m = p.n = m;
  p.k = k;
  if (distance) p.inner = ssdd::cuda::Inner::distance;
  p.a = {a, 0, a_transposed ? 1 : k, a_transposed ? m : 1};
  p.b = {b, 0, b_transposed ? 1 : m, b_transposed ? k : 1};
  p.c = c;
  p.c_bs = 0;
  p.ld = m;
  simt::count_accesses(true);
  ssdd::cuda::product(p, nullptr);
  check_counts(sizeof(T) == 4 ? "float product" : "double product", waste);
}

// Aligned as a device allocation is. The sectors of a request depend on it, and a heap's address is arbitrary.
template <class T>
T* aligned(T* p) {
  constexpr uintptr_t kAlignment = 256;
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + kAlignment - 1) / kAlignment * kAlignment);
}

template <class T>
void factor(int64_t n, int64_t c) {
  constexpr size_t kSlack = 256 / sizeof(T);
  std::vector<T> a_memory(size_t(n * n) + kSlack), y_memory(size_t(n * c) + kSlack, T(1)), l_memory(a_memory.size()),
      x_memory(y_memory.size()), aux(3), jitter(1);
  T *a = aligned(a_memory.data()), *y = aligned(y_memory.data());
  std::vector<int32_t> status(1);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a[i * n + j] = i == j ? T(n) : T(0.5);
  ssdd::SolveArgs<T> args{};
  args.batch = 1;
  args.s = n;
  args.c = c;
  args.a = {a, 0, n, 1};
  args.y = {y, 0, c, 1};
  args.factor = aligned(l_memory.data());
  args.x = aligned(x_memory.data());
  args.jitter = jitter.data();
  args.aux = aux.data();
  args.status = status.data();
  args.work = aligned(workspace<T>(ssdd::cuda::cholesky_workspace(1, n, c) + int64_t(kSlack)));
  simt::count_accesses(true);
  ssdd::cuda::solve(args, nullptr);
  CHECK(status[0] == 0, "n = " << n << ": status " << status[0]);
  check_counts(n <= 32 ? "factor of a warp" : "factor of a block", 2);
}

}  // namespace

TEST(counts_of_products) {
  for (bool a : {false, true})
    for (bool b : {false, true}) {
      product<float>(128, 64, a, b, false, 1);
      product<float>(128, 64, a, b, true, 2);
      product<double>(128, 64, a, b, false, 2);
    }
  product<float>(128, 65, false, true, false, 2);  // rows at every alignment: one sector more in two
}

TEST(counts_of_factorisations) {
  factor<float>(32, 32);
  for (int64_t n : {64, 100, 128, 150}) factor<float>(n, 16);
  factor<double>(32, 32);
  factor<double>(100, 16);
}

// product_pair(): two products in one launch.
#include "cuda/product.cuh"

#include <algorithm>

#include "naive.h"

using namespace test;

namespace {

// Two products in one launch have the bits of each alone. Sizes: m, n, k.
template <class T>
void in_pair(const int64_t (&first)[3], const int64_t (&second)[3], bool one_launch, bool across = false) {
  if (!in_sample()) return;
  const auto product = [&](const int64_t (&size)[3], std::vector<Matrix>& a, std::vector<Matrix>& b) {
    a = {random(size[0], size[2]), random(size[0], size[2])};
    b = {random(size[2], size[1]), random(size[2], size[1])};
  };
  std::vector<Matrix> a[2], b[2];
  product(first, a[0], b[0]);
  product(second, a[1], b[1]);
  const Layout layout = across ? Layout::transposed : Layout::dense,
               other = across ? Layout::dense : Layout::transposed;
  const Input<T> a_in[] = {{a[0], layout}, {a[1], layout}}, b_in[] = {{b[0], other}, {b[1], other}};
  const int64_t room = ssdd::cuda::split_room(2, first[0], first[1], first[2]) +
                       ssdd::cuda::split_room(2, second[0], second[1], second[2]);
  std::vector<T> out[2][2], split = poisoned<T>(room);
  std::vector<int> counters(ssdd::cuda::kCounters);
  for (bool together : {false, true}) {
    ssdd::cuda::Product<T> p[2] = {};
    for (int i : {0, 1}) {
      const int64_t (&size)[3] = i == 0 ? first : second;
      out[together][i] = poisoned<T>(2 * size[0] * size[1]);
      p[i].batch = 2;
      p[i].m = size[0];
      p[i].n = size[1];
      p[i].k = size[2];
      p[i].a = a_in[i].view;
      p[i].b = b_in[i].view;
      p[i].alpha = 1 + i;
      p[i].c = out[together][i].data();
      p[i].c_bs = size[0] * size[1];
      p[i].ld = size[1];
      p[i].split = split.data();
      p[i].split_elements = room;
      p[i].counters = counters.data();
    }
    const int64_t before = simt::launches();
    if (together)
      ssdd::cuda::product_pair(p[0], p[1], nullptr);
    else
      for (const auto& one : p) ssdd::cuda::product(one, nullptr);
    CHECK(simt::launches() - before == (together && one_launch ? 1 : 2),
          "a pair of " << first[0] << " and " << second[0] << ": launches");
    CHECK(std::count(counters.begin(), counters.end(), 0) == ssdd::cuda::kCounters, "a pair: a counter is not reset");
  }
  for (int i : {0, 1}) {
    CHECK(out[0][i] == out[1][i],
          "product " << i << " of a pair of " << first[0] << " and " << second[0] << " has other bits");
    for (int64_t e = 0; e < 2; ++e) {
      const double off = error(problem(out[1][i], e, a[i][0].rows, b[i][0].columns),
                               double(1 + i) * (a[i][size_t(e)] * b[i][size_t(e)]));
      CHECK(off <= tolerance<T>(30), "product " << i << " of a pair is off by " << off);
    }
  }
}

}  // namespace

TEST(product_pairs) {
  in_pair<float>({10, 10, 300}, {100, 10, 300}, true);
  in_pair<float>({70, 20, 257}, {20, 130, 600}, true, true);
  in_pair<float>({65, 65, 50}, {3, 3, 4096}, true);
  in_pair<float>({10, 10, 20}, {100, 10, 300}, false);  // k too short for tensor cores
  in_pair<double>({10, 10, 300}, {100, 10, 300}, false);
}

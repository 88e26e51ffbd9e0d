// Gram matrices on the CPU: one product with the kernel as its epilogue; the symmetric case computes one triangle.
#include "../gram.h"

#include "kernel.h"
#include "workers.h"

namespace ssdd::cpu {

int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int threads) {
  // Either one team of all threads, or one team per worker: the larger of both. Squared lengths are at the end.
  const int64_t widest = q > s ? q : s;
  const int64_t alone = packing_elements(widest, 1) * (batch < threads ? batch : threads);
  const int64_t together = packing_elements(widest, threads);
  return (alone > together ? alone : together) + (s + q) * (batch < threads ? batch : threads) + 16;
}

template <class T>
void gram(const GramArgs<T>& a) {
  const bool symmetric = a.z.p == nullptr;
  const Workers workers(a.batch, static_cast<double>(a.s) * a.q * a.d * (symmetric ? 0.5 : 1), a.threads, 1);
  const int64_t widest = a.q > a.s ? a.q : a.s;
  workers.run(a.batch, [&](const Team& team, int64_t b, int worker) {
    T* k = a.k + b * a.s * a.q;
    if (!parameters_valid(a.kernel, a.hyper, b)) return fill_nan(team, a.s * a.q, k);
    const Packing<T> pack = packing(a.work + worker * packing_elements(widest, 1), widest, workers.team_size);
    T *x_norms = nullptr, *z_norms = nullptr;
    const View<const T> x = a.x[b], z = symmetric ? x : a.z[b];
    Product<T> p{a.s, a.q, a.d, x, z.t(), k, a.q};
    p.lower = symmetric;
    if (of_norms(a.kernel)) {
      const int64_t packed = workers.team_size > 1 ? packing_elements(widest, workers.team_size)
                                                   : packing_elements(widest, 1) * workers.count;
      x_norms = a.work + packed + worker * (a.s + a.q);
      z_norms = symmetric ? x_norms : x_norms + a.s;
      squared_lengths(team, a.s, a.d, x, x_norms);
      if (!symmetric) squared_lengths(team, a.q, a.d, z, z_norms);
    }
    kernel_product<T>(team, pack, a.kernel, a.order, a.hyper, b, p, x_norms, z_norms);
    if (symmetric && of_norms(a.kernel)) set_diagonal<T>(team, a.kernel, a.order, a.hyper, b, a.s, a.d, x_norms, k);
    if (symmetric) mirror(team, a.s, k);
  });
}

template void gram(const GramArgs<float>&);
template void gram(const GramArgs<double>&);

}  // namespace ssdd::cpu

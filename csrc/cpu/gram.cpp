// Gram matrices on the CPU: one product with the kernel as its epilogue; the symmetric case computes one triangle.
#include "../arena.h"
#include "../gram.h"
#include "kernel.h"
#include "workers.h"

namespace ssdd::cpu {

namespace {

template <class T>
struct Work {
  T *pack, *norms_x, *norms_z;
  DistanceWork<T> distances;
  int64_t total, widest;
};

template <class T>
Work<T> layout(KernelKind kernel, int64_t s, int64_t q, int64_t d, int threads, T* memory) {
  Arena<T> arena{memory};
  Work<T> w{};
  w.widest = std::max(s, q);
  w.pack = arena.take(packing_elements(w.widest, threads));
  if (of_norms(kernel)) {
    w.norms_x = arena.take(s);
    w.norms_z = arena.take(q);
  }
  if (shifts(kernel, d)) w.distances = distance_work(arena, s, q, d);
  w.total = arena.used;
  return w;
}

}  // namespace

int64_t gram_workspace(KernelKind kernel, int64_t batch, int64_t s, int64_t q, int64_t d, int threads) {
  // Either one team of all threads, or one team per worker: the larger of both.
  const int64_t alone = layout<float>(kernel, s, q, d, 1, nullptr).total * std::min<int64_t>(batch, threads);
  return std::max(alone, layout<float>(kernel, s, q, d, threads, nullptr).total);
}

template <class T>
void gram(const GramArgs<T>& a) {
  const bool symmetric = a.z.p == nullptr;
  const Workers workers(a.batch, static_cast<double>(a.s) * a.q * a.d * (symmetric ? 0.5 : 1), a.threads, 1);
  const int64_t stride = layout<T>(a.kernel, a.s, a.q, a.d, workers.team_size, nullptr).total;
  workers.run(a.batch, [&](const Team& team, int64_t b, int worker) {
    T* k = a.k + b * a.s * a.q;
    if (!parameters_valid(a.kernel, a.hyper, b)) return fill_nan(team, a.s * a.q, k);
    const Work<T> w = layout(a.kernel, a.s, a.q, a.d, workers.team_size, a.work + worker * stride);
    const Packing<T> pack = packing(w.pack, w.widest, workers.team_size);
    const T *const x_norms = w.norms_x, *const z_norms = symmetric ? w.norms_x : w.norms_z;
    const View<const T> x = a.x[b], z = symmetric ? x : a.z[b];
    Product<T> p{a.s, a.q, a.d, x, z.t(), k, a.q};
    p.lower = symmetric;
    if (of_norms(a.kernel)) {
      squared_lengths(team, a.s, a.d, x, w.norms_x);
      if (!symmetric) squared_lengths(team, a.q, a.d, z, w.norms_z);
    }
    kernel_product<T>(team, pack, a.kernel, a.order, a.hyper, b, p, x_norms, z_norms, nullptr, w.distances);
    if (symmetric && of_norms(a.kernel)) set_diagonal<T>(team, a.kernel, a.order, a.hyper, b, a.s, a.d, x_norms, k);
    if (symmetric) mirror(team, a.s, k);
  });
}

template void gram(const GramArgs<float>&);
template void gram(const GramArgs<double>&);

}  // namespace ssdd::cpu

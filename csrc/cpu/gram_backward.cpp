// The gradients of a Gram matrix on the CPU: the same steps as in krr_backward.cpp, from a gradient that is given.
#include "../arena.h"
#include "../gram.h"
#include "kernel_backward.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

template <class T>
struct Work {
  T *bar, *arguments, *shifted_x, *shifted_z, *norms_x, *norms_z, *row_sums, *norms_bar, *diagonal, *sums, *partial,
      *pack;
  DistanceWork<T> distances;
  int64_t total, widest;
};

template <class T>
Work<T> layout(KernelKind kernel, int64_t s, int64_t q, int64_t d, int64_t chunk, bool symmetric, int threads,
               T* memory) {
  Arena<T> arena{memory};
  Work<T> w{};
  const int64_t rows = symmetric ? s : std::min(s, chunk), longest = std::max(rows, q);
  w.widest = std::max({s, q, d});
  w.bar = arena.take(rows * q);
  w.arguments = arena.take(rows * q);
  w.shifted_x = arena.take(rows * d);
  w.shifted_z = symmetric ? w.shifted_x : arena.take(q * d);
  w.norms_x = arena.take(rows);
  w.norms_z = symmetric ? w.norms_x : arena.take(q);
  w.row_sums = arena.take(3 * longest);
  w.norms_bar = arena.take((threads + 1) * q);
  w.diagonal = arena.take(q);
  w.sums = arena.take(longest);
  w.partial = arena.take(longest);
  if (shifts(kernel, d)) w.distances = distance_work(arena, symmetric ? 0 : rows, q, d);
  w.pack = arena.take(packing_elements(w.widest, threads));
  w.total = arena.used;
  return w;
}

template <class T>
class Backward {
 public:
  Backward(const GramBackwardArgs<T>& args, const Team& team, int64_t b, const Work<T>& w, int ranks)
      : a(args), team(team), b(b), w(w), pack(packing(w.pack, w.widest, ranks)), ranks(ranks),
        symmetric(a.z.p == nullptr), x(a.x[b]), z(symmetric ? x : a.z[b]), grad(a.grad[b]) {
    grad_x = a.grad_x ? a.grad_x + b * a.s * a.d : nullptr;
    grad_z = a.grad_z ? a.grad_z + b * a.q * a.d : nullptr;
    grad_hyper = a.grad_hyper ? a.grad_hyper + b * a.hyper.count : nullptr;
  }

  void run() {
    if (!parameters_valid(a.kernel, a.hyper, b)) {
      fill_nan(team, a.s * a.d, grad_x);
      fill_nan(team, a.q * a.d, grad_z);
      fill_nan(team, a.hyper.count, grad_hyper);
      return;
    }
    if (of_norms(a.kernel)) squared_lengths(team, a.q, a.d, z, w.norms_z);
    const KernelBackwardWork<T> work{w.row_sums, std::max(rows_at_once(), a.q), w.norms_bar, w.diagonal, w.sums,
                                     w.partial};
    KernelBackward<T> own(team, pack, a.kernel, a.order, a.hyper, b, a.q, a.d, z, w.norms_z, grad_hyper != nullptr,
                          ranks, work);
    const Points columns = own.points(z, a.q, w.shifted_z);
    if (symmetric)
      with_itself(own, columns);
    else
      for (int64_t i = 0; i < a.s; i += a.chunk) rows(own, columns, i, std::min(a.chunk, a.s - i));
    if (grad_hyper && team.rank == 0)
      for (int i = 0; i < a.hyper.count; ++i) grad_hyper[i] = static_cast<T>(own.parameter(i));
    team.barrier();
  }

 private:
  using Points = typename KernelBackward<T>::Points;

  int64_t rows_at_once() const { return symmetric ? a.s : std::min(a.s, a.chunk); }

  // The arguments of the rows from i0 on; of the rbf kernel, which has its slope from its value, the values.
  void arguments(int64_t i0, int64_t count, bool lower) {
    Product<T> p{count, a.q, a.d, x.from(i0, 0), z.t(), w.arguments, a.q};
    p.lower = lower;
    if (keeps_argument(a.kernel))
      argument_product(team, pack, a.kernel, p, w.distances);
    else
      kernel_product<T>(team, pack, a.kernel, a.order, a.hyper, b, p, nullptr, nullptr, nullptr, w.distances);
  }

  void with_itself(KernelBackward<T>& own, const Points& points) {
    arguments(0, a.s, true);
    int64_t begin, end;
    team.share(a.s, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j <= i; ++j) w.bar[i * a.s + j] = grad(i, j) + grad(j, i);
    team.barrier();
    own.symmetric(w.arguments, w.bar, 0);
    if (grad_x) own.add_gradient(a.s, a.s, {w.bar, a.s, 1}, points, points, own.diagonal_norms(), grad_x, T(0));
  }

  void rows(KernelBackward<T>& own, const Points& columns, int64_t i0, int64_t count) {
    const View<const T> these = x.from(i0, 0);
    const bool norms = of_norms(a.kernel);
    if (norms) squared_lengths(team, count, a.d, these, w.norms_x);
    arguments(i0, count, false);
    copy(team, count, a.q, grad.from(i0, 0), w.bar, a.q);
    own.slopes(count, w.arguments, w.bar, w.norms_x, [](int64_t) { return 0; }, [&](int64_t) { return a.q; });
    if (!grad_x && !grad_z) return;
    const Points points = own.points(these, count, w.shifted_x);
    if (grad_x)
      own.add_gradient(count, a.q, {w.bar, a.q, 1}, columns, points, norms ? own.row_norms() : nullptr,
                       grad_x + i0 * a.d, T(0));
    if (grad_z)
      own.add_gradient(a.q, count, {w.bar, 1, a.q}, points, columns, norms ? own.column_norms() : nullptr, grad_z,
                       i0 == 0 ? T(0) : T(1));
  }

  const GramBackwardArgs<T>& a;
  const Team& team;
  const int64_t b;
  const Work<T>& w;
  const Packing<T> pack;
  const int ranks;
  const bool symmetric;
  const View<const T> x, z, grad;
  T *grad_x, *grad_z, *grad_hyper;
};

}  // namespace

int64_t gram_backward_workspace(KernelKind kernel, int64_t batch, int64_t s, int64_t q, int64_t d, int64_t chunk,
                                bool symmetric, int threads) {
  const int64_t alone =
      layout<float>(kernel, s, q, d, chunk, symmetric, 1, nullptr).total * std::min<int64_t>(batch, threads);
  return std::max(alone, layout<float>(kernel, s, q, d, chunk, symmetric, threads, nullptr).total);
}

template <class T>
void gram_backward(const GramBackwardArgs<T>& a) {
  const bool symmetric = a.z.p == nullptr;
  const Workers workers(a.batch, 3.0 * static_cast<double>(a.s) * static_cast<double>(a.q) * static_cast<double>(a.d),
                        a.threads, 12);
  const int64_t stride = layout<T>(a.kernel, a.s, a.q, a.d, a.chunk, symmetric, workers.team_size, nullptr).total;
  workers.run(a.batch, [&](const Team& team, int64_t b, int worker) {
    const Work<T> w = layout(a.kernel, a.s, a.q, a.d, a.chunk, symmetric, workers.team_size, a.work + worker * stride);
    Backward<T>(a, team, b, w, workers.team_size).run();
  });
}

template void gram_backward(const GramBackwardArgs<float>&);
template void gram_backward(const GramBackwardArgs<double>&);

}  // namespace ssdd::cpu

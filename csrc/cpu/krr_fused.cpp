// Loss and gradients of a small problem with a linear kernel in one pass over its queries (krr.h).
//
// The query side of the gradient needs only alpha and the residual. A band of queries therefore goes from its Gram rows
// to its part of Xbar_s while it is in the nearest cache. X_q is read from memory once, and the ranks have four
// barriers per problem instead of about thirty. Each rank has its own sums, which are added in the order of the ranks.
#include "../arena.h"
#include "blas.h"
#include "factor.h"
#include "kernel.h"
#include "krr_work.h"
#include "team.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kMostSupport = 20;  // the micro kernels for few rows and few columns are designed for this many
constexpr int64_t kBand = 36;         // queries at a time
constexpr int64_t kRunBands = 14;     // bands whose sums are added to a total: short sums round less
constexpr int64_t kStrip = 512;       // columns of Xbar_s at a time: S of them stay in L1

template <class T>
struct Sums {
  T *alpha_bar, *x_bar, *loss;  // [S, C], [S, ld(D)], [2]: high and low part of a double
};

template <class T>
struct Work {
  T *factor, *diagonal, *coef, *u, *k_bar, *half, *aux, *jitter, *pack;  // per problem
  T *run, *totals, *band;                                                // per rank
  int64_t total, per_sum, per_band;
};

int64_t padded(int64_t d) { return (d + 15) / 16 * 16 + 16; }

template <class T>
Work<T> layout(const KrrShape& s, int threads, T* memory) {
  Arena<T> arena{memory};
  Work<T> w;
  w.factor = arena.take(s.s * s.s);
  w.diagonal = arena.take(s.s);
  w.coef = arena.take(s.s * s.c);
  w.u = arena.take(s.s * s.c);
  w.k_bar = arena.take(s.s * s.s);
  w.half = arena.take(s.s * s.s);
  w.aux = arena.take(3);
  w.jitter = arena.take(1);
  w.per_sum = (s.s * s.c + s.s * padded(s.d) + 2 + 31) / 16 * 16;
  w.per_band = (kBand * (3 * s.s + s.c) + 15) / 16 * 16;
  w.run = arena.take(threads * w.per_sum);
  w.totals = arena.take(threads * w.per_sum);
  w.band = arena.take(threads * w.per_band);
  w.pack = arena.take(packing_elements(std::max({s.s, s.c, s.d}), threads));
  w.total = arena.used;
  return w;
}

template <class T>
class Fused {
 public:
  Fused(const KrrFusedArgs<T>& args, const Team& team, int64_t b, const Work<T>& w, int threads)
      : a(args), s(args.shape), team(team), b(b), w(w), micro(cpu::micro<T>()),
        pack(packing(w.pack, std::max({s.s, s.c, s.d}), threads)) {
    x_s = a.x_s[b];
    y_s = a.y_s[b];
    x_q = a.x_q[b];
    y_q = a.y_q[b];
    scale = a.hyper.get(b, 0);
    bias = a.hyper.get(b, 1);
    gamma = static_cast<T>(2.0 / (static_cast<double>(s.q) * static_cast<double>(s.c)));
  }

  void run() {
    if (team.rank == 0) solve();
    team.barrier();
    if (a.status[b] != 0) return;
    queries();
    team.barrier();
    if (team.rank == 0) solve_back();
    team.barrier();
    if (a.grad_x_s) finish_x_s();
  }

 private:
  Sums<T> sums(T* memory, int rank) const {
    T* at = memory + rank * w.per_sum;
    return {at, at + s.s * s.c, at + s.s * s.c + s.s * padded(s.d)};
  }

  // Computes L and alpha on one rank.
  void solve() {
    a.status[b] = kBadParameter;
    if (!parameters_valid(s.kernel, a.hyper, b) || !ridge_valid(a.hyper, b)) return;
    const Team alone{};
    Product<T> gram{s.s, s.s, s.d, x_s, x_s.t(), w.factor, s.s};
    gram.lower = true;
    kernel_product<T>(alone, pack, s.kernel, s.order, a.hyper, b, gram);
    const bool mirrored = a.on_failure == OnFailure::jitter;
    if (mirrored) mirror(alone, s.s, w.factor);
    const T v = a.hyper.get(b, a.hyper.count - 1);
    if (!factorise(alone, pack, {s.s, w.factor, w.diagonal, mirrored, a.status + b, w.jitter, w.aux}, s.ridge, true, v,
                   s.s, a.on_failure))
      return;
    copy(alone, s.s, s.c, y_s, w.coef, s.c);
    solve_factored(alone, pack, s.s, w.factor, s.c, w.coef);
  }

  // Adds the loss, abar / gamma and Kbar_qs^T X_q / (gamma scale) of this rank's bands to its sums.
  void queries() {
    const Sums<T> total = sums(w.totals, team.rank), run = sums(w.run, team.rank);
    std::fill(total.alpha_bar, total.alpha_bar + w.per_sum, T(0));
    std::fill(run.alpha_bar, run.alpha_bar + w.per_sum, T(0));
    double loss = 0;
    int64_t begin, end, bands = 0;
    team.share(s.q, 4, &begin, &end);
    for (int64_t q0 = begin; q0 < end; q0 += kBand) {
      loss += band(q0, static_cast<int>(std::min(kBand, end - q0)), run);
      if (++bands % kRunBands == 0) add(run, total);
    }
    add(run, total);
    total.loss[0] = static_cast<T>(loss);
    total.loss[1] = static_cast<T>(loss - static_cast<double>(total.loss[0]));
  }

  void add(const Sums<T>& run, const Sums<T>& total) const {
    const int64_t count = s.s * s.c + s.s * padded(s.d);
    for (int64_t i = 0; i < count; ++i) {
      total.alpha_bar[i] += run.alpha_bar[i];
      run.alpha_bar[i] = T(0);
    }
  }

  double band(int64_t q0, int rows, const Sums<T>& run) {
    const int n = static_cast<int>(s.s), c = static_cast<int>(s.c);
    T* k = w.band + team.rank * w.per_band;  // [rows, S]
    T* k_t = k + kBand * s.s;                // [S, rows]
    T* g = k_t + kBand * s.s;                // [rows, S] E alpha^T
    T* e = g + kBand * s.s;                  // [rows, C]
    const View<const T> x = x_q.from(q0, 0);
    micro.dots(rows, n, static_cast<int>(s.d), x.p, x.rs, x_s.p, x_s.rs, k, n, scale, T(0));
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < n; ++j) k_t[j * rows + i] = k[i * n + j] += bias;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < c; ++j) e[i * c + j] = -y_q(q0 + i, j);
    micro.stream(rows, c, n, k_t, w.coef, c, e, c);
    T squares;
    micro.dots(1, 1, rows * c, e, 0, e, 0, &squares, 1, T(1), T(0));
    micro.stream(n, c, rows, k, e, c, run.alpha_bar, c);
    if (a.grad_x_s || a.grad_x_q) micro.dots(rows, n, c, e, c, w.coef, c, g, n, T(1), T(0));
    if (a.grad_x_s)
      for (int64_t j = 0; j < s.d; j += kStrip)
        micro.stream(n, static_cast<int>(std::min(kStrip, s.d - j)), rows, g, x.p + j, x.rs, run.x_bar + j,
                     padded(s.d));
    if (a.grad_x_q) times_x_s(q0, rows, g);
    return static_cast<double>(squares);
  }

  // Computes Xbar_q = gamma scale G X_s for a band.
  void times_x_s(int64_t q0, int rows, T* g) {
    T* out = a.grad_x_q + (b * s.q + q0) * s.d;
    T* g_t = w.band + team.rank * w.per_band;  // reuses the memory of K
    for (int i = 0; i < rows; ++i)
      for (int64_t j = 0; j < s.s; ++j) g_t[j * rows + i] = gamma * scale * g[i * s.s + j];
    std::fill(out, out + rows * s.d, T(0));
    for (int64_t j = 0; j < s.d; j += kStrip)
      micro.stream(rows, static_cast<int>(std::min(kStrip, s.d - j)), static_cast<int>(s.s), g_t, x_s.p + j, x_s.rs,
                   out + j, s.d);
  }

  // Computes the loss, U = A^-1 abar and the factor of X_s in Xbar_s, on one rank.
  void solve_back() {
    const Team alone{};
    T* u = a.grad_y_s ? a.grad_y_s + b * s.s * s.c : w.u;
    double loss = 0;
    for (int r = 0; r < team.size; ++r) {
      const Sums<T> part = sums(w.totals, r);
      loss += static_cast<double>(part.loss[0]) + static_cast<double>(part.loss[1]);
      for (int64_t i = 0; i < s.s * s.c; ++i) u[i] = gamma * part.alpha_bar[i] + (r == 0 ? T(0) : u[i]);
    }
    a.loss[b] = static_cast<T>(loss / (static_cast<double>(s.q) * static_cast<double>(s.c)));
    if (!a.grad_x_s && !a.grad_y_s) return;
    solve_factored(alone, pack, s.s, w.factor, s.c, u);
    if (!a.grad_x_s) return;
    double lambda_bar = 0;
    for (int64_t i = 0; i < s.s * s.c; ++i) lambda_bar -= static_cast<double>(u[i]) * static_cast<double>(w.coef[i]);
    const double v = a.hyper.get(b, a.hyper.count - 1);
    const double through_trace = ridge_trace_slope(s.ridge, s.detach, v, s.s) * lambda_bar;
    // 2 Kbar_ss = -(U alpha^T + alpha U^T) + 2 c lbar I, times scale.
    micro.dots(static_cast<int>(s.s), static_cast<int>(s.s), static_cast<int>(s.c), u, s.c, w.coef, s.c, w.half, s.s,
               -scale, T(0));
    for (int64_t i = 0; i < s.s; ++i)
      for (int64_t j = 0; j < s.s; ++j) w.k_bar[i * s.s + j] = w.half[i * s.s + j] + w.half[j * s.s + i];
    for (int64_t i = 0; i < s.s; ++i) w.k_bar[i * s.s + i] += static_cast<T>(2 * through_trace * scale);
  }

  // Computes this rank's columns of Xbar_s = gamma scale (sum over the ranks) + scale 2 Kbar_ss X_s.
  void finish_x_s() {
    const int64_t n = s.s, ld = padded(s.d);
    T* out = a.grad_x_s + b * n * s.d;
    int64_t begin, end;
    team.share(s.d, 16, &begin, &end);
    for (int64_t j0 = begin; j0 < end; j0 += kStrip) {
      const int64_t j1 = std::min(end, j0 + kStrip);
      for (int64_t i = 0; i < n; ++i)
        for (int r = 0; r < team.size; ++r) {
          const T* part = sums(w.totals, r).x_bar + i * ld;
          for (int64_t j = j0; j < j1; ++j)
            out[i * s.d + j] = gamma * scale * part[j] + (r == 0 ? T(0) : out[i * s.d + j]);
        }
      micro.stream(static_cast<int>(n), static_cast<int>(j1 - j0), static_cast<int>(n), w.k_bar, x_s.p + j0, x_s.rs,
                   out + j0, s.d);
    }
  }

  const KrrFusedArgs<T>& a;
  const KrrShape& s;
  const Team team;
  const int64_t b;
  const Work<T>& w;
  const Micro<T>& micro;
  const Packing<T> pack;
  View<const T> x_s, y_s, x_q, y_q;
  T scale, bias, gamma;
};

}  // namespace

bool krr_fuses(const KrrShape& s, Plan backward) {
  if (s.lanes) return backward == Plan::low_rank;
  return s.kernel == KernelKind::linear && s.plan == Plan::dense && backward == Plan::dense && s.s <= kMostSupport;
}

int64_t krr_fused_workspace(const KrrShape& s) {
  if (s.lanes) return krr_fused_by_lanes_workspace(s);
  return std::max(layout<float>(s, 1, nullptr).total * std::min<int64_t>(s.batch, s.threads),
                  layout<float>(s, s.threads, nullptr).total);
}

template <class T>
void krr_fused(const KrrFusedArgs<T>& a) {
  const blas::ThreadGuard guard;
  if (a.shape.lanes) return krr_fused_by_lanes(a);
  const Workers workers(a.shape.batch, 2 * krr_work(a.shape), a.shape.threads, 4);
  const int64_t stride = layout<T>(a.shape, workers.team_size, nullptr).total;
  workers.run(a.shape.batch, [&](const Team& team, int64_t b, int worker) {
    const Work<T> w = layout(a.shape, workers.team_size, a.work + worker * stride);
    Fused<T>(a, team, b, w, workers.team_size).run();
  });
}

template void krr_fused(const KrrFusedArgs<float>&);
template void krr_fused(const KrrFusedArgs<double>&);

}  // namespace ssdd::cpu

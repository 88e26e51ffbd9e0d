// KRR forward on the CPU. One team solves one problem, from the Gram matrix to the loss; see krr.h for the plans.
#include "../krr.h"

#include "blas.h"
#include "factor.h"
#include "finish.h"
#include "kernel.h"
#include "krr_work.h"
#include "team.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

template <class T>
class Forward {
 public:
  Forward(const KrrForwardArgs<T>& args, const Team& team, int64_t b, const KrrWork<T>& w, int team_size)
      : a(args), s(args.shape), team(team), b(b), w(w), pack(packing(w.pack, w.widest, team_size)) {
    x_s = a.x_s[b];
    x_q = a.x_q[b];
    y_s = a.y_s[b];
    finish.row = nullptr;
    finish.y_q = a.y_q ? a.y_q[b] : View<const T>{};
    factor = a.factor + b * s.n * s.n;
    coef = a.coef + b * s.n * s.c;
    out = a.out + b * s.q * s.c;
  }

  void run() {
    const bool valid = parameters_valid(s.kernel, a.hyper, b) && ridge_valid(a.hyper, b);
    if (!valid) {
      if (team.rank == 0) {
        a.status[b] = kBadParameter;
        a.jitter[b] = T(0);
        for (int i = 0; i < 3; ++i) a.aux[3 * b + i] = std::numeric_limits<T>::quiet_NaN();
      }
      team.barrier();
    }
    if (valid) alone_if_small(team, solve_work(s), [&] { s.plan == Plan::primal ? solve_primal() : solve_dual(); });
    const bool success = valid && a.status[b] == 0;
    if (!success) {
      fill_nan(team, s.n * s.n, factor);
      fill_nan(team, s.n * s.c, coef);
      fill_nan(team, s.q * s.c, out);
    } else if (s.q > 0 && s.plan == Plan::dense) {
      predict_dense();
    } else if (s.q > 0) {
      predict_low_rank();
    }
    if (a.loss) {
      const double sum = squares(team, s.q, s.c, out, w.partial);
      if (team.rank == 0) a.loss[b] = static_cast<T>(sum / (static_cast<double>(s.q) * static_cast<double>(s.c)));
    }
  }

 private:
  T* kept_here() const { return a.kept ? a.kept + b * kept_rows(s.kernel, s.s, s.q) * s.s : nullptr; }

  bool factorise_here(bool mirrored) {
    const T v = a.hyper.get(b, a.hyper.count - 1);
    const bool success =
        factorise(team, pack, {s.n, factor, w.diagonal, mirrored, a.status + b, a.jitter + b, a.aux + 3 * b}, s.ridge,
                  true, v, s.s, a.on_failure);
    if (!mirrored) zero_above_diagonal(team, s.n, factor);
    return success;
  }

  void solve_dual() {
    Product<T> gram{s.s, s.s, s.d, x_s, x_s.t(), factor, s.s};
    gram.lower = true;
    T* const kept = keeps_argument(s.kernel) ? kept_here() : nullptr;
    if (of_norms(s.kernel)) squared_lengths(team, s.s, s.d, x_s, w.norms_s);
    kernel_product<T>(team, pack, s.kernel, s.order, a.hyper, b, gram, w.norms_s, w.norms_s,
                      kept ? kept + 2 * s.q * s.s : nullptr, w.distances);
    if (of_norms(s.kernel)) set_diagonal<T>(team, s.kernel, s.order, a.hyper, b, s.s, s.d, w.norms_s, factor);
    // K stays above the diagonal: a retry with jitter starts from it, and so does the backward of the rbf kernel.
    const bool mirrored = s.kernel == KernelKind::rbf || a.on_failure == OnFailure::jitter;
    if (mirrored) mirror(team, s.s, factor);
    if (!factorise_here(mirrored)) return;
    copy(team, s.s, s.c, y_s, coef, s.c);
    solve_factored(team, pack, s.s, factor, s.c, coef);
  }

  // H = Phi^T Phi and w = H^-1 Phi^T Y with Phi = [sqrt(scale) X, sqrt(bias) 1].
  void solve_primal() {
    const double scale = a.hyper.get(b, 0), bias = a.hyper.get(b, 1);
    Product<T> gram{s.d, s.d, s.s, x_s.t(), x_s, factor, s.n};
    gram.alpha = static_cast<T>(scale);
    gram.lower = true;
    product(team, pack, gram);
    Product<T> moment{s.d, s.c, s.s, x_s.t(), y_s, coef, s.c};
    moment.alpha = static_cast<T>(std::sqrt(scale));
    product(team, pack, moment);
    if (s.bordered) {
      sum_columns(team, s.s, s.d, x_s, std::sqrt(scale * bias), factor + s.d * s.n);
      sum_columns(team, s.s, s.c, y_s, std::sqrt(bias), coef + s.d * s.c);
      if (team.rank == 0) factor[s.d * s.n + s.d] = static_cast<T>(bias * static_cast<double>(s.s));
      team.barrier();
    }
    const bool mirrored = a.on_failure == OnFailure::jitter;
    if (mirrored) mirror(team, s.n, factor);
    if (!factorise_here(mirrored)) return;
    solve_factored(team, pack, s.n, factor, s.c, coef);
  }

  void finish_product(Product<T> p) {
    const Epilogue<T> epilogue{&apply_finish<T>, &finish};
    if (finish.row || finish.y_q.p) p.epilogue = &epilogue;
    product(team, pack, p);
  }

  // Computes P = scale X_q W^T + bias 1 (1^T alpha), or Phi_q w.
  void predict_low_rank() {
    const T scale = a.hyper.get(b, 0), bias = a.hyper.get(b, 1);
    if (s.plan == Plan::primal) {
      if (s.bordered) {
        copy<T>(team, 1, s.c, {coef + s.d * s.c, s.c, 1}, w.columns, s.c, std::sqrt(bias));
        finish.row = w.columns;
      }
      Product<T> p{s.q, s.c, s.d, x_q, {coef, s.c, 1}, out, s.c};
      p.alpha = std::sqrt(scale);
      return finish_product(p);
    }
    Product<T> weights{s.c, s.d, s.s, View<const T>{coef, 1, s.c}, x_s, w.weights, s.d};
    product(team, pack, weights);
    if (bias != T(0)) {
      sum_columns<T>(team, s.s, s.c, {coef, s.c, 1}, static_cast<double>(bias), w.columns);
      finish.row = w.columns;
    }
    Product<T> p{s.q, s.c, s.d, x_q, {w.weights, 1, s.d}, out, s.c};
    p.alpha = scale;
    finish_product(p);
  }

  void predict_dense() {
    T* const kept = kept_here();
    T* const arguments = kept && keeps_argument(s.kernel) ? kept + s.q * s.s : nullptr;
    for (int64_t q0 = 0; q0 < s.q; q0 += s.chunk) {
      const int64_t rows = std::min(s.chunk, s.q - q0);
      T* k = kept ? kept + q0 * s.s : w.chunk;
      if (of_norms(s.kernel)) squared_lengths(team, rows, s.d, x_q.from(q0, 0), w.norms_q);
      kernel_product<T>(team, pack, s.kernel, s.order, a.hyper, b, {rows, s.s, s.d, x_q.from(q0, 0), x_s.t(), k, s.s},
                        w.norms_q, w.norms_s, arguments ? arguments + q0 * s.s : nullptr, w.distances);
      Finish<T> part = finish;
      if (part.y_q.p) part.y_q = part.y_q.from(q0, 0);
      const Epilogue<T> epilogue{&apply_finish<T>, &part};
      Product<T> p{rows, s.c, s.s, {k, s.s, 1}, {coef, s.c, 1}, out + q0 * s.c, s.c};
      if (part.y_q.p) p.epilogue = &epilogue;
      product(team, pack, p);
    }
  }

  const KrrForwardArgs<T>& a;
  const KrrShape& s;
  Team team;
  const int64_t b;
  const KrrWork<T>& w;
  const Packing<T> pack;
  View<const T> x_s, x_q, y_s;
  Finish<T> finish;
  T *factor, *coef, *out;
};

}  // namespace

int64_t krr_workspace(const KrrShape& shape, bool backward) {
  const int64_t alone =
      krr_layout<float>(shape, backward, 1, nullptr).total * std::min<int64_t>(shape.batch, shape.threads);
  const int64_t by_lanes = shape.lanes ? krr_lanes_workspace(shape, backward) : 0;
  return std::max({alone, by_lanes, krr_layout<float>(shape, backward, shape.threads, nullptr).total});
}

namespace {

// Problem b alone.
template <class T>
KrrForwardArgs<T> only(KrrForwardArgs<T> a, int64_t b) {
  KrrShape& s = a.shape;
  for (Batch<const T>* input : {&a.x_s, &a.y_s, &a.x_q, &a.y_q})
    if (*input) input->p += b * input->bs;
  a.out += b * s.q * s.c;
  if (a.loss) a.loss += b;
  a.factor += b * s.n * s.n;
  a.coef += b * s.n * s.c;
  a.aux += 3 * b;
  a.jitter += b;
  a.status += b;
  if (a.hyper.tensor) a.hyper.tensor += b * a.hyper.bs;
  s.batch = s.threads = 1;
  s.lanes = false;
  return a;
}

}  // namespace

template <class T>
void krr_forward(const KrrForwardArgs<T>& a) {
  const blas::ThreadGuard guard;
  if (a.shape.lanes) {
    krr_forward_by_lanes(a);
    for (int64_t b = 0; a.on_failure == OnFailure::jitter && b < a.shape.batch; ++b)
      if (a.status[b] > 0) krr_forward(only(a, b));
    return;
  }
  const Workers workers(a.shape.batch, krr_work(a.shape), a.shape.threads, 15);
  const int64_t stride = krr_layout<T>(a.shape, false, workers.team_size, nullptr).total;
  workers.run(a.shape.batch, [&](const Team& team, int64_t b, int worker) {
    const KrrWork<T> w = krr_layout(a.shape, false, workers.team_size, a.work + worker * stride);
    Forward<T>(a, team, b, w, workers.team_size).run();
  });
}

template void krr_forward(const KrrForwardArgs<float>&);
template void krr_forward(const KrrForwardArgs<double>&);

}  // namespace ssdd::cpu

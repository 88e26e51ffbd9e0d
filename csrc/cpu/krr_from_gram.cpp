// KRR from given Gram matrices on the CPU (krr.h). K_qs is the only large operand: each pass reads it once, in place.
#include "../arena.h"
#include "../cholesky.h"
#include "../krr.h"
#include "blas.h"
#include "finish.h"
#include "team.h"
#include "workers.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kBlock = 32768;    // elements of a block of K_qs, which stays in the second-level cache
constexpr int64_t kFewTargets = 24;  // up to so many, rows of K_qs are added to the moment's transpose as they lie

template <class T>
struct Work {
  T* moment;      // [S, C]
  T* transposed;  // [C, S]: of the moment
  T* alpha;       // [C, S]: of alpha
  T *partial, *pack;
  int64_t total;
};

template <class T>
Work<T> layout(int64_t s, int64_t c, int threads, T* memory) {
  Arena<T> arena{memory};
  Work<T> w;
  w.moment = arena.take(s * c);
  w.transposed = arena.take(s * c);
  w.alpha = arena.take(s * c);
  w.partial = arena.take(1);
  w.pack = arena.take(packing_elements(std::max(s, c), threads));
  w.total = arena.used;
  return w;
}

int64_t workers_of(int64_t batch, int64_t s, int64_t c, int threads) {
  const int64_t alone = layout<float>(s, c, 1, nullptr).total * std::min<int64_t>(batch, threads);
  return std::max(alone, layout<float>(s, c, threads, nullptr).total);
}

double work_of(int64_t s, int64_t q, int64_t c) {
  return static_cast<double>(s) * static_cast<double>(q) * static_cast<double>(c);
}

int64_t rows_of_block(int64_t s, int team_size) {
  return std::max<int64_t>(16, kBlock / std::max<int64_t>(1, s) / 16 * 16) * team_size;
}

// Adds K^T R for rows of K [rows, S] and R [rows, C] to the moment, or begins it; `last` writes it to out [S, C].
template <class T>
void add_moment(const Team& team, const Packing<T>& pack, const Work<T>& w, int64_t rows, int64_t s, int64_t c,
                View<const T> k, View<const T> r, bool first, bool last, T* out) {
  const bool few = c <= kFewTargets && k.cs == 1;
  Product<T> p = few ? Product<T>{c, s, rows, r.t(), k, w.transposed, s} : Product<T>{s, c, rows, k.t(), r, out, c};
  p.beta = first ? T(0) : T(1);
  product(team, pack, p);
  if (few && last) copy<T>(team, s, c, {w.transposed, 1, s}, out, c);
}

// f(team, problem, work) for every problem.
template <class T, class F>
void for_problems(int64_t batch, int64_t s, int64_t q, int64_t c, int threads, T* memory, F f) {
  const Workers workers(batch, 2 * work_of(s, q, c), threads, 8);
  const int64_t stride = layout<T>(s, c, workers.team_size, nullptr).total;
  workers.run(batch, [&](const Team& team, int64_t b, int worker) {
    const Work<T> w = layout(s, c, workers.team_size, memory + worker * stride);
    f(team, b, w, packing(w.pack, std::max(s, c), workers.team_size));
  });
}

template <class T>
void predict(const FromGramArgs<T>& a, const Team& team, int64_t b, const Work<T>& w, const Packing<T>& pack) {
  const int64_t s = a.s, c = a.c;
  const View<const T> k_qs = a.k_qs[b];
  T* out = a.out + b * a.q * c;
  copy<T>(team, c, s, {a.alpha + b * s * c, 1, c}, w.alpha, s);
  const int64_t block = rows_of_block(s, team.size);
  for (int64_t q0 = 0; q0 < a.q; q0 += block) {
    const int64_t rows = std::min(block, a.q - q0);
    Finish<T> finish{nullptr, a.y_q ? a.y_q[b].from(q0, 0) : View<const T>{}};
    const Epilogue<T> epilogue{&apply_finish<T>, &finish};
    Product<T> p{rows, c, s, k_qs.from(q0, 0), {w.alpha, 1, s}, out + q0 * c, c};
    if (a.y_q) p.epilogue = &epilogue;
    product(team, pack, p);
    if (a.moment)
      add_moment<T>(team, pack, w, rows, s, c, k_qs.from(q0, 0), {out + q0 * c, c, 1}, q0 == 0, q0 + rows == a.q,
                    a.moment + b * s * c);
  }
  if (!a.loss) return;
  const double sum = squares(team, int64_t(1), a.q * c, out, w.partial);
  if (team.rank == 0) a.loss[b] = static_cast<T>(sum / (static_cast<double>(a.q) * static_cast<double>(c)));
}

}  // namespace

int64_t krr_from_gram_workspace(int64_t batch, int64_t s, int64_t c, int threads) {
  // The backward also holds abar of all problems.
  const int64_t abar = (batch * s * c + 15) / 16 * 16;
  return abar + std::max(cholesky_workspace(batch, s, c, threads), workers_of(batch, s, c, threads));
}

template <class T>
void krr_from_gram(const FromGramArgs<T>& a) {
  const blas::ThreadGuard guard;
  SolveArgs<T> solving{};
  solving.batch = a.batch;
  solving.s = a.s;
  solving.c = a.c;
  solving.a = a.k_ss;
  solving.y = a.y_s;
  solving.factor = a.factor;
  solving.x = a.alpha;
  solving.jitter = a.jitter;
  solving.aux = a.aux;
  solving.status = a.status;
  solving.hyper = a.hyper;
  solving.ridge = a.ridge;
  solving.on_failure = a.on_failure;
  solving.work = a.work;
  solving.threads = a.threads;
  solve(solving);
  // A failed problem's alpha is NaN, and so is everything that follows from it.
  for_problems(
      a.batch, a.s, a.q, a.c, a.threads, a.work,
      [&](const Team& team, int64_t b, const Work<T>& w, const Packing<T>& pack) { predict(a, team, b, w, pack); });
}

template <class T>
void krr_from_gram_backward(const FromGramBackwardArgs<T>& a) {
  const blas::ThreadGuard guard;
  const int64_t s = a.s, q = a.q, c = a.c;
  Arena<T> arena{a.work};
  T* abar = arena.take(a.batch * s * c);
  T* work = a.work + arena.used;
  for_problems(a.batch, s, q, c, a.threads, work,
               [&](const Team& team, int64_t b, const Work<T>& w, const Packing<T>& pack) {
                 const View<const T> k_qs = a.k_qs ? a.k_qs[b] : View<const T>{}, e = a.e[b];
                 T gamma = T(1);
                 if (a.g)
                   gamma = static_cast<T>(2.0 * static_cast<double>(a.g[b](0, 0)) /
                                          (static_cast<double>(q) * static_cast<double>(c)));
                 const T* moment = a.moment ? a.moment + b * s * c : w.moment;
                 if (!a.moment) add_moment(team, pack, w, q, s, c, k_qs, e, true, true, w.moment);
                 copy<T>(team, s, c, View<const T>{moment, c, 1}, abar + b * s * c, c, gamma);
                 if (!a.grad_k_qs) return;
                 Product<T> p{q, s, c, e, View<const T>{a.alpha + b * s * c, 1, c}, a.grad_k_qs + b * q * s, s};
                 p.alpha = gamma;
                 product(team, pack, p);
               });
  SolveBackwardArgs<T> solving{};
  solving.batch = a.batch;
  solving.s = s;
  solving.c = c;
  solving.grad = {abar, s * c, c, 1};
  solving.factor = a.factor;
  solving.x = a.alpha;
  solving.aux = a.aux;
  solving.grad_a = a.grad_k_ss;
  solving.grad_y = a.grad_y_s;
  solving.hyper = a.hyper;
  solving.ridge = a.ridge;
  solving.detach = a.detach;
  solving.work = work;
  solving.threads = a.threads;
  solve_backward(solving);
}

template void krr_from_gram(const FromGramArgs<float>&);
template void krr_from_gram(const FromGramArgs<double>&);
template void krr_from_gram_backward(const FromGramBackwardArgs<float>&);
template void krr_from_gram_backward(const FromGramBackwardArgs<double>&);

}  // namespace ssdd::cpu

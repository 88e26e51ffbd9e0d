// Workspace of one problem of krr, forward and backward. One function computes both its size and its layout.
#pragma once
#include "../krr.h"
#include "../arena.h"
#include "distances.h"
#include "product.h"

namespace ssdd::cpu {

template <class T>
struct KrrWork {
  T* partial;                         // sums by rows: max(S, Q, n)
  T* columns;                         // [3, max(C, S, D)] sums by columns
  T* diagonal;                        // [n]
  T* lambda_bar;                      // [2] high and low part, from one rank to the others
  T* chunk;                           // dense: K_qs of a chunk of queries [chunk, S]
  T* weights;                         // low rank: W [C, D]; backward W over M - V [2C, D]; primal [n, 2C]
  T *u, *triple, *k_bar, *chunk_bar;  // backward: [S, C], [S, 3C], [S, S], [chunk, S]
  T *shifted_s, *shifted_q;           // kernels of a distance, backward: points from a common origin [S, D], [chunk, D]
  T *norms_s, *norms_q;               // kernels of norms: squared lengths [S], [chunk]
  T *arguments, *arguments_s;         // if not kept: of the kernel, [chunk, S] and [S, S]
  T *norms_bar, *row_sums;            // backward: [threads, S] by columns, [3, rows]
  DistanceWork<T> distances;
  T* pack;
  int64_t total, widest;
};

template <class T>
KrrWork<T> krr_layout(const KrrShape& s, bool backward, int threads, T* memory) {
  Arena<T> arena{memory};
  KrrWork<T> w{};
  const bool dense = s.plan == Plan::dense, primal = s.plan == Plan::primal;
  w.widest = std::max({s.s, s.c, s.d, s.n});
  w.partial = arena.take(std::max({s.s, s.q, s.n}));
  w.columns = arena.take(3 * std::max({s.c, s.s, s.d, s.n}));
  w.diagonal = arena.take(s.n);
  w.lambda_bar = arena.take(2);
  // Allocated whether K_qs is kept or not: one pass may have it when the other does not.
  if (dense) w.chunk = arena.take(s.chunk * s.s);
  if (!backward) {
    if (s.plan == Plan::low_rank) w.weights = arena.take(s.c * s.d);
    // The backward forms K_qs again only if it was not kept; it has no memory for this, and takes differences.
    if (shifts(s.kernel, s.d)) w.distances = distance_work(arena, s.chunk, s.s, s.d);
  } else {
    w.u = arena.take(s.s * s.c);
    w.weights = arena.take(primal ? 2 * s.n * s.c : (dense ? 1 : 2) * s.c * s.d);
    w.triple = arena.take(s.s * (primal ? 2 : 3) * s.c);
    if (dense || s.plan == Plan::mixed) w.k_bar = arena.take(s.s * s.s);
    if (dense) w.chunk_bar = arena.take(s.chunk * s.s);
    if (of_distance(s.kernel)) {
      w.shifted_s = arena.take(s.s * s.d);
      w.shifted_q = arena.take(s.chunk * s.d);
    }
    if (s.kernel != KernelKind::linear) w.row_sums = arena.take(3 * std::max(s.s, s.chunk));
    if (of_norms(s.kernel)) w.norms_bar = arena.take((threads + 1) * s.s);
    if (keeps_argument(s.kernel)) {
      w.arguments = arena.take(s.chunk * s.s);
      w.arguments_s = arena.take(s.s * s.s);
    }
  }
  if (of_norms(s.kernel)) {
    w.norms_s = arena.take(s.s);
    w.norms_q = arena.take(s.chunk);
  }
  w.pack = arena.take(packing_elements(w.widest, threads));
  w.total = arena.used;
  return w;
}

// The same problems one per lane of a vector (krr_lanes.cpp), without a second attempt: what fails is NaN.
int64_t krr_lanes_workspace(const KrrShape& s, bool backward);
template <class T>
void krr_forward_by_lanes(const KrrForwardArgs<T>& args);
template <class T>
void krr_backward_by_lanes(const KrrBackwardArgs<T>& args);
int64_t krr_fused_by_lanes_workspace(const KrrShape& s);
template <class T>
void krr_fused_by_lanes(const KrrFusedArgs<T>& args);

// Multiply-adds of one problem, accurate enough to decide how to use the threads.
inline double krr_work(const KrrShape& s) {
  const double n = static_cast<double>(s.n), d = static_cast<double>(s.d), c = static_cast<double>(s.c);
  const double q = static_cast<double>(s.q), m = static_cast<double>(s.s);
  const double gram = s.plan == Plan::primal ? m * n * n / 2 : m * m * d / 2;
  return gram + n * n * n / 6 + n * n * c + (s.plan == Plan::dense ? q * m * (d + c) : (m + q) * d * c);
}

// Multiply-adds of the support points' part: Gram matrix, factor, solve.
inline double solve_work(const KrrShape& s) {
  const double n = static_cast<double>(s.n), inner = static_cast<double>(s.plan == Plan::primal ? s.s : s.d);
  return n * n * inner / 2 + n * n * n / 6 + n * n * static_cast<double>(s.c);
}

}  // namespace ssdd::cpu

// Workspace of krr for the whole batch, forward and backward. One function computes both its size and its layout.
#pragma once
#include <algorithm>

#include "../krr.h"
#include "../arena.h"
#include "angles.cuh"
#include "distances.cuh"
#include "factor.cuh"
#include "kernel_functions.cuh"
#include "vector.cuh"

namespace ssdd::cuda {

template <class T>
struct KrrWork {
  T *scalars, *factor;         // [B, kScalars]; of the factorisation
  T *partial, *parameter;      // parts of sums over several blocks; [2, B] gradients of the kernel's parameters
  T* columns;                  // 3 x [B, width]
  T* weights;                  // low rank W [B, C, D], backward W over M - V [B, 2C, D]; primal [B, n, 2C]
  T *chunk, *chunk_bar;        // dense: [B, chunk, S]
  T *u, *pack, *k_bar;         // backward: [B, S, C], [B, S, 3C], [B, S, S]
  T *row_sums, *row_parts;     // other kernels: [B, rows], [2, B, rows]
  T *shifted_s, *shifted_q;    // kernels of a squared distance: [B, S, D], [B, chunk, D]
  T* reach;                    // [B] of the support points (krr.h)
  int32_t *near, *far;         // [B] 0 or 1: the form of the gradient to the points
  T *arguments, *arguments_s;  // if not kept: of the kernel, [B, chunk, S] and [B, S, S]
  T *norms_s, *norms_q;        // kernels of an angle: squared lengths, [B, S] and [B, chunk]
  T* distances;                // forward: of distance_product, or nullptr
  float* scales;               // of products of halves, [B, m + n]; or nullptr
  T* split;
  int* counters;  // kCounters of products and one per problem, set to 0 with the scalars
  int64_t width, split_elements, total;
};

// The plan's chunk is for one problem; all problems of the batch have one chunk each at the same time.
KrrShape with_chunk_for_batch(KrrShape shape);

// The largest number of tiles in one problem's predictions for the first q queries, in chunks.
inline int64_t prediction_tiles(const KrrShape& s, int64_t q) {
  return s.plan == Plan::dense ? q / s.chunk * tiles_of(s.chunk, s.c) + tiles_of(q % s.chunk, s.c) : tiles_of(q, s.c);
}

template <class T>
KrrWork<T> krr_layout(const KrrShape& s, bool backward, T* memory) {
  Arena<T> arena{memory};
  KrrWork<T> w{};
  const bool dense = s.plan == Plan::dense, primal = s.plan == Plan::primal;
  const int64_t b = s.batch, rows = std::max(s.s, s.chunk);
  w.width = std::max({s.c, s.s, s.d, s.n});
  w.scalars = arena.take(b * kScalars);
  w.factor = arena.take(factor_room(b, s.n, s.c));
  w.parameter = arena.take(2 * b);
  w.partial = arena.take(std::max(
      {after_solve_room(b, std::max(s.s, s.n), s.c), b * prediction_tiles(s, s.q), b * (s.c / 32 + 1), b * s.parts}));
  w.columns = arena.take(3 * b * w.width);
  // Allocated whether K_qs is kept or not: one pass may have it when the other does not.
  if (dense) w.chunk = arena.take(b * s.chunk * s.s);
  if (!backward) {
    if (s.plan == Plan::low_rank) w.weights = arena.take(b * s.c * s.d);
    if (s.products && can_multiply(s.kernel, s.d))
      w.distances = arena.take(std::max(distance_room(b, s.s, s.s, s.d), distance_room(b, s.chunk, s.s, s.d)));
  } else {
    w.u = arena.take(b * s.s * s.c);
    w.weights = arena.take(b * (primal ? 2 * s.n * s.c : (dense ? 1 : 2) * s.c * s.d));
    w.pack = arena.take(b * s.s * 3 * s.c);
    if (dense || s.plan == Plan::mixed) w.k_bar = arena.take(b * s.s * s.s);
    if (dense) w.chunk_bar = arena.take(b * s.chunk * s.s);
    if (s.kernel != KernelKind::linear) {
      w.row_sums = arena.take(b * rows);
      w.row_parts = arena.take(2 * b * rows);
    }
    if (of_distance(s.kernel) && !of_one_norm(s.kernel)) {
      w.shifted_s = arena.take(b * s.s * s.d);
      w.shifted_q = arena.take(b * s.chunk * s.d);
      w.reach = arena.take(b);
      w.near = reinterpret_cast<int32_t*>(arena.take(b));
      w.far = reinterpret_cast<int32_t*>(arena.take(b));
    }
    if (keeps_argument(s.kernel)) {
      w.arguments = arena.take(b * s.chunk * s.s);
      w.arguments_s = arena.take(b * s.s * s.s);
    }
  }
  if (of_norms(s.kernel)) {
    w.norms_s = arena.take(b * s.s);
    w.norms_q = arena.take(b * s.chunk);
  }
  if (s.halves) w.scales = reinterpret_cast<float*>(arena.take(b * 2 * std::max({w.width, s.q, 2 * s.c})));
  // The products that may have a long k and a small result.
  w.split_elements =
      std::max({split_room(b, s.n, s.n, primal ? s.s : s.d), split_room(b, s.c, s.d, s.s), split_room(b, s.c, s.d, s.q),
                split_room(b, s.q, s.c, s.d), split_room(b, s.s, s.c, s.d), split_room(b, s.d, s.c, s.s),
                split_room(b, s.d, s.c, s.q), dense ? split_room(b, s.chunk, s.c, s.s) : 0,
                dense ? split_room(b, s.s, s.s, s.d) + split_room(b, s.chunk, s.s, s.d) : 0,
                dense ? split_room(b, s.s, s.s, 2 * s.c) + split_room(b, s.chunk, s.s, s.c) : 0,
                split_room(b, s.s, s.c, s.q) + split_room(b, s.c, s.d, s.q),
                dense ? split_room(b, s.s, s.c, s.chunk) : 0, dense ? split_room(b, s.s, s.d, s.chunk) : 0});
  w.split = arena.take(w.split_elements);
  w.counters = reinterpret_cast<int*>(arena.take(kCounters + b));
  w.total = arena.used;
  return w;
}

// Base of the forward and the backward: views, and products of the whole batch.
template <class T>
struct KrrPass {
  const KrrShape& s;
  const KrrWork<T>& w;
  simt::Stream stream;

  // One number per problem.
  int* counters() const { return w.counters + kCounters; }
  const T* scalar(Scalar which) const { return w.scalars + which; }
  // The scalars of this pass, with the counters of all its launches.
  ScalarArgs<T> scalar_args(const Hyper<T>& hyper) const {
    ScalarArgs<T> args{};
    args.batch = s.batch;
    args.hyper = hyper;
    args.kernel = s.kernel;
    args.parameters = parameter_count(s.kernel);
    args.out = w.scalars;
    args.counters = w.counters;
    args.counter_count = kCounters + s.batch;
    return args;
  }
  // Elements between the kept rows of two problems.
  int64_t kept_bs() const { return kept_rows(s.kernel, s.s, s.q) * s.s; }
  // The arguments of K_ss (`square`) or of a chunk of K_qs, for the kernels of an angle.
  Angles angles(int64_t rows, bool square, const double* arguments, int64_t arguments_bs) const {
    Angles a{};
    a.batch = s.batch;
    a.rows = rows;
    a.columns = s.s;
    a.features = s.d;
    a.kind = s.kernel;
    a.order = s.order;
    a.square = square;
    a.arguments = arguments;
    a.arguments_bs = arguments_bs;
    if constexpr (sizeof(T) == 8) {
      a.scalars = w.scalars;
      a.x = square ? w.norms_s : w.norms_q;
      a.z = w.norms_s;
    }
    a.x_bs = square ? s.s : s.chunk;
    a.z_bs = s.s;
    return a;
  }
  // The squared lengths of the support points, or of a chunk of queries, for the kernels of an angle.
  void lengths(const Source<T>& x, int64_t rows, bool support) const {
    if constexpr (sizeof(T) == 8)
      if (of_norms(s.kernel))
        squared_lengths(s.batch, rows, s.d, x, support ? w.norms_s : w.norms_q, support ? s.s : s.chunk, stream);
  }
  // k [batch, rows, S] = f(arguments), if the product gave the arguments, of K_ss (`square`) or of a chunk of K_qs.
  void map(int64_t rows, bool square, const T* arguments, int64_t arguments_bs, T* k, int64_t k_bs) const {
    if (!keeps_argument(s.kernel)) return;
    if constexpr (sizeof(T) == 8)
      if (of_norms(s.kernel)) return map_angles(angles(rows, square, arguments, arguments_bs), k, k_bs, stream);
    map_arguments<T>({s.batch, rows * s.s, s.kernel, s.order, w.scalars, arguments, arguments_bs, k, k_bs}, stream);
  }
  // A dense [batch, rows, columns].
  static Batch<const T> dense(const T* p, int64_t rows, int64_t columns) { return {p, rows * columns, columns, 1}; }
  static Source<T> t(const Source<T>& x) { return x.t(); }
  static Source<T> from(const Source<T>& x, int64_t row) { return x.from(row, 0); }

  // c [m, n] = a b; bs: elements between the results of two problems.
  Product<T> make(int64_t m, int64_t n, int64_t k, const Source<T>& a, const Source<T>& b, T* c, int64_t bs,
                  int64_t ld = 0) const {
    Product<T> p{};
    p.batch = s.batch;
    p.m = m;
    p.n = n;
    p.k = k;
    p.a = a;
    p.b = b;
    p.c = c;
    p.c_bs = bs;
    p.ld = ld ? ld : n;
    if (s.halves) p.scales = w.scales;
    p.split = w.split;
    p.split_elements = w.split_elements;
    p.counters = w.counters;
    return p;
  }
  void run(const Product<T>& p) const { product(p, stream); }
  void run(const Product<T>& first, const Product<T>& second) const { product_pair(first, second, stream); }
  void multiply(Product<T> p, double alpha = 1, const T* alpha_of = nullptr, bool accumulate = false) const {
    p.alpha = alpha;
    p.alpha_of = alpha_of;
    p.accumulate = accumulate;
    product(p, stream);
  }
  void sums(int64_t rows, int64_t columns, const Source<T>& x, T* out, int64_t out_bs,
            const T* factor_of = nullptr) const {
    sum_columns<T>({s.batch, rows, columns, x, out, out_bs, 1, factor_of}, stream);
  }
  void place(int64_t rows, int64_t columns, const Batch<const T>& x, T* out, int64_t out_bs, int64_t ld,
             double factor = 1, const T* factor_of = nullptr) const {
    copy<T>({s.batch, rows, columns, x, out, out_bs, ld, factor, factor_of}, stream);
  }
};

}  // namespace ssdd::cuda

// From the gradient to a Gram matrix k(x_i, z_j), by rows of x, to those of the points and of the hyper-parameters. krr.h
// has the formulas. The points z are one set for all rows; rows come a chunk at a time.
#pragma once
#include <cmath>

#include "../krr.h"
#include "kernel.h"
#include "team.h"

namespace ssdd::cpu {

// The epilogue of a tile of a gradient: c(i, j) += (row ? row[i] : 1) * factor * x(i, j).
template <class T>
struct AddScaled {
  const T* row;
  T factor;
  View<const T> x;
};

template <class T>
void apply_add_scaled(const void* context, int64_t i, int64_t j, int m, int n, T* c, int64_t ld) {
  const auto& f = *static_cast<const AddScaled<T>*>(context);
  for (int y = 0; y < m; ++y) {
    const T factor = f.row ? f.factor * f.row[i + y] : f.factor;
    for (int x = 0; x < n; ++x) c[y * ld + x] += factor * f.x(i + y, j + x);
  }
}

template <class T>
struct KernelBackwardWork {
  T* row_sums;  // [3, rows]: of the squared lengths of x and of two hyper-parameters
  int64_t rows;
  T* norms_bar;       // kernels of norms: [threads + 1, columns] of the squared lengths of z
  T* diagonal;        // [columns]
  T *sums, *partial;  // [rows or columns]
};

template <class T>
class KernelBackward {
 public:
  // The points as passed in, the points from the first point z, and the reach of krr.h.
  struct Points {
    View<const T> original, shifted;
    T reach;
  };

  // z [columns, features], with the squared lengths z_norms for kernels of norms. `parameters`: also the gradients of
  // the hyper-parameters.
  KernelBackward(const Team& team, const Packing<T>& pack, KernelKind kind, int order, const Hyper<T>& hyper, int64_t b,
                 int64_t columns, int64_t features, View<const T> z, const T* z_norms, bool parameters, int ranks,
                 const KernelBackwardWork<T>& w)
      : function(kind, order, hyper, b, features), team(team), pack(pack), kind(kind), columns(columns),
        features(features), z(z), z_norms(z_norms), parameters(parameters), ranks(ranks), w(w) {
    limit = of_distance(kind) ? kReach * static_cast<double>(hyper.get(b, 0)) : 0;
  }

  const T* row_norms() const { return w.row_sums; }
  const T* column_norms() const { return w.norms_bar + ranks * columns; }
  const T* diagonal_norms() const { return w.diagonal; }
  double parameter(int i) const { return parameter_bar[i]; }

  Points points(View<const T> x, int64_t rows, T* shifted) const {
    if (!of_distance(kind) || of_one_norm(kind)) return {x, x, T(0)};
    int64_t begin, end;
    team.share(rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < features; ++j) shifted[i * features + j] = x(i, j) - z(0, j);
    team.barrier();
    return {x, {shifted, features, 1}, largest(team, rows, features, shifted, w.partial)};
  }

  // Turns rows of Kbar into G = Kbar dk/da: row i has the elements [begin(i), end(i)) of `argument` and `bar`, row stride
  // `columns`, and the squared length x_norms[i]. Adds to the gradients of the hyper-parameters, and writes those of the
  // squared lengths: row_norms and column_norms.
  template <class Begin, class End>
  void slopes(int64_t rows, const T* argument, T* bar, const T* x_norms, Begin begin_of, End end_of) {
    T *x_bar = w.row_sums, *first = x_bar + w.rows, *second = first + w.rows;
    T* z_bar = of_norms(kind) ? w.norms_bar + team.rank * columns : nullptr;
    if (z_bar) std::fill(z_bar, z_bar + columns, T(0));
    const KernelRows<T>& kernel = kernel_rows<T>();
    int64_t begin, end;
    team.share(rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = begin_of(i), at = i * columns + from;
      double sums[3] = {};
      kernel.slopes(z_bar ? function.at(x_norms[i], z_norms + from) : function.row, end_of(i) - from, argument + at,
                    bar + at, z_bar ? z_bar + from : nullptr, parameters, sums);
      x_bar[i] = static_cast<T>(sums[0]);
      first[i] = static_cast<T>(sums[1]);
      second[i] = static_cast<T>(sums[2]);
    }
    team.barrier();
    add_parameters(rows, first, second);
    // The sums by columns, in the order of the ranks, behind them.
    T* all = w.norms_bar + ranks * columns;
    team.share(columns, 16, &begin, &end);
    for (int64_t j = begin; z_bar && j < end; ++j) {
      T sum = T(0);
      for (int rank = 0; rank < team.size; ++rank) sum += w.norms_bar[rank * columns + j];
      all[j] = sum;
    }
    team.barrier();
  }

  // The symmetric case, x = z: `bar` is 2 Kbar on and below the diagonal on entry, and G with both triangles on return.
  // through_trace is added to the diagonal of Kbar.
  void symmetric(const T* arguments, T* bar, double through_trace) {
    diagonal(arguments, bar, through_trace);
    slopes(columns, arguments, bar, z_norms, [](int64_t) { return 0; }, [](int64_t i) { return i; });
    if (of_norms(kind)) {
      int64_t begin, end;
      team.share(columns, 1, &begin, &end);
      for (int64_t i = begin; i < end; ++i) w.diagonal[i] += w.row_sums[i] + column_norms()[i];
    }
    team.barrier();
    mirror(team, columns, bar);
  }

  // The gradient to the points x from g = Kbar dk/da, and from the gradients `norms` of their squared lengths.
  void add_gradient(int64_t rows, int64_t inner, View<const T> g, const Points& others, const Points& x, const T* norms,
                    T* c, T beta) {
    if (of_distance(kind)) return add_differences(rows, inner, g, others, x, c, beta);
    Product<T> p{rows, features, inner, g, others.original, c, features};
    const AddScaled<T> add{norms, T(2), x.original};
    const Epilogue<T> epilogue{&apply_add_scaled<T>, &add};
    p.beta = beta;
    if (norms) p.epilogue = &epilogue;
    product(team, pack, p);
  }

 private:
  void add_parameters(int64_t rows, const T* first, const T* second) {
    for (int64_t i = 0; parameters && i < rows; ++i) {
      parameter_bar[0] += static_cast<double>(first[i]);
      parameter_bar[1] += static_cast<double>(second[i]);
    }
  }

  // The diagonal: half of 2 Kbar_ii, and the trace's part, times d k(x, x) / d |x|^2 into w.diagonal, for kernels of x.z.
  // For the others k(x, x) is constant.
  void diagonal(const T* arguments, T* bars, double through_trace) {
    int64_t begin, end;
    team.share(columns, 1, &begin, &end);
    T *first = w.row_sums, *second = first + columns;
    for (int64_t i = begin; i < end; ++i) {
      T& bar = bars[i * columns + i];
      T own = bar / 2 + static_cast<T>(through_trace), z_bar = T(0);
      double sums[3] = {};
      if (!of_distance(kind)) {
        const T* square = of_norms(kind) ? z_norms + i : arguments + i * columns + i;
        KernelRow<T> row = function.at(*square, square);
        row.same = true;
        kernel_rows<T>().slopes(row, 1, square, &own, &z_bar, parameters, sums);
      } else {
        own = T(0);
      }
      w.diagonal[i] = own + z_bar + static_cast<T>(sums[0]);
      first[i] = static_cast<T>(sums[1]);
      second[i] = static_cast<T>(sums[2]);
      bar = T(0);
    }
    team.barrier();
    add_parameters(columns, first, second);
    team.barrier();
  }

  // True if the points are too far apart for the product form (krr.h).
  bool far_apart(T reach) const {
    return kind == KernelKind::matern_1 ||
           static_cast<double>(reach) * std::sqrt(static_cast<double>(features)) > limit;
  }

  // c [rows, D] = beta c + 2 sum_j g_ij (x_i - z_j) for g [rows, inner], or + sum_j g_ij sign(x_i - z_j).
  void add_differences(int64_t rows, int64_t inner, View<const T> g, const Points& others, const Points& x, T* c,
                       T beta) {
    Product<T> p{rows, features, inner, g, others.original, c, features};
    p.alpha = T(-2);
    p.beta = beta;
    if (of_one_norm(kind)) {
      p.alpha = T(-1);
      p.inner = Inner::sign;
      p.x = x.original;
      return product(team, pack, p);
    }
    if (far_apart(std::max(others.reach, x.reach))) {
      p.inner = Inner::difference;
      p.x = x.original;
      return product(team, pack, p);
    }
    sum_columns<T>(team, inner, rows, g.t(), 1.0, w.sums);
    const AddScaled<T> add{w.sums, T(2), x.shifted};
    const Epilogue<T> epilogue{&apply_add_scaled<T>, &add};
    p.b = others.shifted;
    p.epilogue = &epilogue;
    product(team, pack, p);
  }

  const KernelFunction<T> function;
  const Team& team;
  const Packing<T>& pack;
  const KernelKind kind;
  const int64_t columns, features;
  const View<const T> z;
  const T* z_norms;
  const bool parameters;
  const int ranks;
  const KernelBackwardWork<T> w;
  double limit;
  double parameter_bar[2] = {0, 0};
};

}  // namespace ssdd::cpu

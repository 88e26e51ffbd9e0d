// Squared distances of two sets of points: by a product where that keeps their digits, by differences elsewhere.
//
//   product      r = (|x|^2 - x.z) + (|z|^2 - x.z), of points about 0, or about the mean of some of the points z
//   differences  r = sum_d (x_d - z_d)^2, one more operation per term than a product
//
// With unit roundoff u, the error of r by a product is at most gamma (|x|^2 + |z|^2), gamma = (160 + D / 128) u: 135 + D /
// 256 from sums of runs of 128 terms (micro_tile.h), 17 + D / 256 from the squared lengths, the rest from the shift to the
// origin and the last three operations. Every r below (|x|^2 + |z|^2) / kCancelled, which this would leave few digits, and
// every NaN is computed again by differences of the points as passed in. The error of every r is therefore at most
// kCancelled gamma r, wherever the points are and however close two of them are, and 0 between equal points. For the rbf
// kernel that is an error of K of at most kCancelled gamma / e, for any lengthscale. Errors that do not all have one
// sign are far smaller: tests/ext/test_distances.py holds 8 u for every kernel (float, D up to 8192).
//
// What is computed again costs twice a difference in a tile, so that clusters far apart would be slow: a sample of pairs
// decides between 0, the mean and differences, before the product. The choice depends on the points and the sizes alone.
#pragma once
#include "../arena.h"
#include "kernel_rows.h"
#include "product.h"

namespace ssdd::cpu {

// Below these sizes the squared lengths and the shift take longer than a product saves.
constexpr int64_t kLeastFeatures = 128, kLeastPoints = 64;
constexpr int64_t kShiftedRows = 384;        // rows of x that are shifted and multiplied at a time
constexpr int64_t kOriginPoints = 32;        // points of z whose mean is the origin
constexpr int kSample = 64, kMostClose = 4;  // pairs that are tried, and how many of them may be close

// Memory for shifted points. z == nullptr: there is none, and differences are used.
template <class T>
struct DistanceWork {
  T *origin = nullptr, *x = nullptr, *z = nullptr;  // [D], [kShiftedRows, D] at most, [columns, D]
  T *x_squares = nullptr, *z_squares = nullptr;
};

inline bool shifts(KernelKind kind, int64_t features) {
  return of_distance(kind) && !of_one_norm(kind) && features >= kLeastFeatures;
}

// rows: of x; 0 if x is z.
template <class T>
DistanceWork<T> distance_work(Arena<T>& arena, int64_t rows, int64_t columns, int64_t features) {
  const int64_t block = std::min(rows, kShiftedRows);
  DistanceWork<T> w;
  w.origin = arena.take(features);
  w.x = arena.take(block * features);
  w.z = arena.take(columns * features);
  w.x_squares = arena.take(rows);
  w.z_squares = arena.take(columns);
  return w;
}

// The squared distances of the rows of p.a and the columns of p.b. Every rank has one; all call its functions together.
template <class T>
class Distances {
 public:
  Distances(const Team& team, const Product<T>& p, const DistanceWork<T>& work)
      : team(team), rows(kernel_rows<T>()), work(work), x(p.a), z(p.b.t()), count_x(p.m), count_z(p.n), features(p.k),
        same(p.lower) {}

  // Computes the squared lengths of the points z from the origin, after shifting them if that is needed. Returns false if
  // differences are to be used.
  bool shift_columns() {
    if (!work.z || features < kLeastFeatures || std::min(count_x, count_z) < kLeastPoints) return false;
    int64_t begin, end;
    team.share(features, 16, &begin, &end);
    std::fill(work.origin + begin, work.origin + end, T(0));
    team.barrier();
    shifted = !few_are_close();
    if (shifted) {
      team.barrier();  // the others have read the origin 0
      const int64_t count = std::min(kOriginPoints, count_z);
      for (int64_t d = begin; d < end; ++d) {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(z(i * count_z / count, d));
        work.origin[d] = static_cast<T>(sum / static_cast<double>(count));
      }
      team.barrier();
      if (!few_are_close()) return false;
    }
    shift(z, 0, count_z, work.z, work.z_squares);
    return true;
  }

  View<const T> columns() const { return shifted ? View<const T>{work.z, features, 1} : z; }
  // The number of rows of x at a time: memory is for so many shifted ones. x with itself is one triangle.
  int64_t rows_at_once() const { return same || !shifted ? count_x : kShiftedRows; }

  // Does the same for the rows of x from i0 on, and returns them; finish() is then about them.
  View<const T> shift_rows(int64_t i0, int64_t count) {
    first = i0;
    if (same) return columns();
    shift(x, i0, count, work.x, work.x_squares);
    return shifted ? View<const T>{work.x, features, 1} : x.from(i0, 0);
  }

  // From x.z of row i (from the last shift_rows) and the columns from j on to the squared distances, in place.
  void finish(int64_t i, int64_t j, int n, T* c) const {
    const T square = (same ? work.z_squares : work.x_squares)[i];
    if (rows.squares(n, square, work.z_squares + j, c) == 0) return;
    for (int e = 0; e < n; ++e)
      if (is_close(c[e], square, work.z_squares[j + e])) c[e] = difference(x.from(first + i, 0), z.from(j + e, 0));
  }

 private:
  static bool is_close(T r, T x_square, T z_square) { return !(r * T(kCancelled) >= z_square + x_square); }

  T difference(View<const T> a, View<const T> b) const {
    if (a.cs == 1 && b.cs == 1) return rows.distance(features, a.p, b.p);
    double sum = 0;
    for (int64_t d = 0; d < features; ++d) {
      const double apart = static_cast<double>(a(0, d) - b(0, d));
      sum += apart * apart;
    }
    return static_cast<T>(sum);
  }

  void shift(View<const T> points, int64_t i0, int64_t count, T* out, T* squares) {
    int64_t begin, end;
    team.share(count, 1, &begin, &end);
    for (int64_t i = begin; i < end; ++i) {
      if (!shifted) {
        squares[i] = difference(points.from(i0 + i, 0), {work.origin, features, 1});
        continue;
      }
      T* const to = out + i * features;
      const T* from = &points(i0 + i, 0);
      if (points.cs != 1) {
        for (int64_t d = 0; d < features; ++d) to[d] = points(i0 + i, d);
        from = to;
      }
      squares[i] = rows.shift(features, from, work.origin, to);
    }
    team.barrier();
  }

  // Each rank tries all pairs of the sample, and so decides as the others do.
  bool few_are_close() const {
    const View<const T> origin{work.origin, features, 1};
    int close = 0;
    for (uint32_t t = 1; t <= kSample; ++t) {
      const int64_t i = place(t * 2654435761u, count_x), j = place(t * 2246822519u + 374761393u, count_z);
      if (same && i == j) continue;
      const View<const T> a = x.from(i, 0), b = z.from(j, 0);
      close += is_close(difference(a, b), difference(a, origin), difference(b, origin));
    }
    return close <= kMostClose;
  }
  static int64_t place(uint32_t hash, int64_t count) {
    return static_cast<int64_t>(static_cast<double>(hash) * 0x1p-32 * static_cast<double>(count));
  }

  const Team& team;
  const KernelRows<T>& rows;
  const DistanceWork<T>& work;
  const View<const T> x, z;
  const int64_t count_x, count_z, features;
  const bool same;
  bool shifted = false;
  int64_t first = 0;
};

}  // namespace ssdd::cpu

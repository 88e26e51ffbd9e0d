// Small loops for a team: sums, fills, mirrors. All end with a barrier unless they say otherwise.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "product.h"

namespace ssdd::cpu {

// Returns the sum over i < rows of f(i). One rank computes each term, and all are summed in order: the same bits for
// any team. `partial` holds `rows` elements.
template <class T, class F>
double sum_rows(const Team& team, int64_t rows, T* partial, F f) {
  int64_t begin, end;
  team.share(rows, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) partial[i] = static_cast<T>(f(i));
  team.barrier();
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(partial[i]);
  team.barrier();
  return sum;
}

// <x, y> of two dense arrays [rows, columns].
template <class T>
double dot(const Team& team, int64_t rows, int64_t columns, const T* x, const T* y, T* partial) {
  return sum_rows(team, rows, partial, [=](int64_t i) {
    const T *a = x + i * columns, *b = y + i * columns;
    const auto term = [=](int64_t j) { return static_cast<double>(a[j]) * static_cast<double>(b[j]); };
    double even = 0, odd = 0;  // two sums, to hide the latency of the additions
    int64_t j = 0;
    for (; j + 2 <= columns; j += 2) {
      even += term(j);
      odd += term(j + 1);
    }
    return even + odd + (j < columns ? term(j) : 0);
  });
}

// <x, x> of a dense array [rows, columns]. All terms have one sign, so short sums in T lose no digits that a T can
// hold.
template <class T>
double squares(const Team& team, int64_t rows, int64_t columns, const T* x, T* partial) {
  constexpr int64_t kRun = 512;
  const Micro<T>& micro = cpu::micro<T>();
  return sum_rows(team, rows, partial, [=, &micro](int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < columns; j += kRun) {
      T run;
      const T* part = x + i * columns + j;
      micro.dots(1, 1, static_cast<int>(std::min(kRun, columns - j)), part, 0, part, 0, &run, 1, T(1), T(0));
      sum += static_cast<double>(run);
    }
    return sum;
  });
}

// The largest absolute value of dense rows x [rows, columns], 0 if there are none; NaN does not count.
template <class T>
T largest(const Team& team, int64_t rows, int64_t columns, const T* x, T* partial) {
  constexpr int64_t kLanes = 16;  // so many maxima at a time, to hide the latency
  int64_t begin, end;
  team.share(rows, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x + i * columns;
    T most[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes)
      for (int64_t e = 0; e < kLanes; ++e) {
        const T size = std::fabs(row[j + e]);
        most[e] = size > most[e] ? size : most[e];
      }
    for (; j < columns; ++j) most[0] = std::max(most[0], std::fabs(row[j]));
    partial[i] = *std::max_element(most, most + kLanes);
  }
  team.barrier();
  T most = T(0);
  for (int64_t i = 0; i < rows; ++i) most = std::max(most, partial[i]);
  team.barrier();
  return most;
}

// Computes out[j] = factor * sum_i x(i, j), with the columns shared over the team.
template <class T>
void sum_columns(const Team& team, int64_t rows, int64_t columns, View<const T> x, double factor, T* out) {
  int64_t begin, end;
  team.share(columns, 8, &begin, &end);
  constexpr int64_t kStrip = 64;
  for (int64_t j0 = begin; j0 < end; j0 += kStrip) {
    const int64_t n = std::min(kStrip, end - j0);
    double sum[kStrip] = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n; ++j) sum[j] += static_cast<double>(x(i, j0 + j));
    for (int64_t j = 0; j < n; ++j) out[j0 + j] = static_cast<T>(factor * sum[j]);
  }
  team.barrier();
}

template <class T>
void fill(const Team& team, int64_t count, T value, T* out) {
  int64_t begin, end;
  team.share(count, 16, &begin, &end);
  for (int64_t i = begin; i < end; ++i) out[i] = value;
  team.barrier();
}

template <class T>
void fill_nan(const Team& team, int64_t count, T* out) {
  if (out) fill(team, count, std::numeric_limits<T>::quiet_NaN(), out);
}

// Copies out[i, j] = x(i, j); out is dense with row stride ld.
template <class T>
void copy(const Team& team, int64_t rows, int64_t columns, View<const T> x, T* out, int64_t ld, T factor = T(1)) {
  int64_t begin, end;
  team.share(rows, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * ld + j] = factor * x(i, j);
  team.barrier();
}

// Mirrors a[j, i] = a[i, j] for i > j (lower to upper), or the reverse, in blocks that fit L1.
template <class T>
void mirror(const Team& team, int64_t n, T* a, bool upper_to_lower = false) {
  // Copy through a small tile, so that whole cache lines are read and written. At n = 1024 all elements of a column are
  // in one set of L1, and copying single elements would load each line again and again.
  constexpr int64_t kBlock = 32;
  T tile[kBlock][kBlock + 1];
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  for (int64_t bi = team.rank; bi < blocks; bi += team.size)
    for (int64_t bj = 0; bj <= bi; ++bj) {
      const int64_t row = (upper_to_lower ? bj : bi) * kBlock, column = (upper_to_lower ? bi : bj) * kBlock;
      const int64_t rows = std::min(kBlock, n - row), columns = std::min(kBlock, n - column);
      const bool diagonal = bi == bj;  // of a diagonal block only one triangle may be read, and only the other written
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t from = diagonal && upper_to_lower ? i + 1 : 0, to = diagonal && !upper_to_lower ? i : columns;
        for (int64_t j = from; j < to; ++j) tile[j][i] = a[(row + i) * n + column + j];
      }
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t from = diagonal && !upper_to_lower ? j + 1 : 0, to = diagonal && upper_to_lower ? j : rows;
        for (int64_t i = from; i < to; ++i) a[(column + j) * n + row + i] = tile[j][i];
      }
    }
  team.barrier();
}

template <class T>
void zero_above_diagonal(const Team& team, int64_t n, T* a) {
  int64_t begin, end;
  team.share(n, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = i + 1; j < n; ++j) a[i * n + j] = T(0);
  team.barrier();
}

}  // namespace ssdd::cpu

// Few columns: dot products along the contiguous k of both operands. Rows are shared over the team. A short operand whose
// k is not contiguous is transposed first, one block at a time.
// Few rows: the rows of B are streamed through an output strip that stays in L1. Columns are shared over the team.
// Both read the long operand once, in place. Packing would write and read it once more, for as few multiply-adds per
// element as the short side has.
// Few terms: the output is the long side. It is written row by row, from a strip of B that stays in L1.
#include "thin.h"

namespace ssdd::cpu {
namespace {

constexpr int64_t kFewColumns = 20;  // from here on the padding of the packed tile costs less
constexpr int64_t kFewRows = 24;
constexpr int64_t kFewTransposed = 12, kLeastRows = 32;  // up to so many columns, from so many rows: transpose B
constexpr int64_t kOperand = 5120;                       // elements of the short operand's block: 20 KiB (float) of L1
constexpr int64_t kStripElements = 5120;
constexpr int64_t kStreamDepth = 510;  // k of a strip's running sums; 6 terms are added at a time
constexpr int64_t kLeastDepth = 16;
constexpr int64_t kLeastStream = 6;
constexpr int64_t kFewTerms = 24, kLeastOutput = 24;  // up to so many terms, from so many rows and columns

template <class T>
bool few_columns(const Product<T>& p) {
  if (p.a.cs != 1 || p.k < kLeastDepth) return false;
  return p.b.rs == 1 ? p.n <= kFewColumns : p.n <= kFewTransposed && p.m >= kLeastRows && !p.lower;
}

template <class T>
bool few_rows(const Product<T>& p) {
  return p.m <= kFewRows && !p.lower && p.b.cs == 1 && p.k >= kLeastStream && p.n >= kLeastDepth;
}

template <class T>
bool few_terms(const Product<T>& p) {
  return p.k <= kFewTerms && p.a.cs == 1 && p.m >= kLeastOutput && p.n >= kLeastOutput && !p.lower && p.beta == T(0);
}

template <class T>
void finish(const Product<T>& p, int64_t i, int64_t j, int64_t m, int64_t n, T* c) {
  if (p.epilogue) p.epilogue->apply(p.epilogue->context, i, j, static_cast<int>(m), static_cast<int>(n), c, p.ldc);
}

template <class T>
void by_dots(const Team& team, T* own, const Product<T>& p) {
  const Micro<T>& micro = cpu::micro<T>();
  constexpr int64_t kStep = 4;
  const int64_t depth = std::max<int64_t>(kLeastDepth, kOperand / p.n / kLeastDepth * kLeastDepth);
  int64_t begin, end;
  team.share(p.m, kStep, &begin, &end);
  for (int64_t k0 = 0; k0 < p.k; k0 += depth) {
    const int kc = static_cast<int>(std::min(depth, p.k - k0));
    const bool last = k0 + kc == p.k;
    const T beta = k0 == 0 ? p.beta : T(1);
    const T* b = p.b.p + k0;
    int64_t bs = p.b.cs;
    if (p.b.rs != 1) {
      for (int k = 0; k < kc; ++k)
        for (int64_t j = 0; j < p.n; ++j) own[j * kc + k] = p.b(k0 + k, j);
      b = own;
      bs = kc;
    }
    for (int64_t i = begin; i < end; i += kStep) {
      const int rows = static_cast<int>(std::min(kStep, end - i));
      const T* a = p.a.p + i * p.a.rs + k0;
      T* c = p.c + i * p.ldc;
      if (!p.lower) {
        micro.dots(rows, static_cast<int>(p.n), kc, a, p.a.rs, b, bs, c, p.ldc, p.alpha, beta);
        if (last) finish(p, i, 0, rows, p.n, c);
        continue;
      }
      // A triangle: compute whole rows in a small buffer, up to the last row's diagonal.
      T buffer[kStep * kFewColumns];
      const int64_t widest = std::min(p.n, i + rows);
      micro.dots(rows, static_cast<int>(widest), kc, a, p.a.rs, b, bs, buffer, widest, p.alpha, T(0));
      for (int y = 0; y < rows; ++y) {
        const int64_t columns = std::min(p.n, i + y + 1);
        for (int64_t j = 0; j < columns; ++j)
          c[y * p.ldc + j] = buffer[y * widest + j] + (beta == T(0) ? T(0) : beta * c[y * p.ldc + j]);
        if (last) finish(p, i + y, 0, 1, columns, c + y * p.ldc);
      }
    }
  }
}

template <class T>
void by_streams(const Team& team, T* own, const Product<T>& p) {
  const Micro<T>& micro = cpu::micro<T>();
  const int m = static_cast<int>(p.m);
  const int64_t widest = kStripElements / p.m / 16 * 16;
  T* strip = own;
  T* scalars = own + kStripElements + 16 * kFewRows;  // alpha A of a block, k-major
  int64_t begin, end;
  team.share(p.n, 16, &begin, &end);
  for (int64_t j = begin; j < end; j += widest) {
    const int64_t n = std::min(widest, end - j);
    const int64_t ld = n + 16;  // rows a power of two apart would share few sets of L1
    for (int64_t k0 = 0; k0 < p.k; k0 += kStreamDepth) {
      const int kc = static_cast<int>(std::min(kStreamDepth, p.k - k0));
      for (int k = 0; k < kc; ++k)
        for (int i = 0; i < m; ++i) scalars[k * m + i] = p.alpha * p.a(i, k0 + k);
      std::fill(strip, strip + m * ld, T(0));
      micro.stream(m, static_cast<int>(n), kc, scalars, p.b.p + k0 * p.b.rs + j, p.b.rs, strip, ld);
      const T beta = k0 == 0 ? p.beta : T(1);
      for (int i = 0; i < m; ++i) {
        T* c = p.c + i * p.ldc + j;
        const T* sum = strip + i * ld;
        if (beta == T(0))
          std::copy(sum, sum + n, c);
        else
          for (int64_t x = 0; x < n; ++x) c[x] = beta * c[x] + sum[x];
      }
    }
    finish(p, 0, j, p.m, n, p.c + j);
  }
}

template <class T>
void by_outer(const Team& team, T* own, const Product<T>& p) {
  constexpr int64_t kBand = 8;
  const Micro<T>& micro = cpu::micro<T>();
  int64_t begin, end;
  team.share(p.m, kBand, &begin, &end);
  // Strips of even width: the last one must not be narrower than a vector.
  const int64_t strips = (p.n * p.k + kStripElements - 1) / kStripElements, width = (p.n + strips - 1) / strips;
  for (int64_t j = 0; j < p.n; j += width) {
    const int n = static_cast<int>(std::min(width, p.n - j));
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t x = 0; x < n; ++x) own[k * n + x] = p.alpha * p.b(k, j + x);
    const int64_t step = p.epilogue ? kBand : end - begin;  // the epilogue finds its rows in cache
    for (int64_t i = begin; i < end; i += step) {
      const int rows = static_cast<int>(std::min(step, end - i));
      T* c = p.c + i * p.ldc + j;
      micro.outer(rows, n, static_cast<int>(p.k), p.a.p + i * p.a.rs, p.a.rs, own, n, c, p.ldc);
      finish(p, i, j, rows, n, c);
    }
  }
}

}  // namespace

template <class T>
bool is_thin(const Product<T>& p) {
  return p.inner == Inner::dot && (few_columns(p) || few_rows(p) || few_terms(p));
}

int64_t thin_elements() { return kStripElements + 16 * kFewRows + kFewRows * kStreamDepth; }

template <class T>
void thin_product(const Team& team, T* own, const Product<T>& p) {
  if (few_columns(p))
    by_dots(team, own, p);
  else if (few_rows(p))
    by_streams(team, own, p);
  else
    by_outer(team, own, p);
}

template bool is_thin(const Product<float>&);
template bool is_thin(const Product<double>&);
template void thin_product(const Team&, float*, const Product<float>&);
template void thin_product(const Team&, double*, const Product<double>&);

}  // namespace ssdd::cpu

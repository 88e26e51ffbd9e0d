// C = A B for a batch of strided matrices, with what KRR does to a finished element applied in registers:
//
//   acc = sum_k of the terms of `inner`, usually a(i, k) b(k, j)
//   v   = alpha alpha_of[b] acc [+ c(i, j)];  v = exp(map_of[b] v);  v += plus_of[b] + row[j]
//   v  += add_factor add_of[b] add_row[i] add(i, j)
//
// All of problem b is NaN if lambda_of[3 b] is: the ridge in `aux` of a problem that failed.
// Each pointer may be nullptr: its term is then omitted (a factor is 1). *_of point to one number per problem, kScalars
// apart.
// c is row-major. Triangle::lower: only j <= i is computed and written, both: mirrored too (c then square).
// accumulate_from: c is added to from this row on only.
// active: problems b with active[b] == 0 are not written. Same inputs, same bits.
#pragma once
#include "../tensor.h"
#include <simt.cuh>

namespace ssdd::cuda {

constexpr int kScalars = 16;

// A batch of matrices of T or of 16-bit floats. Tensor cores multiply two 16-bit floats exactly, and one with a float
// in two passes, since 16-bit floats are exact in TF32.
template <class T>
struct Source {
  const T* p = nullptr;
  int64_t bs = 0, rs = 0, cs = 1;
  Element element = Element::own;
  constexpr Source() = default;
  constexpr Source(const T* start, int64_t problem, int64_t row, int64_t column)
      : p(start), bs(problem), rs(row), cs(column) {}
  constexpr Source(const Batch<const T>& x, Element which = Element::own)
      : p(x.p), bs(x.bs), rs(x.rs), cs(x.cs), element(which) {}
  constexpr explicit operator bool() const { return p != nullptr; }
  constexpr Source at(int64_t offset) const {
    Source s = *this;
    s.p = element == Element::own ? p + offset
                                  : reinterpret_cast<const T*>(reinterpret_cast<const uint16_t*>(p) + offset);
    return s;
  }
  constexpr Source operator[](int64_t b) const { return at(b * bs); }
  constexpr Source from(int64_t i, int64_t j) const { return at(i * rs + j * cs); }
  constexpr Source t() const {
    Source s = *this;
    s.rs = cs;
    s.cs = rs;
    return s;
  }
  // Element (i, j) of the first problem; operator[] selects others.
  SIMT_DEVICE T operator()(int64_t i, int64_t j) const {
    const int64_t offset = i * rs + j * cs;
    if (element == Element::own) return simt::load(p + offset);
    return static_cast<T>(
        simt::widen(simt::load(reinterpret_cast<const uint16_t*>(p) + offset), element == Element::f16));
  }
};

enum class Triangle { full, lower, both };

// out[b] = factor times the sum of the squares of all finished elements of problem b. Each tile stores one part,
// numbered from `first` on; `all` parts exist in total. The last block of the launch that completes them adds them up
// (join.cuh). Triangle::full only.
template <class T>
struct Squares {
  T* out = nullptr;
  T* parts = nullptr;       // [batch, all]
  int* counters = nullptr;  // [batch], all 0, before and after
  int64_t first = 0, all = 0;
  double factor = 1;
};

// The terms that a product sums over k.
enum class Inner {
  dot,         // a(i, k) b(k, j)
  distance,    // (a(i, k) - b(k, j))^2
  absolute,    // |a(i, k) - b(k, j)|
  difference,  // a(i, k) (b(k, j) - from(i, j))
  sign         // a(i, k) sign(b(k, j) - from(i, j)), with sign(0) = 0
};

// Squared distances by a product (distances.cu): what it gave, and the squared lengths of its points.
template <class T>
struct Dots {
  const T* p = nullptr;                // [batch, m, n], dense
  const T *x = nullptr, *z = nullptr;  // [m] and [n] of the first problem
  int64_t bs = 0;                      // elements from those of one problem to the next
};

template <class T>
struct Product {
  int64_t batch, m, n, k;
  Source<T> a, b;  // [m, k], [k, n]
  T* c;
  int64_t c_bs, ld;
  Inner inner = Inner::dot;
  Source<T> from;  // [m, n], of the last two
  Dots<T> dots;    // Inner::distance, or absent
  double alpha = 1;
  const T* alpha_of = nullptr;
  bool accumulate = false;
  int64_t accumulate_from = 0;
  const T* map_of = nullptr;
  const T* plus_of = nullptr;
  const T* row = nullptr;
  int64_t row_bs = 0;
  Source<T> add;
  double add_factor = 1;
  const T* add_of = nullptr;
  const T* add_row = nullptr;
  int64_t add_row_bs = 0;
  const T* lambda_of = nullptr;
  Squares<T> squares;
  Triangle triangle = Triangle::full;
  const int32_t* active = nullptr;
  T* split = nullptr;  // memory for partial sums, so that few tiles with a long k still fill the chip
  int64_t split_elements = 0;
  // kCounters counters, all 0 before and after: which splits have arrived. Without them k is not split.
  int* counters = nullptr;
  // Memory for the scales of the rows of a and of the columns of b, [batch, m + n]. With it, large tiles of floats take
  // half-precision instructions where that is as accurate (product_halves.cu).
  float* scales = nullptr;
  int tile = 0;  // kTile or kLargeTile forces that size if the path has both; 0 chooses the faster one
};

// Computes the product on the tensor cores if float dot products are long enough (product_tensor.cu; product_half.cu
// and product_mixed.cu for operands of 16-bit floats), else by product_plain.cu.
template <class T>
void product(const Product<T>& p, simt::Stream stream);

// Computes two independent products: in one launch if both have small tiles of product_tensor.cu and operands of the
// same layout. They may share memory for splits and counters.
template <class T>
void product_pair(const Product<T>& first, const Product<T>& second, simt::Stream stream);

// The number of tiles per problem of product(p), which is the number of parts of its squares.
template <class T>
int64_t tiles_in(const Product<T>& p);

// kCounters is the largest number of tiles of a product whose k is split (finish_tile.cuh).
constexpr int64_t kChip = 264;        // blocks that fill a chip; a constant, so that bits do not depend on the chip
constexpr int64_t kProcessors = 132;  // multiprocessors; each runs one block of the large tile
constexpr int64_t kCounters = kChip / 2;

// Elements of `split` that a product of these sizes needs for its best split.
int64_t split_room(int64_t batch, int64_t m, int64_t n, int64_t k);

// How a launch covers a product: in x, tiles of one problem are fastest, then splits of k, then problems.
struct Tiling {
  int size;  // edge of a tile
  int tiles_n, tiles, splits;
  int64_t k_share;
};
constexpr int kTile = 64, kLargeTile = 128, kDepth = 16;
constexpr int kLargeTileBytes = 80 << 10;  // of shared memory
// The number of small tiles per problem.
inline int64_t tiles_of(int64_t m, int64_t n) { return ((m + kTile - 1) / kTile) * ((n + kTile - 1) / kTile); }
// The arguments of a launch of product_tensor.cu: one product, or two, with the blocks of the first before those of the
// second.
struct Pair {
  Product<float> p[2];
  Tiling tiling[2];
  int count;
  bool a_vectors[2], b_vectors[2];  // operands aligned for copies of 16 bytes
  int64_t blocks(int i) const { return i < count ? tiling[i].tiles * tiling[i].splits * p[i].batch : 0; }
};
void product_tensor(Pair pair, simt::Stream stream);
void product_half(const Product<float>& p, const Tiling& tiling, simt::Stream stream);
// Computes the tiles whose rows and columns have scales, and writes the scales, which tell product_tensor the others.
void product_halves(const Product<float>& p, const Tiling& tiling, simt::Stream stream);
int halves_bytes();  // of shared memory
void product_mixed(const Product<float>& p, const Tiling& tiling, simt::Stream stream);
template <class T>
void product_plain(const Product<T>& p, const Tiling& tiling, simt::Stream stream);
template <class T>
void product_distances(const Product<T>& p, const Tiling& tiling, simt::Stream stream);

// The layout of an operand [rows, k]. k_major: k is the direction of unit stride. aligned: every row and problem is
// aligned to so many bytes.
struct OperandLayout {
  bool k_major, aligned;
};
inline OperandLayout layout_of(const Source<float>& x, uintptr_t bytes) {
  const bool k_major = x.cs == 1 || x.rs != 1;
  const int64_t unit = k_major ? x.cs : x.rs, outer = k_major ? x.rs : x.cs;
  const int64_t wide = static_cast<int64_t>(bytes) / (x.element == Element::own ? 4 : 2);
  return {k_major, unit == 1 && reinterpret_cast<uintptr_t>(x.p) % bytes == 0 && outer % wide == 0 && x.bs % wide == 0};
}

// x / y of numbers that are not negative, in fewer instructions than for any.
SIMT_DEVICE int quotient(int x, int y) { return static_cast<int>(static_cast<unsigned>(x) / static_cast<unsigned>(y)); }

// The part of the product that block `index` computes. false: none.
struct Part {
  int64_t row, column, k_begin, k_end;
  int b, tile, split;
};
template <int Size, class T>
SIMT_DEVICE bool find_part(const Product<T>& p, const Tiling& t, int index, Part& part) {
  // In 32 bits, since the hardware has no 64-bit division. A grid has less than 2^31 blocks.
  const int rest = quotient(index, t.tiles);
  part.tile = index - rest * t.tiles;
  part.b = quotient(rest, t.splits);
  part.split = rest - part.b * t.splits;
  int i = quotient(part.tile, t.tiles_n), j = part.tile - i * t.tiles_n;
  if (p.triangle != Triangle::full) {
    // Tiles of the triangle are numbered row by row.
    const float x = 8.0f * static_cast<float>(part.tile) + 1.0f;
    i = static_cast<int>(x * simt::inverse_root(x) * 0.5f - 0.5f);  // near it
    while (i > 0 && i * (i + 1) / 2 > part.tile) --i;
    while ((i + 1) * (i + 2) / 2 <= part.tile) ++i;
    j = part.tile - i * (i + 1) / 2;
  }
  part.row = static_cast<int64_t>(i) * Size;
  part.column = static_cast<int64_t>(j) * Size;
  part.k_begin = part.split * t.k_share;
  part.k_end = part.k_begin + t.k_share < p.k ? part.k_begin + t.k_share : p.k;
  return !p.active || p.active[part.b] != 0;
}

// The epilogue of a sum of problem b.
template <class T>
struct Finish {
  const Product<T>& p;
  int64_t b;
  T alpha, map, plus, add;

  SIMT_DEVICE Finish(const Product<T>& product, int64_t problem) : p(product), b(problem) {
    alpha = static_cast<T>(p.alpha) * (p.alpha_of ? p.alpha_of[b * kScalars] : T(1));
    map = p.map_of ? p.map_of[b * kScalars] : T(0);
    plus = p.plus_of ? p.plus_of[b * kScalars] : T(0);
    if (p.lambda_of && p.lambda_of[3 * b] != p.lambda_of[3 * b]) plus = simt::nan<T>();
    add = static_cast<T>(p.add_factor) * (p.add_of ? p.add_of[b * kScalars] : T(1));
  }
  // The terms that p.add contributes to elements of column j, in Count rows from i on that are `step` apart.
  template <int Count>
  SIMT_DEVICE void add_elements(int64_t i, int64_t j, int step, const bool (&wanted)[Count], T (&v)[Count]) const {
    const Source<T> from = p.add[b].from(i, j);
    const int64_t apart = step * from.rs;
    if (from.element == Element::own) {
#pragma unroll
      for (int u = 0; u < Count; ++u) v[u] = simt::load_if(wanted[u], from.p + u * apart, T(0));
    } else {
      const uint16_t* const narrow = reinterpret_cast<const uint16_t*>(from.p);
#pragma unroll
      for (int u = 0; u < Count; ++u)
        v[u] = static_cast<T>(
            simt::widen(simt::load_if(wanted[u], narrow + u * apart, uint16_t(0)), from.element == Element::f16));
    }
#pragma unroll
    for (int u = 0; u < Count; ++u)
      v[u] = add * (p.add_row && wanted[u] ? p.add_row[b * p.add_row_bs + i + u * step] : T(1)) * v[u];
  }
};

}  // namespace ssdd::cuda

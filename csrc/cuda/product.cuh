// C = A B for a batch of strided matrices, with what KRR does to a finished element applied in registers:
//
//   acc = sum_k a(i, k) b(k, j), or sum_k (a(i, k) - b(k, j))^2 where `distance`, or sum_k a(i, k) (b(k, j) - from(i, j))
//   v   = alpha alpha_of[b] acc [+ c(i, j)];  v = exp(map_of[b] v);  v += plus_of[b] + row[j]
//   v  += add_factor add_of[b] add_row[i] add(i, j)
//
// and all of problem b is NaN where lambda_of[3 b] is: the ridge in `aux` of a problem that failed.
// Each pointer may be nullptr: that part is left out (a factor: 1). *_of point to one number a problem, kScalars apart.
// c is row-major. Triangle::lower: only j <= i is computed and written, both: mirrored too (c then square).
// accumulate_from: c is added to from this row on only.
// active: problems b with active[b] == 0 are left alone. Same inputs, same bits.
#pragma once
#include "../tensor.h"
#include <simt.cuh>

namespace ssdd::cuda {

constexpr int kScalars = 16;

// A batch of matrices that may be of 16-bit floats. Tensor cores multiply two of those exactly, and one with a float in two
// passes, since 16-bit floats are exact in TF32.
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
    s.rs = cs, s.cs = rs;
    return s;
  }
  // Of the first problem; others by operator[].
  SIMT_DEVICE T operator()(int64_t i, int64_t j) const {
    const int64_t offset = i * rs + j * cs;
    if (element == Element::own) return simt::load(p + offset);
    return static_cast<T>(
        simt::widen(simt::load(reinterpret_cast<const uint16_t*>(p) + offset), element == Element::f16));
  }
};

enum class Triangle { full, lower, both };

// out[b] = factor times the sum of the squares of all finished elements of problem b: a part a tile, numbered from
// `first` on and `all` in number, which the last block of the launch that has the last of them adds up (join.cuh).
// Triangle::full only.
template <class T>
struct Squares {
  T* out = nullptr;
  T* parts = nullptr;      // [batch, all]
  int* tickets = nullptr;  // [batch], all 0, before and after
  int64_t first = 0, all = 0;
  double factor = 1;
};

template <class T>
struct Product {
  int64_t batch, m, n, k;
  Source<T> a, b;  // [m, k], [k, n]
  T* c;
  int64_t c_bs, ld;
  bool distance = false;
  Source<T> from;  // [m, n], or absent
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
  T* split = nullptr;  // room for partial sums, so that few tiles with a long k still fill the chip
  int64_t split_elements = 0;
  // kTickets counters, all 0 before and after: which splits have arrived. Without them k is not split.
  int* tickets = nullptr;
  int tile = 0;  // kTile or kLargeTile asks for tiles of that size where the path has both, 0 for those that pay
};

// On the tensor cores where float dot products are long enough for that (product_tensor.cu; product_half.cu and
// product_mixed.cu where operands are of 16-bit floats), else product_plain.cu.
template <class T>
void product(const Product<T>& p, simt::Stream stream);

// Two products, of which neither needs the other: in one launch if both are for small tiles of product_tensor.cu and their
// operands lie alike. They may share room for splits and tickets.
template <class T>
void product_pair(const Product<T>& first, const Product<T>& second, simt::Stream stream);

// How many tiles of a problem product(p) makes: parts of its squares.
template <class T>
int64_t tiles_in(const Product<T>& p);

// Most tiles of a product whose k is split (finish_tile.cuh).
constexpr int64_t kChip = 264;  // blocks that keep a chip busy; a constant, so that bits do not depend on the chip
constexpr int64_t kProcessors = 132;  // multiprocessors, each of which runs one block of the large tile
constexpr int64_t kTickets = kChip / 2;

// Elements of `split` with which the product of these sizes runs as it should.
int64_t split_room(int64_t batch, int64_t m, int64_t n, int64_t k);

// How a launch covers a product: tiles of one problem in x fastest, then splits of k, then problems.
struct Tiling {
  int size;  // of a tile's edge
  int tiles_n, tiles, splits;
  int64_t k_share;
};
constexpr int kTile = 64, kLargeTile = 128, kDepth = 16;
constexpr int kLargeTileBytes = 80 << 10;  // of shared memory
// Of one problem, of the smaller size.
inline int64_t tiles_of(int64_t m, int64_t n) { return ((m + kTile - 1) / kTile) * ((n + kTile - 1) / kTile); }
// What a launch of product_tensor.cu makes: one product or two, the blocks of the first before those of the second.
struct Pair {
  Product<float> p[2];
  Tiling tiling[2];
  int count;
  bool a_vectors[2], b_vectors[2];  // operands aligned for copies of 16 bytes
  int64_t blocks(int i) const { return i < count ? tiling[i].tiles * tiling[i].splits * p[i].batch : 0; }
};
void product_tensor(Pair pair, simt::Stream stream);
void product_half(const Product<float>& p, const Tiling& tiling, simt::Stream stream);
void product_mixed(const Product<float>& p, const Tiling& tiling, simt::Stream stream);
template <class T>
void product_plain(const Product<T>& p, const Tiling& tiling, simt::Stream stream);

// Whether k, or what lies across it, is the direction of unit stride of an operand [rows, k], and whether every row and
// problem of it is aligned to so many bytes.
struct Lie {
  bool k_major, aligned;
};
inline Lie lie_of(const Source<float>& x, uintptr_t bytes) {
  const bool k_major = x.cs == 1 || x.rs != 1;
  const int64_t unit = k_major ? x.cs : x.rs, outer = k_major ? x.rs : x.cs;
  const int64_t wide = static_cast<int64_t>(bytes) / (x.element == Element::own ? 4 : 2);
  return {k_major, unit == 1 && reinterpret_cast<uintptr_t>(x.p) % bytes == 0 && outer % wide == 0 && x.bs % wide == 0};
}

// The part of the product that its block `index` makes. false: none.
struct Part {
  int64_t row, column, k_begin, k_end;
  int b, tile, split;
};
template <int Size, class T>
SIMT_DEVICE bool find_part(const Product<T>& p, const Tiling& t, int index, Part& part) {
  // In 32 bits: the hardware has no 64-bit division, and a grid has less than 2^31 blocks.
  const int rest = index / t.tiles;
  part.tile = index - rest * t.tiles;
  part.b = rest / t.splits;
  part.split = rest - part.b * t.splits;
  int i = part.tile / t.tiles_n, j = part.tile - i * t.tiles_n;
  if (p.triangle != Triangle::full) {
    // Tiles of the triangle are numbered row by row.
    i = static_cast<int>((simt::square_root(8.0f * static_cast<float>(part.tile) + 1.0f) - 1.0f) / 2.0f);
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

// What becomes of a sum of problem b.
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
  // What is added to element (i, j) where p.add is given.
  SIMT_DEVICE T added(int64_t i, int64_t j) const {
    return add * (p.add_row ? p.add_row[b * p.add_row_bs + i] : T(1)) * p.add[b](i, j);
  }
  // Of an element of column j, and 0 where it is not wanted; old: what c has there, where it is added to.
  SIMT_DEVICE T value(int64_t j, bool wanted, T sum, T old, T other) const {
    if (!wanted) return T(0);
    T v = alpha * sum + old;
    if (p.map_of) v = simt::exponential(map * v);
    v += plus;
    if (p.row) v += p.row[b * p.row_bs + j];
    return v + other;
  }
};

}  // namespace ssdd::cuda

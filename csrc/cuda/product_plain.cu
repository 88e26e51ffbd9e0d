// Products and squared distances in the arithmetic of their type, on the ordinary units.
//
// Mapping: a block of 256 threads makes a tile of 64 x 64, a thread 4 x 4 of it; k in steps of 16 through 2 stages of
// cp.async, one element a copy (any stride; 16-bit floats are loaded and widened), both operands as [k][row]. Sums of 16 steps are added to the
// running sums, so that rounding grows with k / 16. A squared distance is summed as such: no cancellation, and 0 of a point to itself.
// So is a weighted difference a (b - from), for which a thread has its 16 elements of `from` in registers.
// Traffic as in product_tensor.cu; m n elements more, and two numbers a tile, where the squares are summed. A long k of few tiles
// is split between blocks, of which the last to finish a tile adds the others' sums (join.cuh): splits m n elements more
// written and read, from L2, and no launch. FLOPs 2 m n k (distances and differences 3 m n k); floor on an H100: 67 TF/s of float, 34 of double.
// Other path: product_tensor.cu for products of float with k >= 48.
#include <algorithm>

#include "join.cuh"
#include "tile_plain.cuh"

namespace ssdd::cuda {
namespace {

using namespace plain;

template <class T, bool Distance, bool Difference>
SIMT_KERNEL(kThreads) plain_kernel(Product<T> p, Tiling tiling) {
  Part part;
  if (!find_part(p, tiling, part)) return;
  simt::Shared shared;
  T* const a_stages = shared.take<T>(4 * kStage<T>);
  T* const b_stages = a_stages + 2 * kStage<T>;
  const Loader<T> a(p.a[part.b], part.row, p.m), b(p.b[part.b].t(), part.column, p.n);
  const int row = simt::thread() / 16 * 4, column = simt::thread() % 16 * 4;
  T sums[4][4] = {}, own[4][4] = {};
  if constexpr (Difference) {
    // The tile of `from`, through the stages that are still free: neighbours are read by neighbours.
    static_assert(kTile * kTile <= 4 * kStage<T>, "it fits there");
    const Source<T> from = p.from[part.b];
    for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
      const int64_t r = part.row + e / kTile, c = part.column + e % kTile;
      simt::put(a_stages + e, r < p.m && c < p.n ? from(r, c) : T(0));
    }
    simt::barrier();
#pragma unroll
    for (int i = 0; i < 4; ++i) four(a_stages + (row + i) * kTile + column, own[i]);
    simt::barrier();
  }

  if (part.k_begin < part.k_end) {
    a.load(a_stages, part.k_begin, part.k_end);
    b.load(b_stages, part.k_begin, part.k_end);
  }
  simt::copy_commit();
  int slot = 0;
  for (int64_t k = part.k_begin; k < part.k_end; k += kDepth, slot ^= 1) {
    simt::copy_wait<0>();
    simt::barrier();
    if (k + kDepth < part.k_end) {
      a.load(a_stages + (slot ^ 1) * kStage<T>, k + kDepth, part.k_end);
      b.load(b_stages + (slot ^ 1) * kStage<T>, k + kDepth, part.k_end);
    }
    simt::copy_commit();
    multiply<Distance, Difference>(a_stages + slot * kStage<T>, b_stages + slot * kStage<T>, row, column, own, sums);
  }

  const auto each = [&](const auto& f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(i, sums[i], part.row + row + i, part.column + column);
  };
  if (tiling.splits > 1 && !join_splits<kThreads>(p, tiling, part, each)) return;
  const Finish<T> finish(p, part.b);
  each([&](int, const T(&four)[4], int64_t r, int64_t c) {
    const T head[2] = {four[0], four[1]}, tail[2] = {four[2], four[3]};
    finish.put_row(r, c, head);
    finish.put_row(r, c + 2, tail);
  });
  if (!p.squares.out) return;
  add_squares<kThreads>(p, part, [&](const auto& f) {
    each([&](int, const T(&)[4], int64_t r, int64_t c) { f(r, c), f(r, c + 1), f(r, c + 2), f(r, c + 3); });
  });
}

constexpr int64_t kShortest = 128; // steps of k below which a split does not pay
constexpr int64_t kMostSplits = 16;

int splits_of(int64_t batch, int64_t tiles, int64_t k) {
  const int64_t blocks = batch * tiles, wanted = blocks > 0 ? kChip / blocks : 1, most = k / kShortest;
  const int64_t splits = wanted < most ? wanted : most;
  return static_cast<int>(splits < 1 ? 1 : splits > kMostSplits ? kMostSplits : splits);
}

}  // namespace

int64_t split_room(int64_t batch, int64_t m, int64_t n, int64_t k) {
  const auto room = [&](int64_t tiles) {
    const int splits = splits_of(batch, tiles, k);
    return splits > 1 ? splits * batch * tiles * kTile * kTile : 0;
  };
  const int64_t rows = (m + kTile - 1) / kTile, whole = room(tiles_of(m, n));
  return m == n ? std::max(whole, room(rows * (rows + 1) / 2)) : whole;  // a triangle has fewer tiles and more splits
}

template <class T>
void product_plain(const Product<T>& p, const Tiling& tiling, simt::Stream stream) {
  auto* kernel = p.from ? &plain_kernel<T, false, true> : p.distance ? &plain_kernel<T, true, false> : &plain_kernel<T, false, false>;
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads,
               4 * kStage<T> * static_cast<int>(sizeof(T)), stream, p, tiling);
}

template <class T>
void product(const Product<T>& p, simt::Stream stream) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  Tiling t;
  const int64_t rows = (p.m + kTile - 1) / kTile;
  t.tiles_n = (p.n + kTile - 1) / kTile;
  t.tiles = p.triangle == Triangle::full ? rows * t.tiles_n : rows * (rows + 1) / 2;
  t.splits = splits_of(p.batch, t.tiles, p.k);
  const bool splits = p.tickets && reinterpret_cast<uintptr_t>(p.split) % 16 == 0;
  const int64_t room = splits ? p.split_elements / (p.batch * t.tiles * kTile * kTile) : 0;
  if (room < t.splits) t.splits = room < 2 ? 1 : static_cast<int>(room);
  // A split's k is counted in 32 bits; longer ones do not fit a GPU's memory.
  t.k_share = ((p.k + t.splits - 1) / t.splits + kDepth - 1) / kDepth * kDepth;
  constexpr int64_t kShortForTensor = 48;
  if constexpr (sizeof(T) == 4) {
    if (!p.distance && !p.from && p.k >= kShortForTensor)
      product_tensor(p, t, stream);
    else
      product_plain(p, t, stream);
  } else {
    product_plain(p, t, stream);
  }
}

template void product(const Product<float>&, simt::Stream);
template void product(const Product<double>&, simt::Stream);
template void product_plain(const Product<float>&, const Tiling&, simt::Stream);
template void product_plain(const Product<double>&, const Tiling&, simt::Stream);

}  // namespace ssdd::cuda

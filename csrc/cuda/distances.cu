// Squared distances by products where that keeps their digits, and by differences elsewhere.
//
//   r = (|x|^2 - x.z) + (|z|^2 - x.z), of points about the mean of up to 32 of the points z
//
// The error of r is at most gamma (|x|^2 + |z|^2): with unit roundoff u, gamma = (60 + D / 8) u, from sums of 16 terms that
// are promoted and parts of k that are joined (product_tensor.cu, product_plain.cu), the squared lengths and the shift.
// Every r below (|x|^2 + |z|^2) / kCancelled, and every NaN, is computed again by differences of the points as passed in.
// So the error of every r is at most kCancelled gamma r, and 0 between equal points. The errors do not have one sign:
// tests/simt/test_distances.cpp holds 8 u for the kernel, up to D = 8192, for the tables of the CPU (csrc/cpu/distances.h).
//
// Nothing is decided on the host. Each tile counts its distances that are lost. If there are none, it takes the product's.
// Up to kFew are computed again by one warp each. A tile with more of them is computed as by product_plain.cu, k split
// between blocks if the launch has splits; the other blocks of a tile that is not return at once.
//
// Launches: origin_kernel, center_kernel, the product x.z (any of product.cuh), distance_kernel.
// Mapping: origin_kernel: one block of 256 threads per 256 features. center_kernel: one block per point. distance_kernel:
// one block per tile of 64 x 64 and split, as in product_plain.cu.
// Traffic: center_kernel reads and writes every point once; distance_kernel reads x.z, and writes what the product would.
// The points are read again for tiles and elements that are lost.
// FLOPs: 2 m n k for the product, 3 k per distance that is lost (3 m n k at most); 5 per distance, 4 k per point.
// Floor on an H100: 2 m n k / 104 TF/s through mma.sync in float, in place of 3 m n k / 67 TF/s for differences.
// Other path: product_plain.cu, which has differences only, unless KrrShape::products or GramArgs::products asks for this.
#include "distances.cuh"

#include <algorithm>

#include "../arena.h"
#include "finish_tile.cuh"
#include "tile_plain.cuh"

namespace ssdd::cuda {
namespace {

using namespace plain;

constexpr int64_t kOriginPoints = 32;  // points of z whose mean is the origin
constexpr int kCancelled = 4;          // a distance that loses more than two bits is lost
constexpr int kFew = 64;               // lost distances of a tile that are computed one by one

// Rows of shifted points are whole vectors.
constexpr int64_t pitch_of(int64_t features) { return (features + 3) / 4 * 4; }

// Writes the mean of up to 32 points z, spread over all of them. One thread per feature.
template <class T>
SIMT_KERNEL(kThreads)
void origin_kernel(int64_t points, int64_t features, int64_t strips, Source<T> z, T* origin) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / strips, d = simt::block().x % strips * kThreads + simt::thread();
  if (d >= features) return;
  const Source<T> own = z[b];
  const int64_t count = points < kOriginPoints ? points : kOriginPoints, step = points / count;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(own(i * step, d));
  simt::store(origin + b * features + d, static_cast<T>(sum / static_cast<double>(count)));
}

// The points z of a problem and, behind them, the points x, if these are others.
template <class T>
struct PointsToShift {
  int64_t z_count, all, features;
  Source<T> z, x;
  const T* origin;       // [batch, features]
  T *shifted, *squares;  // [batch, all, pitch_of(features)], [batch, all]
};

// Shifts one point per block, and computes its squared length.
template <class T>
SIMT_KERNEL(kThreads)
void center_kernel(PointsToShift<T> p) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / p.all, row = simt::block().x % p.all, pitch = pitch_of(p.features);
  const Source<T> point = row < p.z_count ? p.z[b].from(row, 0) : p.x[b].from(row - p.z_count, 0);
  const T* const origin = p.origin + b * p.features;
  T* const out = p.shifted + (b * p.all + row) * pitch;
  T sum = 0;
#pragma unroll 4
  for (int64_t d = simt::thread(); d < p.features; d += kThreads) {
    const T apart = point(0, d) - simt::load(origin + d);
    simt::store(out + d, apart);
    sum = simt::fma(apart, apart, sum);
  }
  const double square = block_sum<kThreads>(static_cast<double>(sum));
  if (simt::thread() == 0) simt::store(p.squares + b * p.all + row, static_cast<T>(square));
}

// Differences in a shorter loop, so that the kernel is small enough.
struct Rolled : Distance {
  static constexpr int unroll = 4;
};

// The squared distances of a tile.
template <class T>
class DistanceTile {
 public:
  SIMT_DEVICE DistanceTile(const Product<T>& product, const Part& which, T* memory)
      : p(product), part(which), tile(memory), triangle(product.triangle != Triangle::full) {
    rows = p.m - part.row < kTile ? static_cast<int>(p.m - part.row) : kTile;
    columns = p.n - part.column < kTile ? static_cast<int>(p.n - part.column) : kTile;
  }

  // Puts the distances by the product into the tile, NaN for those that are lost, and returns how many these are. It ends
  // with a barrier.
  SIMT_DEVICE int by_product() const {
    SIMT_SHARED(int, counts, kThreads / 32);
    const T *const dots = p.dots.p + (part.b * p.m + part.row) * p.n + part.column,
                   *const x = p.dots.x + part.b * p.dots.bs + part.row,
                   *const z = p.dots.z + part.b * p.dots.bs + part.column;
    int lost = 0;  // of this warp
#pragma unroll 1
    for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
      const int i = e / kTile, j = e % kTile;
      const int64_t below = part.row + i - part.column - j;  // the diagonal
      const bool wanted = i < rows && j < columns && (!triangle || below >= 0);
      const T dot = simt::load_if(wanted, dots + i * p.n + j, T(0)), x_square = simt::load_if(wanted, x + i, T(1)),
              z_square = simt::load_if(wanted, z + j, T(1)), both = x_square + z_square;
      T r = (x_square - dot) + (z_square - dot);
      bool good = r * T(kCancelled) >= both;
      if (triangle && below == 0 && simt::finite(both)) {  // a point and itself
        r = 0;
        good = true;
      }
      simt::put(tile + i * kPitch<T> + j, good ? r : simt::nan<T>());
      lost += simt::count_bits(simt::ballot(!good));
    }
    if (simt::lane() == 0) simt::put(counts + simt::warp(), lost);
    simt::barrier();
    int all = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) all += simt::get(counts + w);
    return all;
  }

  // Computes the distances of the tile that are lost by differences, one warp per distance.
  SIMT_DEVICE void repair() const {
    const Source<T> x = p.a[part.b].from(part.row, 0), z = p.b[part.b].t().from(part.column, 0);
#pragma unroll 1
    for (int unit = simt::warp(); unit < rows * (kTile / 32); unit += kThreads / 32) {
      const int i = unit / (kTile / 32), first = unit % (kTile / 32) * 32;
      T* const place = tile + i * kPitch<T> + first;
      const T r = simt::get(place + simt::lane());
      unsigned lost = simt::ballot(r != r);
      simt::warp_barrier();  // all lanes have read
#pragma unroll 1
      for (; lost != 0; lost &= lost - 1) {
        const int j = simt::first_set(lost) - 1;
        const double sum = difference(x.from(i, 0), z.from(first + j, 0));
        if (simt::lane() == 0) simt::put(place + j, static_cast<T>(sum));
      }
    }
  }

 private:
  // The sum over all lanes. Lanes take neighbouring features.
  SIMT_DEVICE double difference(const Source<T>& x, const Source<T>& z) const {
    double sum = 0;
#pragma unroll 1
    for (int64_t first = simt::lane(); first < p.k; first += 32 * kRun) {
      T run = 0;
#pragma unroll
      for (int e = 0; e < kRun; ++e) {
        const int64_t d = first + 32 * e;
        const T apart = d < p.k ? x(0, d) - z(0, d) : T(0);
        run = simt::fma(apart, apart, run);
      }
      sum += static_cast<double>(run);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += simt::shuffle_xor(sum, mask);
    return sum;
  }
  static constexpr int kRun = 4;  // terms that are summed in T

  const Product<T>& p;
  const Part& part;
  T* const tile;
  const bool triangle;
  int rows, columns;
};

template <class T>
SIMT_KERNEL_MIN(kThreads, sizeof(T) == 4 ? 3 : 1)
void distance_kernel(Product<T> p, Tiling tiling) {
  simt::wait_for_earlier_launches();
  Part part;
  if (!find_part<kTile>(p, tiling, static_cast<int>(simt::block().x), part)) return;
  simt::Shared shared;
  T* const stages = shared.take<T>(2 * kStages * kStage<T>);
  const DistanceTile<T> tile(p, part, stages);
  const int lost = tile.by_product();
  if (lost > kFew) {
    // By differences. Every block of the tile has counted the same, and computes its part of k.
    T sums[4][4] = {}, own[4][4] = {};
    sum_tile<Rolled>(p, part, stages, own, sums);
    put_tile(sums, stages);
  } else {
    if (part.split > 0) return;
    tiling.splits = 1;
    if (lost > 0) tile.repair();
  }
  TileFinish<kThreads, kTile, kPitch<T>, T, true>(p, tiling, part, stages).run();
}

// The parts of the memory of distance_product.
template <class T>
struct Layout {
  T *origin, *shifted, *squares, *dots;
  int64_t all, total;
  Layout(int64_t batch, int64_t m, int64_t n, int64_t k, bool symmetric, T* memory) {
    Arena<T> arena{memory};
    all = symmetric ? n : n + m;
    origin = arena.take(batch * k);
    shifted = arena.take(batch * all * pitch_of(k));
    squares = arena.take(batch * all);
    dots = arena.take(batch * m * n);
    total = arena.used;
  }
};

}  // namespace

int64_t distance_room(int64_t batch, int64_t m, int64_t n, int64_t k) {
  return Layout<float>(batch, m, n, k, false, nullptr).total;
}

template <class T>
void distance_product(const Product<T>& p, T* memory, simt::Stream stream) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  const bool symmetric = p.triangle != Triangle::full;
  const Layout<T> w(p.batch, p.m, p.n, p.k, symmetric, memory);
  const int64_t strips = (p.k + kThreads - 1) / kThreads, pitch = pitch_of(p.k);
  simt::launch(&origin_kernel<T>, {static_cast<unsigned>(p.batch * strips)}, kThreads, 0, stream, p.n, p.k, strips,
               p.b.t(), w.origin);
  const PointsToShift<T> points{p.n, w.all, p.k, p.b.t(), p.a, w.origin, w.shifted, w.squares};
  simt::launch(&center_kernel<T>, {static_cast<unsigned>(p.batch * w.all)}, kThreads, 0, stream, points);
  // The points z come first, and are the points x if these are the same.
  const int64_t x_row = symmetric ? 0 : p.n, problem = w.all * pitch;
  Product<T> dot{};
  dot.batch = p.batch;
  dot.m = p.m;
  dot.n = p.n;
  dot.k = p.k;
  dot.a = {w.shifted + x_row * pitch, problem, pitch, 1};
  dot.b = {w.shifted, problem, 1, pitch};
  dot.c = w.dots;
  dot.c_bs = p.m * p.n;
  dot.ld = p.n;
  if (symmetric) dot.triangle = Triangle::lower;
  dot.split = p.split;
  dot.split_elements = p.split_elements;
  dot.counters = p.counters;
  dot.scales = p.scales;
  product(dot, stream);
  Product<T> distances = p;
  distances.dots = {w.dots, w.squares + x_row, w.squares, w.all};
  product(distances, stream);
}

template <class T>
void product_distances(const Product<T>& p, const Tiling& tiling, simt::Stream stream) {
  simt::launch(&distance_kernel<T>, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads,
               kSharedBytes<T>, stream, p, tiling);
}

#define SSDD_INSTANTIATE(T)                                            \
  template void distance_product(const Product<T>&, T*, simt::Stream); \
  template void product_distances(const Product<T>&, const Tiling&, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

// Products, squared distances, 1-norms and sums of signs in the arithmetic of their type, on the ordinary units.
//
// Mapping: a block of 256 threads computes a tile of 64 x 64, 4 x 4 elements per thread. k is loaded in steps of 16
// through 3 stages of cp.async, one element per copy (any stride; 16-bit floats are loaded and widened), both operands
// as [k][row]. Terms with `from` keep each thread's 16 elements of it in registers.
// Rounding: sums of 16 steps are added to the running sums, so that the error grows with k / 16. A squared distance is
// summed directly: there is no cancellation, and the distance of a point to itself is 0. The same holds for 1-norms and
// differences.
// Traffic: as in product_tensor.cu; m n elements more, and two numbers per tile, if squares are summed. If there are
// few tiles and k is long, k is split between blocks; the last block to finish a tile adds the parts (join.cuh), which
// writes and reads m n elements per split in L2 and needs no launch.
// FLOPs: 2 m n k (3 m n k for distances and differences). Per term a product takes one instruction, a distance, a 1-norm
// and a difference two, a sign four (five in double), of which two run at half the rate. Floor on an H100: 67 TF/s in float,
// 34 in double, where a multiply-add counts as two.
// Other path: product_tensor.cu for products of float with k >= 48.
#include <algorithm>
#include <type_traits>

#include "finish_tile.cuh"
#include "tile_plain.cuh"

namespace ssdd::cuda {
namespace {

using namespace plain;

// Blocks of one multiprocessor: a number for those that would otherwise get too few registers.
template <class T, class Of>
constexpr int kBlocks = sizeof(T) == 8 && (Of::from_own || std::is_same_v<Of, Dot>) ? 1 : 0;

template <class T, class Of>
SIMT_KERNEL_MIN(kThreads, (kBlocks<T, Of>))
void plain_kernel(Product<T> p, Tiling tiling) {
  simt::wait_for_earlier_launches();
  Part part;
  if (!find_part<kTile>(p, tiling, static_cast<int>(simt::block().x), part)) return;
  simt::Shared shared;
  T* const stages = shared.take<T>(2 * kStages * kStage<T>);
  T sums[4][4] = {}, own[4][4] = {};
  if constexpr (Of::from_own) load_own(p, part, stages, own);
  sum_tile<Of>(p, part, stages, own, sums);
  put_tile(sums, stages);
  TileFinish<kThreads, kTile, kPitch<T>, T, Of::maps>(p, tiling, part, stages).run();
}

constexpr int64_t kShortest = 128, kLargeShortest = 256;  // steps of k below which a split does not pay
constexpr int64_t kMostSplits = 16;
constexpr int64_t kJoin = 18;       // cost of writing and reading a split, in steps of k
constexpr double kLargePays = 1.2;  // the large tile is used up to so many times the counted time of the small one
constexpr int64_t kLongestForHalves = 8192;  // k of one block: what the tensor cores truncate grows with it
constexpr int64_t kSteps = 32;               // of k: a stage of 16-bit floats, and two of floats

// The units that compute a product.
enum class Path { plain, tensor, half, mixed };
Path path_of(const Product<double>&) { return Path::plain; }
Path path_of(const Product<float>& p) {
  constexpr int64_t kShortForTensor = 48;
  if (p.inner != Inner::dot || p.k < kShortForTensor) return Path::plain;
  if (p.a.element == Element::own && p.b.element == Element::own) return Path::tensor;
  return p.a.element == p.b.element && layout_of(p.a, 16).aligned && layout_of(p.b.t(), 16).aligned ? Path::half
                                                                                                    : Path::mixed;
}

// The number of splits of k with which `tiles` tiles fill the chip.
int64_t splits_of(int64_t tiles, int64_t k, int64_t blocks, int64_t shortest) {
  const int64_t wanted = tiles > 0 ? blocks / tiles : 1, splits = std::min({wanted, k / shortest, kMostSplits});
  return std::max<int64_t>(1, splits);
}

// The tiles and splits of a product for one size of tile, and their time.
struct Cover {
  int64_t size, across, tiles, splits;  // tiles of one problem
  // Time of the blocks of one multiprocessor, one after the other, in steps of k per element.
  double time;

  int64_t room(int64_t batch) const { return splits > 1 ? splits * batch * tiles * size * size : 0; }
};
Cover cover(int64_t size, int64_t batch, int64_t m, int64_t n, int64_t k, bool triangle) {
  const int64_t rows = (m + size - 1) / size, columns = (n + size - 1) / size;
  const bool large = size == kLargeTile;
  Cover c{size, columns, triangle ? rows * (rows + 1) / 2 : rows * columns, 1, 0};
  c.splits = splits_of(batch * c.tiles, k, large ? kProcessors : kChip, large ? kLargeShortest : kShortest);
  const int64_t turns = (batch * c.tiles * c.splits + kProcessors - 1) / kProcessors;
  const int64_t join = c.splits > 1 ? kJoin * c.splits : 0;
  c.time = static_cast<double>(size * size) * static_cast<double>(turns * ((k + c.splits - 1) / c.splits) + join);
  return c;
}
// The large tile reads half as much from L2 and needs fewer instructions.
Cover best_cover(int64_t batch, int64_t m, int64_t n, int64_t k, bool triangle) {
  const Cover small = cover(kTile, batch, m, n, k, triangle), large = cover(kLargeTile, batch, m, n, k, triangle);
  return large.time <= kLargePays * small.time ? large : small;
}

}  // namespace

int64_t split_room(int64_t batch, int64_t m, int64_t n, int64_t k) {
  // Some products have no large tile. A triangle has fewer tiles and more splits.
  int64_t most = 0;
  for (bool triangle : {false, true})
    if (!triangle || m == n)
      for (int64_t size : {kTile, kLargeTile}) most = std::max(most, cover(size, batch, m, n, k, triangle).room(batch));
  return most;
}

template <class T>
void product_plain(const Product<T>& p, const Tiling& tiling, simt::Stream stream) {
  auto* kernel = &plain_kernel<T, Dot>;
  if (p.inner == Inner::distance) kernel = &plain_kernel<T, Distance>;
  if (p.inner == Inner::absolute) kernel = &plain_kernel<T, Absolute>;
  if (p.inner == Inner::difference) kernel = &plain_kernel<T, Difference>;
  if (p.inner == Inner::sign) kernel = &plain_kernel<T, Sign>;
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads, kSharedBytes<T>,
               stream, p, tiling);
}

namespace {

void product_of(const Product<double>& p, const Tiling& t, simt::Stream stream) {
  if (p.dots.p) return product_distances(p, t, stream);
  product_plain(p, t, stream);
}
void product_of(const Product<float>& p, const Tiling& t, simt::Stream stream) {
  if (path_of(p) == Path::tensor) {
    Product<float> tensor = p;
    const bool aligned = layout_of(p.a, 16).aligned && layout_of(p.b.t(), 16).aligned;
    if (t.size != kLargeTile || !aligned || t.k_share > kLongestForHalves || simt::shared_limit() < halves_bytes())
      tensor.scales = nullptr;
    if (tensor.scales) product_halves(tensor, t, stream);
    return product_tensor({{tensor}, {t}, 1, {}, {}}, stream);
  }
  if (path_of(p) == Path::half) return product_half(p, t, stream);
  if (path_of(p) == Path::mixed) return product_mixed(p, t, stream);
  if (p.dots.p) return product_distances(p, t, stream);
  product_plain(p, t, stream);
}

template <class T>
Cover cover_of(const Product<T>& p) {
  const bool triangle = p.triangle != Triangle::full, any_size = path_of(p) == Path::tensor || path_of(p) == Path::half;
  Cover c = cover(kTile, p.batch, p.m, p.n, p.k, triangle);
  if (any_size && !p.tile) c = best_cover(p.batch, p.m, p.n, p.k, triangle);
  if (any_size && p.tile) c = cover(p.tile, p.batch, p.m, p.n, p.k, triangle);
  // The large tile fits every GPU that these kernels are built for.
  return c.size == kLargeTile && simt::shared_limit() < kLargeTileBytes ? cover(kTile, p.batch, p.m, p.n, p.k, triangle)
                                                                        : c;
}

}  // namespace

namespace {

bool is_empty(const Product<float>& p) { return p.batch == 0 || p.m == 0 || p.n == 0; }

template <class T>
Tiling tiling_of(const Product<T>& p) {
  const Cover c = cover_of(p);
  const bool can_split = p.counters && reinterpret_cast<uintptr_t>(p.split) % 16 == 0;
  const int64_t room = can_split ? p.split_elements / (p.batch * c.tiles * c.size * c.size) : 0;
  const int64_t splits = room < c.splits ? std::max<int64_t>(1, room) : c.splits;
  // A split's k is counted in 32 bits; longer ones do not fit a GPU's memory.
  const int64_t share = ((p.k + splits - 1) / splits + kSteps - 1) / kSteps * kSteps;
  return {static_cast<int>(c.size), static_cast<int>(c.across), static_cast<int>(c.tiles), static_cast<int>(splits),
          share};
}

// The work per multiprocessor of a product in small tiles, in steps of k per element.
double work_in_small(const Product<float>& p) {
  const Cover c = cover(kTile, p.batch, p.m, p.n, p.k, p.triangle != Triangle::full);
  const int64_t joins = c.splits > 1 ? kJoin * c.splits * c.splits : 0;
  return static_cast<double>(p.batch * c.tiles * kTile * kTile) * static_cast<double>(p.k + joins) / kProcessors;
}

// True if both products run in the same kernel with small tiles, and one launch for both is faster.
bool alike(const Product<double>&, const Product<double>&) { return false; }
bool alike(const Product<float>& first, const Product<float>& second) {
  if (is_empty(first) || is_empty(second) || path_of(first) != Path::tensor || path_of(second) != Path::tensor)
    return false;
  if (layout_of(first.a, 16).k_major != layout_of(second.a, 16).k_major) return false;
  if (layout_of(first.b.t(), 16).k_major != layout_of(second.b.t(), 16).k_major) return false;
  const Cover one = cover_of(first), other = cover_of(second);
  if (one.size == kTile && other.size == kTile) return true;
  if (first.tile || second.tile) return false;
  // Small tiles of both share the chip evenly. The alternative is large tiles and one more launch, which costs 10 us.
  const double launch = 600.0 * kTile * kTile;
  return kLargePays * (work_in_small(first) + work_in_small(second)) <= one.time + other.time + launch;
}
void run_pair(const Product<double>&, const Product<double>&, simt::Stream) {}
void run_pair(Product<float> first, Product<float> second, simt::Stream stream) {
  first.tile = second.tile = kTile;
  const Tiling one = tiling_of(first);
  if (one.splits > 1) {  // the second product's sums and counters follow those of the first
    const int64_t tiles = first.batch * one.tiles, room = tiles * one.splits * one.size * one.size;
    second.split += room;
    second.split_elements = std::max<int64_t>(0, second.split_elements - room);
    const bool fits = tiles + second.batch * cover_of(second).tiles <= kCounters;
    second.counters = fits ? second.counters + tiles : nullptr;
  }
  product_tensor({{first, second}, {one, tiling_of(second)}, 2, {}, {}}, stream);
}

}  // namespace

template <class T>
int64_t tiles_in(const Product<T>& p) {
  return cover_of(p).tiles;
}

template <class T>
void product(const Product<T>& p, simt::Stream stream) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  product_of(p, tiling_of(p), stream);
}

template <class T>
void product_pair(const Product<T>& first, const Product<T>& second, simt::Stream stream) {
  if (alike(first, second)) return run_pair(first, second, stream);
  product(first, stream);
  product(second, stream);
}

template int64_t tiles_in(const Product<float>&);
template int64_t tiles_in(const Product<double>&);
template void product(const Product<float>&, simt::Stream);
template void product(const Product<double>&, simt::Stream);
template void product_pair(const Product<float>&, const Product<float>&, simt::Stream);
template void product_pair(const Product<double>&, const Product<double>&, simt::Stream);
template void product_plain(const Product<float>&, const Tiling&, simt::Stream);
template void product_plain(const Product<double>&, const Tiling&, simt::Stream);

}  // namespace ssdd::cuda

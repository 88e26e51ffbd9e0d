// float products at fp32 accuracy from half-precision instructions, off by default: Product::scales turns it on.
//
// Each row of a and each column of b is scaled by a power of two, so that its largest element is in [2^14, 2^15), and
// split into two halves: x = h + l 2^-11. Three products h h + (h l + l h) 2^-11 are summed. An instruction m16n8k16 of
// halves does the work of two m16n8k8 of TF32 in the time of one.
// h has the leading 11 bits of x and l the next 11, as in three TF32 products, if x is at least 2^-28 of the largest of
// its row. A row with smaller elements (other than 0) would lose them, so its tiles are left to product_tensor.cu. So
// are rows that are not finite, or whose largest element is outside 2^-45 .. 2^45. ranges_kernel finds the scale of each
// row, 0 if there is none, and both kernels of the product read the scales of a tile: one of them computes it. The host
// knows nothing of it.
//
// Mapping: ranges_kernel: one block of 256 threads per row if k is the direction of unit stride, else per 32 rows.
// halves_kernel: as product_tensor.cu with tiles of 128 x 128. k is loaded in steps of 32. Each float is scaled and
// split once per block, from a stage of floats to one of halves, while the warps multiply the step before it.
// Traffic: that of product_tensor.cu, and both operands once more for their ranges. FLOPs: 3 x 2 m n k on the tensor
// cores. Per 16 k a warp executes about 290 instructions, of which 48 are products, 64 promote sums, 80 split and 12 load
// fragments; for three TF32 products it is 360 and 96 products, which keep the tensor cores busy for twice as long. On an
// H100 three TF32 products took 2,540 cycles per 16 k of a tile (54 TF/s, measured at 402 instructions), of which the
// tensor cores are busy for 1,320 (104 TF/s). Expected from that: 1,700 cycles, 1.5 times the rate. With the ranges (reading the operands at
// 2.4 TB/s, and a launch more per product) that is 380 of 2,300 us less at S=1000 Q=1024 D=8192 C=512, 24 of 308 us at
// B=64 S=100 Q=256 D=512 C=10, and nothing at S=10 and S=100, whose products take small tiles.
// Floor on an H100: 6 m n k / 990 TF/s at the data sheet's rate, about 208 TF/s through mma.sync, and reading the
// operands once more.
// Other path: product_tensor.cu.
#include "tile_matrix.cuh"

namespace ssdd::cuda {
namespace {

using namespace matrix;

constexpr int kSize = kLargeTile, kThreads = Shape<kSize>::kThreads;
// Exponents: of the largest scaled element, and how far others of the row may be below it.
constexpr int kTop = 14, kSpan = 28, kLargest = 45;
constexpr float kLow = 2048, kOverLow = 1.0f / 2048;

// One operand: rows along k.
struct Ranges {
  Source<float> x;
  int64_t rows, k, blocks;  // blocks of one problem
  float* scales;            // of the first problem
  bool k_major;
};

struct Operands {
  Ranges of[2];
};

// The bits of the largest size, and those of the smallest that is not 0 minus 1, which makes 0 the largest number.
struct Range {
  uint32_t most = 0, least = 0xffffffffu;
  SIMT_DEVICE void add(float x) { add(Range{simt::to_bits(x) & 0x7fffffffu, (simt::to_bits(x) & 0x7fffffffu) - 1}); }
  SIMT_DEVICE void add(const Range& other) {
    most = other.most > most ? other.most : most;
    least = other.least < least ? other.least : least;
  }
  SIMT_DEVICE float scale() const {
    if (most == 0) return 1;
    const int high = static_cast<int>(most >> 23), low = static_cast<int>((least + 1) >> 23), exponent = high - 127;
    if (high == 255 || exponent > kLargest || exponent < -kLargest || high - low > kSpan) return 0;
    return simt::from_bits(static_cast<uint32_t>(127 + kTop - exponent) << 23);
  }
};

SIMT_KERNEL(kThreads)
void ranges_kernel(Operands both, int64_t batch, int64_t scales_bs) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(uint32_t, most, kThreads);
  SIMT_SHARED(uint32_t, least, kThreads);
  const int64_t index = simt::block().x, first = both.of[0].blocks * batch;
  const int which = index >= first ? 1 : 0;
  const Ranges& own = both.of[which];
  const int64_t block = which ? index - first : index, problem = block / own.blocks;
  const Source<float> x = own.x[problem];
  float* const scales = own.scales + problem * scales_bs;
  Range range;
  if (own.k_major) {
    const int64_t i = block % own.blocks;
#pragma unroll 4
    for (int64_t k = simt::thread(); k < own.k; k += kThreads) range.add(x(i, k));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      range.add(Range{simt::shuffle_xor(range.most, mask), simt::shuffle_xor(range.least, mask)});
    }
    if (simt::lane() == 0) {
      simt::put(most + simt::warp(), range.most);
      simt::put(least + simt::warp(), range.least);
    }
    simt::barrier();
    if (simt::thread() != 0) return;
    for (int w = 1; w < kThreads / 32; ++w) range.add(Range{simt::get(most + w), simt::get(least + w)});
    scales[i] = range.scale();
    return;
  }
  const int64_t i = block % own.blocks * 32 + simt::lane();
  if (i < own.rows)
#pragma unroll 4
    for (int64_t k = simt::warp(); k < own.k; k += kThreads / 32) range.add(x(i, k));
  simt::put(most + simt::thread(), range.most);
  simt::put(least + simt::thread(), range.least);
  simt::barrier();
  if (simt::warp() != 0 || i >= own.rows) return;
  for (int w = 1; w < kThreads / 32; ++w) {
    const int place = w * 32 + simt::lane();
    range.add(Range{simt::get(most + place), simt::get(least + place)});
  }
  simt::store(scales + i, range.scale());
}

// One stage of floats per step of k, and two steps; two stages of halves, h before l.
constexpr int kSteps = Stage<float, kSize, true>::kSteps, kPart = kSteps / 2;
constexpr int kFloatBytes = kStageBytes<kSize, kBytesOfK<float, kSize>>,
              kHalfBytes = kStageBytes<kSize, kBytesOfK<Half, kSize>>;
constexpr int kFloats = kFloatBytes / 4, kHalves = kHalfBytes / 2;
constexpr int kBytes = 2 * 2 * kFloatBytes + 2 * 2 * 2 * kHalfBytes;

// Scales and splits one operand's stages. Each half of the block has one operand: one code for both, and for both
// layouts, since an instruction cache is small. A thread has four lines of four neighbours each.
class Splitter {
  static constexpr int kHalf = kThreads / 2, kLines = 4;

 public:
  // scales: of the tile's first row; rows: how many exist; second: of the two operands.
  SIMT_DEVICE Splitter(bool k_major, const float* scales, int64_t rows, bool second) {
    const int t = simt::thread() % kHalf, first = k_major ? t / 4 : t / 32, along = k_major ? t % 4 * 4 : t % 32 * 4;
    const int pitch = k_major ? Stage<float, kSize, true>::kPitch : Stage<float, kSize, false>::kPitch;
    const int half_pitch = k_major ? Stage<Half, kSize, true>::kPitch : Stage<Half, kSize, false>::kPitch;
    const int step = k_major ? kHalf / 4 : kHalf / 32;
    from = (second ? kFloats : 0) + first * pitch + along;
    to = (second ? 2 * kHalves : 0) + first * half_pitch + along;
    part = k_major ? kPart : kPart * pitch;
    from_step = step * pitch;
    to_step = step * half_pitch;
    low = k_major ? 16 : 16 * half_pitch;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int row = k_major ? first + i * step : along + i;
      scales_of[i] = simt::load_if(row < rows, scales + row, 1.0f);
    }
    by_line = k_major;
  }
  // Splits half `which` of a step.
  SIMT_DEVICE void run(const float* floats, int which, uint16_t* halves) const {
    floats += which * part;
    halves += which * kHalves;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const auto x = simt::get_vector<4>(floats + from + i * from_step);
      simt::Vector<uint32_t, 2> high, rest;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float first = x.v[2 * e] * (by_line ? scales_of[i] : scales_of[2 * e]);
        const float next = x.v[2 * e + 1] * (by_line ? scales_of[i] : scales_of[2 * e + 1]);
        const uint32_t h = simt::to_halves(first, next);
        high.v[e] = h;
        rest.v[e] = simt::to_halves((first - simt::widen(static_cast<uint16_t>(h), true)) * kLow,
                                    (next - simt::widen(static_cast<uint16_t>(h >> 16), true)) * kLow);
      }
      uint16_t* const place = halves + to + i * to_step;
      simt::put_vector<2>(reinterpret_cast<uint32_t*>(place), high);
      simt::put_vector<2>(reinterpret_cast<uint32_t*>(place + low), rest);
    }
  }

 private:
  int from, to, from_step, to_step, low, part;
  float scales_of[kLines];  // of its lines if by_line, else of its places along them
  bool by_line;
};

// The product of 32 k, of this warp: high parts are added to sums, and the products of high with low parts to cross. As
// for TF32, sums of 16 k start at zero and are then added in float. cross is smaller by 2^11 in the end, so that what a
// tensor core truncates there does not show.
template <bool AMajor, bool BMajor>
SIMT_DEVICE void multiply_halves(const Half* own_a, const Half* own_b, float (&sums)[4][4][4],
                                 float (&cross)[4][4][4]) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t a[4][4], high[4][2], low[4][2];
    load_b<Half, kSize, BMajor>(own_b + step * kHalves, 0, high);
    load_a<Half, kSize, AMajor>(own_a + step * kHalves, 1, a);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_f16(cross[i][j], a[i], high[j]);
    load_a<Half, kSize, AMajor>(own_a + step * kHalves, 0, a);
    load_b<Half, kSize, BMajor>(own_b + step * kHalves, 1, low);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float fresh[4][4] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_f16(fresh[j], a[i], high[j]);
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_f16(cross[i][j], a[i], low[j]);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[j][e];
    }
  }
}

// 1 over the scale of a row, a power of two.
SIMT_DEVICE float over_scale(const float* scales, int row, int rows) {
  return simt::from_bits((254u << 23) - simt::to_bits(simt::load_if(row < rows, scales + row, 1.0f)));
}
// Each thread has four columns. The product of two scales is in range.
template <int Pitch>
SIMT_DEVICE void undo_scales(float* tile, const float* a_scales, int rows, const float* b_scales, int columns) {
  const int column = simt::thread() % 32 * 4;
  float of_column[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) of_column[e] = over_scale(b_scales, column + e, columns);
#pragma unroll 1
  for (int row = simt::warp(); row < kSize; row += kThreads / 32) {
    const float of_row = over_scale(a_scales, row, rows);
    auto v = simt::get_vector<4>(tile + row * Pitch + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) v.v[e] *= of_row * of_column[e];
    simt::put_vector<4>(tile + row * Pitch + column, v);
  }
}

// The scales of a tile's rows, or of its columns.
SIMT_DEVICE const float* scales_of(const Product<float>& p, const Part& part, bool columns) {
  return p.scales + part.b * (p.m + p.n) + (columns ? p.m + part.column : part.row);
}

template <bool AMajor, bool BMajor>
SIMT_KERNEL_MIN(kThreads, 1)
void halves_kernel(Product<float> p, Tiling tiling) {
  simt::wait_for_earlier_launches();
  Part part;
  if (!find_part<kSize>(p, tiling, static_cast<int>(simt::block().x), part)) return;
  if (!has_scales(p, part)) return;
  simt::Shared shared;
  float* const floats = shared.take<float>(4 * kFloats);
  Half* const halves = reinterpret_cast<Half*>(shared.take<uint16_t>(8 * kHalves));
  int left = simt::uniform(static_cast<int>(part.k_end - part.k_begin)), ahead = left;  // k to split, k to load
  Loader<float, kSize, true> a, b;
  a.start(AMajor, p.a[part.b], part.row, p.m, part.k_begin, left, true);
  b.start(BMajor, p.b[part.b].t(), part.column, p.n, part.k_begin, left, true);
  const bool of_a = simt::thread() < kThreads / 2;  // the first half of the block splits a, the other one b
  const Splitter splitter(of_a ? AMajor : BMajor, scales_of(p, part, !of_a), of_a ? p.m - part.row : p.n - part.column,
                          !of_a);
  float sums[4][4][4] = {}, cross[4][4][4] = {};
  const bool works = Shape<kSize>::warp_row() < p.m - part.row && Shape<kSize>::warp_column() < p.n - part.column;
  const int own_a = place_in_a<Half, kSize, AMajor>(), own_b = place_in_b<Half, kSize, BMajor>();

  // Per turn: load step turn + 1, split step turn, multiply step turn - 1. Steps are in two places in turn, a's stages
  // before b's.
#pragma unroll 1
  for (int turn = -1; left > -kSteps; ++turn) {
    simt::copy_wait<0>();
    simt::barrier();
    float* const next = floats + (turn & 1 ? 0 : 2 * kFloats);
    if (ahead > 0) {
      a.load(AMajor, next, ahead);
      b.load(BMajor, next + kFloats, ahead);
    }
    simt::copy_commit();
    ahead -= kSteps;
    if (turn < 0) continue;
    Half* const split = halves + (turn & 1 ? 4 * kHalves : 0);
    const Half* const ready = halves + (turn & 1 ? 0 : 4 * kHalves);
    if (left > 0) {
      const float* const loaded = floats + (turn & 1 ? 2 * kFloats : 0);
#pragma unroll 1
      for (int half = 0; half < 2; ++half) splitter.run(loaded, half, reinterpret_cast<uint16_t*>(split));
    }
    if (turn > 0 && works) multiply_halves<AMajor, BMajor>(ready + own_a, ready + 2 * kHalves + own_b, sums, cross);
    left -= kSteps;
  }

#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] += cross[i][j][e] * kOverLow;
  float* const tile = floats;
  // Computed once more, since the product needs all registers.
  find_part<kSize>(p, tiling, simt::unknown(static_cast<int>(simt::block().x)), part);
  simt::barrier();
  const bool finite = put_sums<Half, kSize>(sums, tile, AMajor, BMajor);
  simt::barrier();
  undo_scales<kTilePitch<Half, kSize>>(tile, scales_of(p, part, false), static_cast<int>(p.m - part.row),
                                       scales_of(p, part, true), static_cast<int>(p.n - part.column));
  TileFinish<kThreads, kSize, kTilePitch<Half, kSize>, float>(p, tiling, part, tile).run(!finite);
}

Ranges ranges_of(const Source<float>& x, int64_t rows, int64_t k, float* scales) {
  const bool k_major = x.cs == 1 || x.rs != 1;
  return {x, rows, k, k_major ? rows : (rows + 31) / 32, scales, k_major};
}

}  // namespace

void product_halves(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  const Ranges ranges_a = ranges_of(p.a, p.m, p.k, p.scales), ranges_b = ranges_of(p.b.t(), p.n, p.k, p.scales + p.m);
  simt::launch(&ranges_kernel, {static_cast<unsigned>((ranges_a.blocks + ranges_b.blocks) * p.batch)}, kThreads, 0,
               stream, Operands{{ranges_a, ranges_b}}, p.batch, p.m + p.n);
  const OperandLayout a = layout_of(p.a, 16), b = layout_of(p.b.t(), 16);
  auto* const kernel = a.k_major ? (b.k_major ? &halves_kernel<true, true> : &halves_kernel<true, false>)
                                 : (b.k_major ? &halves_kernel<false, true> : &halves_kernel<false, false>);
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads, kBytes, stream, p,
               tiling);
}

int halves_bytes() { return kBytes; }

}  // namespace ssdd::cuda

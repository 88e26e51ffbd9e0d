// Products on the tensor cores with at least one operand of 16-bit floats that product_half.cu does not support: one
// operand is of floats, the two are of different types, or their rows are not aligned to 16 bytes.
//
// Mapping: as in product_tensor.cu with tiles of 64 x 64. 16-bit operands are loaded into registers (NarrowLoader) and
// widened when they are stored to shared memory. Of the three products of two TF32 numbers each, only those are
// computed whose operands have a small part: two if one operand is 16 bits wide, one if both are, which is exact.
// Traffic: as in product_tensor.cu, half of it for a 16-bit operand. FLOPs: 2 m n k for each of the one or two
// products.
// Floor on an H100: 2 m n k / 312 TF/s for each product through mma.sync.
// Other path: product_half.cu, and product_plain.cu for k < 48 and distances.
#include "finish_tile.cuh"
#include "tile_tensor.cuh"

namespace ssdd::cuda {
namespace {

using namespace tensor;

template <bool AMajor, bool BMajor, bool ANarrow, bool BNarrow>
SIMT_KERNEL_MIN(kThreads, 3)
void mixed_kernel(Product<float> p, Tiling tiling, bool a_vectors, bool b_vectors) {
  simt::wait_for_earlier_launches();
  Part part;
  if (!find_part<kTile>(p, tiling, static_cast<int>(simt::block().x), part)) return;
  simt::Shared shared;
  float* const a_stages = shared.take<float>(2 * kStages * kStage);
  float* const b_stages = a_stages + kStages * kStage;
  AnyLoader<AMajor, ANarrow> a(p.a[part.b], part.row, p.m, part.k_begin, a_vectors);
  AnyLoader<BMajor, BNarrow> b(p.b[part.b].t(), part.column, p.n, part.k_begin, b_vectors);
  const int row = simt::warp() / 2 * 32, column = simt::warp() % 2 * 32;
  float sums[2][4][4] = {};

  int left = static_cast<int>(part.k_end - part.k_begin), ahead = left;  // k to multiply, k to load
  // Each iteration fills a stage and, once all others are full, multiplies the oldest one. Loads into registers are in
  // flight during the product.
  int slot = 0, fill = 0;
#pragma unroll 1
  for (int turn = 1 - kStages; left > 0; ++turn) {
    if (turn >= 0) {
      simt::copy_wait<kStages - 2>();
      simt::barrier();
    }
    if (ahead > 0) {
      a.load(a_stages + fill, ahead);
      a.fetch(ahead);
      b.load(b_stages + fill, ahead);
      b.fetch(ahead);
    }
    simt::copy_commit();
    if (turn >= 0) {
      multiply<AMajor, BMajor, ANarrow, BNarrow>(a_stages + slot, b_stages + slot, row, column, sums);
      left -= kDepth;
      slot = slot + kStage == kStages * kStage ? 0 : slot + kStage;
    }
    if (ahead > 0) {
      a.store(a_stages + fill);
      b.store(b_stages + fill);
    }
    ahead -= kDepth;
    fill = fill + kStage == kStages * kStage ? 0 : fill + kStage;
  }

  // All stages have been read: the tile reuses their memory.
  constexpr int kPitch = kTile + 8;
  static_assert(kTile * kPitch <= 2 * kStages * kStage, "the tile fits the stages");
  simt::barrier();
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float zero = 0;  // NaN if a sum is not finite
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const simt::Vector<float, 2> v{{sums[i][j][2 * h], sums[i][j][2 * h + 1]}};
        simt::put_vector<2>(a_stages + (row + i * 16 + h * 8 + g) * kPitch + column + j * 8 + 2 * t, v);
        zero += v.v[0] * 0.0f + v.v[1] * 0.0f;
      }
  TileFinish<kThreads, kTile, kPitch, float>(p, tiling, part, a_stages).run(!(zero == 0));
}

using Kernel = void (*)(Product<float>, Tiling, bool, bool);
template <bool ANarrow, bool BNarrow>
Kernel kernel_for(bool a_major, bool b_major) {
  return a_major
             ? (b_major ? &mixed_kernel<true, true, ANarrow, BNarrow> : &mixed_kernel<true, false, ANarrow, BNarrow>)
             : (b_major ? &mixed_kernel<false, true, ANarrow, BNarrow> : &mixed_kernel<false, false, ANarrow, BNarrow>);
}

}  // namespace

void product_mixed(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  const bool a_narrow = p.a.element != Element::own, b_narrow = p.b.element != Element::own;
  // Four elements at a time.
  const OperandLayout a = layout_of(p.a, a_narrow ? 8 : 16), b = layout_of(p.b.t(), b_narrow ? 8 : 16);
  const Kernel kernel = a_narrow ? (b_narrow ? kernel_for<true, true>(a.k_major, b.k_major)
                                             : kernel_for<true, false>(a.k_major, b.k_major))
                                 : kernel_for<false, true>(a.k_major, b.k_major);
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads,
               2 * kStages * kStage * static_cast<int>(sizeof(float)), stream, p, tiling, a.aligned, b.aligned);
}

}  // namespace ssdd::cuda

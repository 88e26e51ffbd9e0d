// float products on the tensor cores, at fp32 accuracy. Each operand is split into two TF32 numbers, x = big + small,
// and three products small big + big small + big big are summed. A tensor core truncates its sums toward zero. They are
// therefore promoted: every 16 steps of k the fragment is added to fp32 registers and starts at zero again.
//
// Mapping: one block per tile; products m16n8k8. Tiles are 128 x 128 with 8 warps of 64 x 32 if these fill the chip,
// else 64 x 64 with 4 warps of 32 x 32. k is loaded through stages of cp.async: 2 of 32 k for the large tile, 4 of 16 k
// for the small one. Copies are of 16 bytes if an operand is aligned, else of 4 (any stride, any D). A stage holds an
// operand in its layout in memory (tile_matrix.cuh). Fragments are loaded by ldmatrix if k is the direction of unit
// stride, else four neighbouring rows at a time, without bank conflicts.
// One launch may compute two independent products in small tiles: K_ss beside K_qs needs no launch of its own. Warps
// whose part of a tile is outside of the matrix take part in loads and barriers, and multiply nothing. If there are few
// tiles and k is long, k is split between blocks; the last block to finish a tile adds the parts (finish_tile.cuh).
// Traffic per tile: 2 x Size k floats read, Size^2 written; per product (2 / Size) m n k 4 bytes from L2, and the
// operands once from memory. FLOPs: 3 x 2 m n k on the tensor cores.
// Floor on an H100: 6 m n k / 495 TF/s at the data sheet's rate (165 TF/s of fp32 products), about 104 TF/s through
// mma.sync. Per 16 k a warp of the large tile issues 96 products, 144 instructions that split, 64 that promote, 8 to 12
// loads of fragments and half a turn of the outer loop, 360 in all (232 cycles of the integer units); one product
// occupies its tensor core for about six issues.
// Code: one kernel per size of tiles, for all layouts of the operands. It has three copies of the product: A with k and B
// with rows along the unit stride is computed as B^T A^T, whose tile is turned when it is written to shared memory.
// Error in the twin's rounding, which truncates every addend as a chip does: at most twice that of fp32 sums in order.
// Other path: product_plain.cu for k < 48, for which the rounding to two TF32 numbers would show more, for double and
// for distances; product_half.cu and product_mixed.cu for 16-bit operands.
#include "tile_matrix.cuh"

namespace ssdd::cuda {
namespace {

using namespace matrix;

template <int Size>
SIMT_KERNEL_MIN(Shape<Size>::kThreads, Size == 128 ? 1 : 3)
void tensor_kernel(Pair pair, AnyLayout layout) {
  simt::wait_for_earlier_launches();
  const int block = static_cast<int>(simt::block().x),
            first = pair.tiling[0].tiles * pair.tiling[0].splits * static_cast<int>(pair.p[0].batch);
  const int which = Size == kTile && block >= first ? 1 : 0;  // large tiles are for single products
  make_tile<float, Size>(pair.p[which], pair.tiling[which], which ? block - first : block, layout,
                         pair.a_vectors[which], pair.b_vectors[which]);
}

template <int Size>
void run(const Pair& pair, const AnyLayout& layout, simt::Stream stream) {
  simt::launch(&tensor_kernel<Size>, {static_cast<unsigned>(pair.blocks(0) + pair.blocks(1))}, Shape<Size>::kThreads,
               kSharedBytes<float, Size>, stream, pair, layout);
}

}  // namespace

void product_tensor(Pair pair, simt::Stream stream) {
  for (int i = 0; i < pair.count; ++i) {
    pair.a_vectors[i] = layout_of(pair.p[i].a, 16).aligned;
    pair.b_vectors[i] = layout_of(pair.p[i].b.t(), 16).aligned;
  }
  const bool a_major = layout_of(pair.p[0].a, 16).k_major, b_major = layout_of(pair.p[0].b.t(), 16).k_major;
  const AnyLayout layout{a_major, b_major};
  if (pair.tiling[0].size == kLargeTile)
    run<kLargeTile>(pair, layout, stream);
  else
    run<kTile>(pair, layout, stream);
}

}  // namespace ssdd::cuda

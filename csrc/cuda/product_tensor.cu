// float products on the tensor cores, at the accuracy of fp32: each operand is split into two TF32 numbers, x = big + small,
// and three products small big + big small + big big are summed. A tensor core cuts its sums toward zero, so they are
// promoted: every 16 steps of k the fragment is added to fp32 registers and starts at zero again.
//
// Mapping: a block makes a tile, of 128 x 128 with 8 warps of 64 x 32 each where that fills the chip, else of 64 x 64 with 4
// warps of 32 x 32; products m16n8k8. k in steps of 16 through 4 stages of cp.async: 16 bytes a copy where an operand is aligned
// for it, 4 otherwise (any stride, any D). A stage holds an operand as it lies in memory (tile_matrix.cuh); fragments come by
// ldmatrix where k is the direction of unit stride, else four neighbouring rows at a time, and meet in no bank.
// Traffic of a tile: 2 x Size k floats read, Size^2 written; of the product: (2 / Size) m n k 4 bytes from L2, operands once from
// memory. FLOPs: 3 x 2 m n k on the tensor cores; floor on an H100: 6 m n k / 495 TF/s at the data sheet's rate (165 TF/s of fp32
// products), about 104 TF/s through mma.sync. The large tile's warp issues, for 16 k, 96 products, 144 instructions that split,
// 64 that promote and 8 to 12 loads of fragments, 400 in all; a product keeps its tensor core busy for about six issues.
// A launch may make two products that do not need each other, of small tiles: K_ss beside K_qs costs no launch of its own.
// Warps whose part of a tile is outside of the matrix load and wait with the others, and multiply nothing.
// Few tiles with a long k are split between blocks, of which the last to finish a tile adds the others' sums (finish_tile.cuh).
// Error in the twin's rounding, which cuts every addend as a chip does: at most twice that of fp32 sums one after the other.
// Other path: product_plain.cu for k < 48, where the rounding to two TF32 numbers would show more, for double and distances;
// product_half.cu and product_mixed.cu for 16-bit operands.
#include "tile_matrix.cuh"

namespace ssdd::cuda {
namespace {

using namespace matrix;

template <int Size, bool AMajor, bool BMajor>
SIMT_KERNEL_MIN(Shape<Size>::kThreads, Size == 128 ? 1 : 3)
void tensor_kernel(Pair pair) {
  const int block = static_cast<int>(simt::block().x),
            first = pair.tiling[0].tiles * pair.tiling[0].splits * static_cast<int>(pair.p[0].batch);
  const int which = Size == kTile && block >= first ? 1 : 0;  // a large tile is for one product
  make_tile<float, Size, AMajor, BMajor>(pair.p[which], pair.tiling[which], which ? block - first : block,
                                         pair.a_vectors[which], pair.b_vectors[which]);
}

template <int Size>
void run(const Pair& pair, bool a_major, bool b_major, simt::Stream stream) {
  auto* const kernel = a_major ? (b_major ? &tensor_kernel<Size, true, true> : &tensor_kernel<Size, true, false>)
                               : (b_major ? &tensor_kernel<Size, false, true> : &tensor_kernel<Size, false, false>);
  simt::launch(kernel, {static_cast<unsigned>(pair.blocks(0) + pair.blocks(1))}, Shape<Size>::kThreads,
               kSharedBytes<Size>, stream, pair);
}

}  // namespace

void product_tensor(Pair pair, simt::Stream stream) {
  for (int i = 0; i < pair.count; ++i) {
    pair.a_vectors[i] = lie_of(pair.p[i].a, 16).aligned;
    pair.b_vectors[i] = lie_of(pair.p[i].b.t(), 16).aligned;
  }
  const bool a_major = lie_of(pair.p[0].a, 16).k_major, b_major = lie_of(pair.p[0].b.t(), 16).k_major;
  if (pair.tiling[0].size == kLargeTile)
    run<kLargeTile>(pair, a_major, b_major, stream);
  else
    run<kTile>(pair, a_major, b_major, stream);
}

}  // namespace ssdd::cuda

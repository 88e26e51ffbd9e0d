// Products of two operands of the same 16-bit type, both aligned to 16 bytes. The tensor cores multiply them directly
// and add in float, so that every product is exact. Sums are promoted to fp32 registers every 32 steps of k, for the
// reason in product_tensor.cu.
//
// Mapping: as in product_tensor.cu, with products m16n8k16 and 4 stages of 32 k for both tiles. Copies go to shared
// memory without registers between. Fragments are loaded by ldmatrix, transposed if k is not the direction of
// unit stride.
// Traffic per tile: 2 x Size k elements of 2 bytes read, Size^2 floats written. FLOPs: 2 m n k.
// Floor on an H100: 2 m n k / 620 TF/s through mma.sync (989 at the data sheet's rate), or (2 / Size) m n k 2 bytes /
// 5.5 TB/s from L2, which is 350 TF/s at Size 128. Per 32 k a warp of the large tile issues 32 products, 64
// instructions that promote and 12 loads of fragments.
// Other path: product_mixed.cu if the types differ or rows are not aligned, product_plain.cu for k < 48 and distances.
#include "tile_matrix.cuh"

namespace ssdd::cuda {
namespace {

using namespace matrix;

template <class E, int Size, bool AMajor, bool BMajor>
SIMT_KERNEL_MIN(Shape<Size>::kThreads, Size == 128 ? 1 : 3)
void half_kernel(Product<float> p, Tiling tiling) {
  simt::wait_for_earlier_launches();
  make_tile<E, Size>(p, tiling, static_cast<int>(simt::block().x), KnownLayout<AMajor, BMajor>{}, true, true);
}

template <class E, int Size>
void run(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  const OperandLayout a = layout_of(p.a, 16), b = layout_of(p.b.t(), 16);
  auto* const kernel = a.k_major
                           ? (b.k_major ? &half_kernel<E, Size, true, true> : &half_kernel<E, Size, true, false>)
                           : (b.k_major ? &half_kernel<E, Size, false, true> : &half_kernel<E, Size, false, false>);
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, Shape<Size>::kThreads,
               kSharedBytes<E, Size>, stream, p, tiling);
}

template <class E>
void run_sized(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  if (tiling.size == kLargeTile)
    run<E, kLargeTile>(p, tiling, stream);
  else
    run<E, kTile>(p, tiling, stream);
}

}  // namespace

void product_half(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  if (p.a.element == Element::f16)
    run_sized<Half>(p, tiling, stream);
  else
    run_sized<Bf16>(p, tiling, stream);
}

}  // namespace ssdd::cuda

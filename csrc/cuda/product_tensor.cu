// float products on the tensor cores, at the accuracy of fp32: each operand is split into two TF32 numbers, x = big + small,
// and three products small big + big small + big big are summed. A tensor core cuts its sums toward zero, so they are
// promoted: every 16 steps of k the fragment is added to fp32 registers and starts at zero again.
//
// Mapping: a block of 4 warps makes a tile of 64 x 64, each warp 32 x 32 as 2 x 4 products m16n8k8. k in steps of 16
// through 4 stages of cp.async: 16 bytes a copy where an operand is aligned for it, 4 otherwise (any stride, any D).
// A stage holds an operand as it lies in memory, [row][k] with a pitch of 20 or [k][row] with a pitch of 72: with both, the
// 32 lanes of a fragment load fall into 32 banks.
// Traffic of a tile: 2 x 64 k floats read, 64 x 64 written; of the product: (1/64 + 1/64) m n k 4 bytes from L2, operands
// once from memory. FLOPs: 3 x 2 m n k on the tensor cores; floor on an H100: 6 m n k / 495 TF/s at the data sheet's rate
// (165 TF/s of fp32 products), about 104 TF/s through mma.sync. 24 products a warp and step against 16 loads of 128 bytes.
// Few tiles with a long k are split between blocks, of which the last to finish a tile adds the others' sums (join.cuh).
// Error in the twin's rounding, beside fp32 sums one after the other: 1.8 times at k = 48, 1.2 at 128, 0.5 at 1,000.
// 16-bit features (NarrowLoader) are read as they are and widened on the way to shared memory: half the traffic, and of the three
// products only those whose operands have a small part: one pass where both are 16 bits wide, exact, two where one is.
// Other path: product_plain.cu for k < 48, where the rounding to two TF32 numbers would show more, for double and distances.
#include "join.cuh"
#include "tile_tensor.cuh"

namespace ssdd::cuda {
namespace {

using namespace tensor;

template <bool AMajor, bool BMajor, bool ANarrow, bool BNarrow>
SIMT_KERNEL_MIN(kThreads, 3) tensor_kernel(Product<float> p, Tiling tiling, bool a_vectors, bool b_vectors) {
  Part part;
  if (!find_part(p, tiling, part)) return;
  simt::Shared shared;
  float* const a_stages = shared.take<float>(kStages * kStage);
  float* const b_stages = shared.take<float>(kStages * kStage);
  AnyLoader<AMajor, ANarrow> a(p.a[part.b], part.row, p.m, part.k_begin, a_vectors);
  AnyLoader<BMajor, BNarrow> b(p.b[part.b].t(), part.column, p.n, part.k_begin, b_vectors);
  const int row = simt::warp() / 2 * 32, column = simt::warp() % 2 * 32;
  float sums[2][4][4] = {};

  int left = static_cast<int>(part.k_end - part.k_begin), ahead = left;  // k to multiply, k to load
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s, ahead -= kDepth) {
    if (ahead > 0) {
      a.load(a_stages + s * kStage, ahead), a.fetch(ahead), a.store(a_stages + s * kStage);
      b.load(b_stages + s * kStage, ahead), b.fetch(ahead), b.store(b_stages + s * kStage);
    }
    simt::copy_commit();
  }
  int slot = 0, fill = (kStages - 1) * kStage;
#pragma unroll 1
  for (; left > 0; left -= kDepth, ahead -= kDepth) {
    simt::copy_wait<kStages - 2>();
    simt::barrier();
    if (ahead > 0) {
      a.load(a_stages + fill, ahead), a.fetch(ahead);
      b.load(b_stages + fill, ahead), b.fetch(ahead);
    }
    simt::copy_commit();
    multiply<AMajor, BMajor, ANarrow, BNarrow>(a_stages + slot, b_stages + slot, row, column, sums);
    if (ahead > 0) a.store(a_stages + fill), b.store(b_stages + fill);
    slot = slot + kStage == kStages * kStage ? 0 : slot + kStage;
    fill = fill + kStage == kStages * kStage ? 0 : fill + kStage;
  }

  const int g = simt::lane() / 4, t = simt::lane() % 4;
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        f(i * 4 + j, sums[i][j], part.row + row + i * 16 + g, part.column + column + j * 8 + 2 * t);
  };
  if (tiling.splits > 1 && !join_splits<kThreads>(p, tiling, part, each)) return;
  const Finish<float> finish(p, part.b);
  each([&](int, const float(&four)[4], int64_t r, int64_t c) {
    const float upper[2] = {four[0], four[1]}, lower[2] = {four[2], four[3]};
    finish.put_row(r, c, upper);
    finish.put_row(r + 8, c, lower);
  });
  if (!p.squares.out) return;
  add_squares<kThreads>(p, part, [&](const auto& f) {
    each([&](int, const float(&)[4], int64_t r, int64_t c) { f(r, c), f(r, c + 1), f(r + 8, c), f(r + 8, c + 1); });
  });
}

// Whether copies of four neighbours along the direction of unit stride are aligned for every row and problem.
bool aligned(const Source<float>& x, int64_t outer_stride) {
  const uintptr_t bytes = x.element == Element::own ? 16 : 8;
  return reinterpret_cast<uintptr_t>(x.p) % bytes == 0 && outer_stride % 4 == 0 && x.bs % 4 == 0;
}

using Kernel = void (*)(Product<float>, Tiling, bool, bool);
template <bool ANarrow, bool BNarrow>
Kernel kernel_for(bool a_major, bool b_major) {
  return a_major ? (b_major ? &tensor_kernel<true, true, ANarrow, BNarrow> : &tensor_kernel<true, false, ANarrow, BNarrow>)
                 : (b_major ? &tensor_kernel<false, true, ANarrow, BNarrow> : &tensor_kernel<false, false, ANarrow, BNarrow>);
}

}  // namespace

void product_tensor(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  const bool a_major = p.a.cs == 1 || p.a.rs != 1, b_major = p.b.rs == 1 || p.b.cs != 1;
  const bool a_vectors = (a_major ? p.a.cs : p.a.rs) == 1 && aligned(p.a, a_major ? p.a.rs : p.a.cs);
  const bool b_vectors = (b_major ? p.b.rs : p.b.cs) == 1 && aligned(p.b, b_major ? p.b.cs : p.b.rs);
  const bool a_narrow = p.a.element != Element::own, b_narrow = p.b.element != Element::own;
  const Kernel kernel = a_narrow ? (b_narrow ? kernel_for<true, true>(a_major, b_major) : kernel_for<true, false>(a_major, b_major))
                                 : (b_narrow ? kernel_for<false, true>(a_major, b_major) : kernel_for<false, false>(a_major, b_major));
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads,
               2 * kStages * kStage * static_cast<int>(sizeof(float)), stream, p, tiling, a_vectors, b_vectors);
}

}  // namespace ssdd::cuda

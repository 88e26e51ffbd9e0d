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
// Error in the twin's rounding, beside fp32 sums one after the other: 1.8 times at k = 48, 1.2 at 128, 0.5 at 1,000.
// Other path: product_plain.cu for k < 48, where the rounding to two TF32 numbers would show more, for double and distances.
#include "product.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 128, kStages = 4, kRowPitch = kDepth + 4, kColumnPitch = kTile + 8;
constexpr int kStage = kTile * kRowPitch;  // floats of one operand's stage: the larger of both layouts
static_assert(kDepth * kColumnPitch <= kStage, "a stage holds either layout");

SIMT_DEVICE int clamp_bytes(int64_t floats) {
  return floats <= 0 ? 0 : floats >= 4 ? 16 : static_cast<int>(floats) * 4;
}

// Brings [64 rows] x [16 k] of one operand into a stage. KMajor: k is the direction of unit stride.
template <bool KMajor>
struct Loader {
  const float* base;     // element (first row, k = 0)
  int64_t row_stride, k_stride, rows;  // rows: how many of the 64 exist
  bool vectors;

  SIMT_DEVICE Loader(View<const float> view, int64_t row, int64_t all_rows, bool aligned)
      : base(view.p + row * view.rs), row_stride(view.rs), k_stride(view.cs), rows(all_rows - row), vectors(aligned) {}

  SIMT_DEVICE void load(float* stage, int64_t k, int64_t k_end) const {
    const int t = simt::thread();
    if (vectors) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int outer = KMajor ? t / 4 + 32 * r : t / 16 + 8 * r, inner = KMajor ? t % 4 * 4 : t % 16 * 4;
        const int row = KMajor ? outer : inner, step = KMajor ? inner : outer;
        const int bytes = KMajor ? (row < rows ? clamp_bytes(k_end - k - step) : 0)
                                 : (k + step < k_end ? clamp_bytes(rows - row) : 0);
        const float* from = base + row * row_stride + (k + step) * k_stride;
        simt::copy_async<16>(stage + outer * (KMajor ? kRowPitch : kColumnPitch) + inner, bytes ? from : base, bytes);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int row = KMajor ? t / 16 + 8 * r : t % 64, step = KMajor ? t % 16 : t / 64 + 2 * r;
        const bool exists = row < rows && k + step < k_end;
        const float* from = base + row * row_stride + (k + step) * k_stride;
        simt::copy_async<4>(stage + (KMajor ? row * kRowPitch + step : step * kColumnPitch + row), exists ? from : base,
                            exists ? 4 : 0);
      }
    }
  }
};

template <bool KMajor>
SIMT_DEVICE float element(const float* stage, int row, int k) {
  return simt::get(stage + (KMajor ? row * kRowPitch + k : k * kColumnPitch + row));
}

SIMT_DEVICE void split(float x, uint32_t& big, uint32_t& small) {
  big = simt::to_tf32(x);
  small = simt::to_tf32(x - simt::from_bits(big));
}

// sums += the 32 x 32 x 16 product of one warp and stage.
template <bool AMajor, bool BMajor>
SIMT_DEVICE void multiply(const float* a_stage, const float* b_stage, int row, int column, float (&sums)[2][4][4]) {
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float fresh[2][4][4] = {};
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    uint32_t a_big[2][4], a_small[2][4], b_big[4][2], b_small[4][2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        split(element<AMajor>(a_stage, row + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4), a_big[i][e], a_small[i][e]);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        split(element<BMajor>(b_stage, column + j * 8 + g, k + t + e * 4), b_big[j][e], b_small[j][e]);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_small[i], b_big[j]);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big[i], b_small[j]);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big[i], b_big[j]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[i][j][e];
}

template <bool AMajor, bool BMajor>
SIMT_KERNEL_MIN(kThreads, 3) tensor_kernel(Product<float> p, Tiling tiling, bool a_vectors, bool b_vectors) {
  Part part;
  if (!find_part(p, tiling, part)) return;
  simt::Shared shared;
  float* const a_stages = shared.take<float>(kStages * kStage);
  float* const b_stages = shared.take<float>(kStages * kStage);
  const Loader<AMajor> a(p.a[part.b], part.row, p.m, a_vectors);
  const Loader<BMajor> b(p.b[part.b].t(), part.column, p.n, b_vectors);
  const int row = simt::warp() / 2 * 32, column = simt::warp() % 2 * 32;
  float sums[2][4][4] = {};

  int64_t next = part.k_begin;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s, next += kDepth) {
    if (next < part.k_end) {
      a.load(a_stages + s * kStage, next, part.k_end);
      b.load(b_stages + s * kStage, next, part.k_end);
    }
    simt::copy_commit();
  }
  int slot = 0, fill = kStages - 1;
  for (int64_t k = part.k_begin; k < part.k_end; k += kDepth, next += kDepth) {
    simt::copy_wait<kStages - 2>();
    simt::barrier();
    if (next < part.k_end) {
      a.load(a_stages + fill * kStage, next, part.k_end);
      b.load(b_stages + fill * kStage, next, part.k_end);
    }
    simt::copy_commit();
    multiply<AMajor, BMajor>(a_stages + slot * kStage, b_stages + slot * kStage, row, column, sums);
    slot = slot + 1 == kStages ? 0 : slot + 1;
    fill = fill + 1 == kStages ? 0 : fill + 1;
  }

  const int g = simt::lane() / 4, t = simt::lane() % 4;
  const Finish<float> finish(p, part.b);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t r = part.row + row + i * 16 + g + half * 8, c = part.column + column + j * 8 + 2 * t;
        const float pair[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        if (tiling.splits > 1) {
          float* partial = partial_tile(p, part);
          if (finish.wanted(r, c)) simt::store(partial + r * p.n + c, pair[0]);
          if (finish.wanted(r, c + 1)) simt::store(partial + r * p.n + c + 1, pair[1]);
        } else {
          finish.put_row(r, c, pair);
        }
      }
}

// Whether 16-byte copies along the direction of unit stride are aligned for every row and problem.
bool aligned(const Batch<const float>& x, int64_t outer_stride) {
  return reinterpret_cast<uintptr_t>(x.p) % 16 == 0 && outer_stride % 4 == 0 && x.bs % 4 == 0;
}

}  // namespace

void product_tensor(const Product<float>& p, const Tiling& tiling, simt::Stream stream) {
  const bool a_major = p.a.cs == 1 || p.a.rs != 1, b_major = p.b.rs == 1 || p.b.cs != 1;
  const bool a_vectors = (a_major ? p.a.cs : p.a.rs) == 1 && aligned(p.a, a_major ? p.a.rs : p.a.cs);
  const bool b_vectors = (b_major ? p.b.rs : p.b.cs) == 1 && aligned(p.b, b_major ? p.b.cs : p.b.rs);
  auto* kernel = a_major ? (b_major ? &tensor_kernel<true, true> : &tensor_kernel<true, false>)
                         : (b_major ? &tensor_kernel<false, true> : &tensor_kernel<false, false>);
  simt::launch(kernel, {static_cast<unsigned>(tiling.tiles * tiling.splits * p.batch)}, kThreads,
               2 * kStages * kStage * static_cast<int>(sizeof(float)), stream, p, tiling, a_vectors, b_vectors);
}

}  // namespace ssdd::cuda

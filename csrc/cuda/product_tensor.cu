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

SIMT_DEVICE int clamp_bytes(int floats) { return floats <= 0 ? 0 : floats >= 4 ? 16 : floats * 4; }

// Brings [64 rows] x [16 k] of one operand into a stage, from the next 16 k at each call. KMajor: k is the direction of
// unit stride. A thread copies `kCopies` places along the other direction, so that its addresses are one cursor and a step.
template <bool KMajor>
struct Loader {
  const float* cursor;  // this thread's first place at the next k
  int64_t across, along;  // strides between its places, and to the next stage
  int place, row, step, rows;  // in the stage; of its first place; how many of the 64 rows exist
  bool vectors;

  SIMT_DEVICE Loader(View<const float> view, int64_t first_row, int64_t all_rows, int64_t k_begin, bool aligned)
      : vectors(aligned) {
    const int t = simt::thread();
    rows = all_rows - first_row < kTile ? static_cast<int>(all_rows - first_row) : kTile;
    if (vectors) {
      row = KMajor ? t / 4 : t % 16 * 4, step = KMajor ? t % 4 * 4 : t / 16;
      across = KMajor ? 32 * view.rs : 8 * view.cs;
    } else {
      row = KMajor ? t / 16 : t % 64, step = KMajor ? t % 16 : t / 64;
      across = KMajor ? 8 * view.rs : 2 * view.cs;
    }
    place = KMajor ? row * kRowPitch + step : step * kColumnPitch + row;
    cursor = view.p + (first_row + row) * view.rs + (k_begin + step) * view.cs;
    along = kDepth * view.cs;
  }

  // left: how many k there still are.
  SIMT_DEVICE void load(float* stage, int left) {
    if (vectors) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int outer = KMajor ? 32 * r : 8 * r;
        const int bytes = KMajor ? (row + outer < rows ? clamp_bytes(left - step) : 0)
                                 : (step + outer < left ? clamp_bytes(rows - row) : 0);
        simt::copy_async<16>(stage + place + outer * (KMajor ? kRowPitch : kColumnPitch), bytes ? cursor + r * across : cursor,
                             bytes);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int outer = KMajor ? 8 * r : 2 * r;
        const bool exists = KMajor ? row + outer < rows && step < left : row < rows && step + outer < left;
        simt::copy_async<4>(stage + place + outer * (KMajor ? kRowPitch : kColumnPitch), cursor + r * across, exists ? 4 : 0);
      }
    }
    cursor += along;
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
  Loader<AMajor> a(p.a[part.b], part.row, p.m, part.k_begin, a_vectors);
  Loader<BMajor> b(p.b[part.b].t(), part.column, p.n, part.k_begin, b_vectors);
  const int row = simt::warp() / 2 * 32, column = simt::warp() % 2 * 32;
  float sums[2][4][4] = {};

  int left = static_cast<int>(part.k_end - part.k_begin), ahead = left;  // k to multiply, k to load
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s, ahead -= kDepth) {
    if (ahead > 0) {
      a.load(a_stages + s * kStage, ahead);
      b.load(b_stages + s * kStage, ahead);
    }
    simt::copy_commit();
  }
  int slot = 0, fill = (kStages - 1) * kStage;
#pragma unroll 1
  for (; left > 0; left -= kDepth, ahead -= kDepth) {
    simt::copy_wait<kStages - 2>();
    simt::barrier();
    if (ahead > 0) {
      a.load(a_stages + fill, ahead);
      b.load(b_stages + fill, ahead);
    }
    simt::copy_commit();
    multiply<AMajor, BMajor>(a_stages + slot, b_stages + slot, row, column, sums);
    slot = slot + kStage == kStages * kStage ? 0 : slot + kStage;
    fill = fill + kStage == kStages * kStage ? 0 : fill + kStage;
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
          simt::store_if(finish.wanted(r, c), partial + r * p.n + c, pair[0]);
          simt::store_if(finish.wanted(r, c + 1), partial + r * p.n + c + 1, pair[1]);
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

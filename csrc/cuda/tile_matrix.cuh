// A tile of Size x Size (64 or 128) on the tensor cores: operands in shared memory in their layout in global memory,
// fragments of a warp, and the product of one stage. product_tensor.cu (float) and product_half.cu (16-bit floats)
// explain the method.
#pragma once
#include "finish_tile.cuh"
#include "tile_tensor.cuh"

namespace ssdd::cuda::matrix {

// Tags of the two 16-bit types for template arguments; a pointer to either points to the bits.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// How warps cover a tile: kWarpRows x 32 per warp, as kRowTiles x 4 products of 16 x 8.
template <int Size>
struct Shape {
  static_assert(Size == 64 || Size == 128, "warps of 32 or 64 rows, two of them above each other");
  static constexpr int kThreads = Size == 128 ? 256 : 128, kWarpRows = Size / 2, kWarpColumns = 32;
  static constexpr int kWarpsAcross = Size / kWarpColumns, kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static SIMT_DEVICE int warp_row() { return simt::warp() / kWarpsAcross * kWarpRows; }
  static SIMT_DEVICE int warp_column() { return simt::warp() % kWarpsAcross * kWarpColumns; }
};

// The stage of one operand: 64 bytes of k for each of the Size rows. KMajor (k is the direction of unit stride):
// [row][k] with a pitch of 80 bytes, else [k][row] with a pitch of Size + 8 elements. Neither has bank conflicts in
// fragment loads.
template <class E, int Size, bool KMajor>
struct Stage {
  static constexpr int kWide = 16 / static_cast<int>(sizeof(E));   // elements of one copy
  static constexpr int kSteps = 64 / static_cast<int>(sizeof(E));  // k of one stage
  static constexpr int kPitch = KMajor ? 80 / static_cast<int>(sizeof(E)) : Size + 8;
};
constexpr int kStages = 4;
template <int Size>
constexpr int kStageBytes = Size * 80;  // the larger of both layouts
template <int Size>
constexpr int kSharedBytes = 2 * kStages * kStageBytes<Size>;
static_assert(kSharedBytes<kLargeTile> == kLargeTileBytes, "what the choice of a tile counts with");

// Loads the stages of one operand; each call of load() starts the copies of the next one.
template <class E, int Size, bool KMajor>
class Loader {
  using S = Stage<E, Size, KMajor>;
  static constexpr int kThreads = Shape<Size>::kThreads;
  // Copies of 16 bytes: copies per line of the stage (a row, or a step of k), and lines at once.
  static constexpr int kPerLine = KMajor ? 4 : Size / S::kWide, kLines = kThreads / kPerLine;
  static constexpr int kCopies = Size * 4 / kThreads;
  // Single floats, if rows are not aligned: lines at once.
  static constexpr int kSingleLines = kThreads / (KMajor ? S::kSteps : Size), kSingles = Size * S::kSteps / kThreads;

 public:
  // view: [rows, k]; vectors: neighbours along the unit stride are aligned to 16 bytes.
  SIMT_DEVICE Loader(const Source<float>& view, int64_t first_row, int64_t all_rows, int64_t k_begin, bool aligned)
      : vectors(aligned) {
    const int t = simt::thread();
    rows = all_rows - first_row < Size ? static_cast<int>(all_rows - first_row) : Size;
    if (vectors) {
      row = KMajor ? t / kPerLine : t % kPerLine * S::kWide;
      step = KMajor ? t % kPerLine * S::kWide : t / kPerLine;
      across = kLines * (KMajor ? view.rs : view.cs);
    } else {
      row = KMajor ? t / S::kSteps : t % Size;
      step = KMajor ? t % S::kSteps : t / Size;
      across = kSingleLines * (KMajor ? view.rs : view.cs);
    }
    place = KMajor ? row * S::kPitch + step : step * S::kPitch + row;
    cursor = reinterpret_cast<const E*>(view.p) + (first_row + row) * view.rs + (k_begin + step) * view.cs;
    along = S::kSteps * view.cs;
  }

  // left: the number of k that remain.
  SIMT_DEVICE void load(E* stages, int left) {
    E* const to = stages + place;
    if (vectors && rows == Size && left >= S::kSteps) {  // an interior tile needs no clamps
#pragma unroll
      for (int r = 0; r < kCopies; ++r) simt::copy_async_whole(to + r * kLines * S::kPitch, cursor + r * across);
    } else if (vectors) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const bool exists = KMajor ? row + r * kLines < rows : step + r * kLines < left;
        const int bytes = exists ? clamp_bytes(KMajor ? left - step : rows - row) : 0;
        simt::copy_async<16>(to + r * kLines * S::kPitch, bytes ? cursor + r * across : cursor, bytes);
      }
    } else if constexpr (sizeof(E) == 4) {
#pragma unroll
      for (int r = 0; r < kSingles; ++r) {
        const bool exists =
            KMajor ? row + r * kSingleLines < rows && step < left : row < rows && step + r * kSingleLines < left;
        simt::copy_async<4>(to + r * kSingleLines * S::kPitch, exists ? cursor + r * across : cursor, exists ? 4 : 0);
      }
    }
    cursor += along;
  }
  // To another stage, so many elements away.
  SIMT_DEVICE void move(int by) { place += by; }

 private:
  static SIMT_DEVICE int clamp_bytes(int elements) {
    return elements <= 0 ? 0 : elements >= S::kWide ? 16 : elements * static_cast<int>(sizeof(E));
  }

  const E* cursor;        // this thread's first element of the next stage
  int64_t across, along;  // from one of its copies to the next, and from stage to stage
  int place, row, step, rows;
  bool vectors;
};

// The row of a warp that is row `in_group` of its group of 8. Floats in [k][row] are loaded four neighbouring rows at a
// time, so that a group has every fourth row. All others are loaded by ldmatrix, whose groups are neighbours.
template <class E, bool KMajor>
constexpr bool kSpread = !KMajor && sizeof(E) == 4;
template <class E, bool KMajor>
SIMT_DEVICE int row_of(int group, int in_group) {
  return kSpread<E, KMajor> ? group / 4 * 32 + in_group * 4 + group % 4 : group * 8 + in_group;
}

// The offset of a lane's fragments in the first stage. All others are at constant distances.
template <class E, int Size, bool KMajor>
SIMT_DEVICE int place_in_a() {
  using S = Stage<E, Size, KMajor>;
  const int lane = simt::lane(), first = Shape<Size>::warp_row();
  if (kSpread<E, KMajor>) return lane % 4 * S::kPitch + first + lane / 4 * 4;
  if (KMajor) return (first + lane % 16) * S::kPitch + lane / 16 * S::kWide;
  return (lane / 16 * 8 + lane % 8) * S::kPitch + first + lane / 8 % 2 * 8;
}
template <class E, int Size, bool KMajor>
SIMT_DEVICE int place_in_b() {
  using S = Stage<E, Size, KMajor>;
  const int lane = simt::lane(), first = Shape<Size>::warp_column();
  if (kSpread<E, KMajor>) return lane % 4 * S::kPitch + first + lane / 4 * 4;
  if (KMajor) return (first + lane / 16 * 8 + lane % 8) * S::kPitch + lane / 8 % 2 * S::kWide;
  return (lane / 8 % 2 * 8 + lane % 8) * S::kPitch + first + lane / 16 * 8;
}

// Fragments of A for half a stage: kRowTiles of 16 rows by 32 bytes of k.
template <class E, int Size, bool KMajor>
SIMT_DEVICE void load_a(const E* own, int half, uint32_t (&a)[Shape<Size>::kRowTiles][4]) {
  using S = Stage<E, Size, KMajor>;
  if constexpr (kSpread<E, KMajor>) {
#pragma unroll
    for (int q = 0; q < Shape<Size>::kRowTiles / 2; ++q)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto v = simt::get_vector<4>(own + (half * 8 + h * 4) * S::kPitch + q * 32);
#pragma unroll
        for (int e = 0; e < 4; ++e) a[q * 2 + e / 2][e % 2 + 2 * h] = simt::to_bits(v.v[e]);
      }
  } else {
#pragma unroll
    for (int i = 0; i < Shape<Size>::kRowTiles; ++i) {
      if constexpr (KMajor)
        simt::load_matrices(own + i * 16 * S::kPitch + half * 2 * S::kWide, a[i]);
      else
        simt::load_matrices_transposed(own + half * 16 * S::kPitch + i * 16, a[i]);
    }
  }
}

// Fragments of B for half a stage: 4 of 8 columns.
template <class E, int Size, bool KMajor>
SIMT_DEVICE void load_b(const E* own, int half, uint32_t (&b)[4][2]) {
  using S = Stage<E, Size, KMajor>;
  if constexpr (kSpread<E, KMajor>) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto v = simt::get_vector<4>(own + (half * 8 + h * 4) * S::kPitch);
#pragma unroll
      for (int e = 0; e < 4; ++e) b[e][h] = simt::to_bits(v.v[e]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t four[4];
      if constexpr (KMajor)
        simt::load_matrices(own + j * 8 * S::kPitch + half * 2 * S::kWide, four);
      else
        simt::load_matrices_transposed(own + half * 16 * S::kPitch + j * 8, four);
#pragma unroll
      for (int e = 0; e < 4; ++e) b[j + e / 2][e % 2] = four[e];
    }
  }
}

SIMT_DEVICE void multiply_fragments(Bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_bf16(d, a, b);
}
SIMT_DEVICE void multiply_fragments(Half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_f16(d, a, b);
}

// sums += the product of one stage, of this warp. A tensor core truncates its sums toward zero. They therefore start at
// zero in each stage and are then added in float.
template <class E, int Size, bool AMajor, bool BMajor>
SIMT_DEVICE void multiply(const E* own_a, const E* own_b, float (&sums)[Shape<Size>::kRowTiles][4][4]) {
  constexpr int kRowTiles = Shape<Size>::kRowTiles;
  float fresh[kRowTiles][4][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[kRowTiles][4], b[4][2];
    load_b<E, Size, BMajor>(own_b, half, b);
    load_a<E, Size, AMajor>(own_a, half, a);
    if constexpr (sizeof(E) == 2) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_fragments(E{}, fresh[i][j], a[i], b[j]);
    } else {
      uint32_t b_big[4][2], b_small[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) tensor::split(simt::from_bits(b[j][e]), b_big[j][e], b_small[j][e]);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        uint32_t a_big[4], a_small[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) tensor::split(simt::from_bits(a[i][e]), a_big[e], a_small[e]);
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_small, b_big[j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big, b_small[j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) simt::mma_tf32(fresh[i][j], a_big, b_big[j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[i][j][e];
}

// The pitch of the finished tile in shared memory: a warp's vectors conflict at most two ways.
template <class E, int Size, bool AMajor>
constexpr int kTilePitch = Size + (kSpread<E, AMajor> ? 4 : 8);

// Puts the sums of this warp into the tile. True if all sums of the thread are finite.
template <class E, int Size, bool AMajor, bool BMajor>
SIMT_DEVICE bool put_sums(const float (&sums)[Shape<Size>::kRowTiles][4][4], float* tile) {
  constexpr int kPitch = kTilePitch<E, Size, AMajor>;
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float zero = 0;  // NaN if a sum is not finite
#pragma unroll
  for (int i = 0; i < Shape<Size>::kRowTiles; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const row =
          tile + (Shape<Size>::warp_row() + row_of<E, AMajor>(2 * i + h, g)) * kPitch + Shape<Size>::warp_column();
      if constexpr (kSpread<E, BMajor>) {
      // Columns 2 t and 2 t + 1 of the four groups are two runs of four neighbours.
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          simt::Vector<float, 4> v;
#pragma unroll
          for (int j = 0; j < 4; ++j) v.v[j] = sums[i][j][2 * h + e];
          simt::put_vector<4>(row + (2 * t + e) * 4, v);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const simt::Vector<float, 2> v{{sums[i][j][2 * h], sums[i][j][2 * h + 1]}};
          simt::put_vector<2>(row + j * 8 + 2 * t, v);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) zero += sums[i][j][2 * h] * 0.0f + sums[i][j][2 * h + 1] * 0.0f;
    }
  return zero == 0;
}

// True in all threads of a block of the large tile if its rows and columns have scales (product_halves.cu).
SIMT_DEVICE bool has_scales(const Product<float>& p, const Part& part) {
  constexpr int kWarps = Shape<kLargeTile>::kThreads / 32;
  static_assert(Shape<kLargeTile>::kThreads == 2 * kLargeTile, "a thread per row and per column");
  SIMT_SHARED(unsigned, without, kWarps);
  const bool of_a = simt::thread() < kLargeTile;
  const int64_t i = (of_a ? part.row : part.column) + simt::thread() % kLargeTile, count = of_a ? p.m : p.n;
  const float* const scales = p.scales + part.b * (p.m + p.n) + (of_a ? 0 : p.m);
  const unsigned vote = simt::ballot(simt::load_if(i < count, scales + i, 1.0f) == 0);
  if (simt::lane() == 0) simt::put(without + simt::warp(), vote);
  simt::barrier();
  unsigned any = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) any |= simt::get(without + w);
  return any == 0;
}

// Computes the tile of block `index` of a product.
template <class E, int Size, bool AMajor, bool BMajor>
SIMT_DEVICE void make_tile(const Product<float>& p, const Tiling& tiling, int index, bool a_vectors, bool b_vectors) {
  constexpr int kSteps = Stage<E, Size, true>::kSteps, kStage = kStageBytes<Size> / static_cast<int>(sizeof(E));
  Part part;
  if (!find_part<Size>(p, tiling, index, part)) return;
  if constexpr (Size == kLargeTile && sizeof(E) == 4)
    if (p.scales && has_scales(p, part)) return;  // product_halves.cu computes it
  simt::Shared shared;
  E* const a_stages = reinterpret_cast<E*>(shared.take<unsigned char>(kSharedBytes<Size>));
  E* const b_stages = a_stages + kStages * kStage;
  Loader<E, Size, AMajor> a(p.a[part.b], part.row, p.m, part.k_begin, a_vectors);
  Loader<E, Size, BMajor> b(p.b[part.b].t(), part.column, p.n, part.k_begin, b_vectors);
  float sums[Shape<Size>::kRowTiles][4][4] = {};
  // Some warps of a narrow or low matrix have no rows or columns.
  const bool works = part.row + Shape<Size>::warp_row() < p.m && part.column + Shape<Size>::warp_column() < p.n;

  // The distance to the next stage, in elements. The first stage follows the last.
  const auto next = [](int& stage) {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    return stage == 0 ? (1 - kStages) * kStage : kStage;
  };
  // Each iteration fills a stage and, once all others are full, multiplies the oldest one. The code of a load occurs
  // only once: it would otherwise be a third of the kernel.
  int left = static_cast<int>(part.k_end - part.k_begin), ahead = left;  // k to multiply, k to load
  int slot = 0, fill = 0, own_a = place_in_a<E, Size, AMajor>(), own_b = place_in_b<E, Size, BMajor>();
#pragma unroll 1
  for (int turn = 1 - kStages; left > 0; ++turn) {
    if (turn >= 0) {
      simt::copy_wait<kStages - 2>();
      simt::barrier();
    }
    if (ahead > 0) {
      a.load(a_stages, ahead);
      b.load(b_stages, ahead);
    }
    simt::copy_commit();
    ahead -= kSteps;
    const int to_fill = next(fill);
    a.move(to_fill);
    b.move(to_fill);
    if (turn < 0) continue;
    if (works) multiply<E, Size, AMajor, BMajor>(a_stages + own_a, b_stages + own_b, sums);
    left -= kSteps;
    const int to_read = next(slot);
    own_a += to_read;
    own_b += to_read;
  }

  // All stages have been read: the tile reuses their memory.
  float* const tile = reinterpret_cast<float*>(a_stages);
  static_assert(Size * kTilePitch<E, Size, AMajor> * 4 <= kSharedBytes<Size>, "the tile fits the stages");
  simt::barrier();
  const bool finite = put_sums<E, Size, AMajor, BMajor>(sums, tile);
  TileFinish<Shape<Size>::kThreads, Size, kTilePitch<E, Size, AMajor>, float>(p, tiling, part, tile).run(!finite);
}

}  // namespace ssdd::cuda::matrix

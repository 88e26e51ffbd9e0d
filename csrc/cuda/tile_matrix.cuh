// A tile of Size x Size (64 or 128) on the tensor cores: operands in shared memory in their layout in global memory,
// fragments of a warp, and the product of one stage. product_tensor.cu (float) and product_half.cu (16-bit floats)
// explain the method.
#pragma once
#include <type_traits>

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

// The stage of one operand: kBytes of k for each of the Size rows. KMajor (k is the direction of unit stride): [row][k]
// with 16 bytes between rows, else [k][row] with a pitch of Size + 8 elements. Neither has bank conflicts in fragment
// loads.
// 64 bytes in 4 stages, or of large tiles of floats 128 in 2: half as many barriers and turns of the loop, which takes
// long enough there for the copies of the next stage to arrive.
template <class E, int Size>
constexpr int kBytesOfK = Size == kLargeTile && sizeof(E) == 4 ? 128 : 64;
template <class E, int Size, bool KMajor>
struct Stage {
  static constexpr int kBytes = kBytesOfK<E, Size>;
  static constexpr int kWide = 16 / static_cast<int>(sizeof(E));       // elements of one copy
  static constexpr int kSteps = kBytes / static_cast<int>(sizeof(E));  // k of one stage
  static constexpr int kPitch = KMajor ? (kBytes + 16) / static_cast<int>(sizeof(E)) : Size + 8;
};
template <class E, int Size>
constexpr int kStages = 256 / kBytesOfK<E, Size>;
template <int Size, int Bytes>
constexpr int kStageBytes = Size * (Bytes + 16);  // the larger of both layouts
template <class E, int Size>
constexpr int kSharedBytes = 2 * kStages<E, Size> * kStageBytes<Size, kBytesOfK<E, Size>>;
static_assert(kSharedBytes<float, kLargeTile> <= kLargeTileBytes && kSharedBytes<Half, kLargeTile> == kLargeTileBytes,
              "what the choice of a tile counts with");

// Calls f with the flag as a constant: std::true_type or std::false_type.
template <class F>
SIMT_DEVICE auto if_major(bool k_major, const F& f) {
  return k_major ? f(std::true_type{}) : f(std::false_type{});
}

// Loads the stages of one operand; each call of load() starts the copies of the next one. k_major must be the same in all
// calls. A stage has lines along the unit stride: rows, or steps of k. Known: k_major is a constant.
template <class E, int Size, bool Known>
class Loader {
  static constexpr int kThreads = Shape<Size>::kThreads, kWide = Stage<E, Size, true>::kWide;
  static constexpr int kSteps = Stage<E, Size, true>::kSteps;
  static constexpr int kCopies = Size * kSteps / kWide / kThreads, kSingles = Size * kSteps / kThreads;
  static constexpr int log2(int x) { return x == 1 ? 0 : 1 + log2(x / 2); }
  static constexpr int kLogOfThreads = log2(kThreads);
  // Of the threads of a line.
  SIMT_DEVICE int bits_of(bool k_major) const {
    return (k_major ? log2(kSteps / kWide) : log2(Size / kWide)) + (vectors ? 0 : log2(kWide));
  }
  static constexpr int pitch(bool k_major) {
    return k_major ? Stage<E, Size, true>::kPitch : Stage<E, Size, false>::kPitch;
  }

 public:
  // view: [rows, k], of which `count` k from k_begin on; aligned: neighbours along the unit stride, to 16 bytes.
  SIMT_DEVICE void start(bool k_major, const Source<float>& view, int64_t first_row, int64_t all_rows, int64_t k_begin,
                         int count, bool aligned) {
    vectors = aligned;
    const int rows = all_rows - first_row < Size ? static_cast<int>(all_rows - first_row) : Size;
    const int bits = bits_of(k_major), line = simt::thread() >> bits;
    const int unit = (simt::thread() - (line << bits)) * (vectors ? kWide : 1);
    const int row = k_major ? line : unit;
    step = k_major ? unit : line;
    rows_left = rows - row;
    const auto line_stride = static_cast<uint64_t>(k_major ? view.rs : view.cs);  // as a shift knows no sign
    across = keep(static_cast<int64_t>(line_stride << (kLogOfThreads - bits)));
    whole_left = simt::uniform(vectors && rows == Size ? count - kSteps : -1);
    place = keep(line * pitch(k_major) + unit);
    next = keep((kThreads >> bits) * pitch(k_major));
    cursor = reinterpret_cast<const E*>(view.p) + (first_row + row) * view.rs + (k_begin + step) * view.cs;
    along = kSteps * view.cs;
  }

  // left: the number of k that remain.
  SIMT_DEVICE void load(bool k_major, E* stages, int left) {
    E* to = stages + place;
    const E* from = cursor;
    if (whole_left >= 0) {  // an interior tile needs no clamps
#pragma unroll
      for (int r = 0; r < kCopies; ++r, from += across, to += next) simt::copy_async_whole(to, from);
    } else {
      const int lines = kThreads >> bits_of(k_major);
      const int existing = k_major ? left - step : rows_left;  // of this thread's line
      int remain = k_major ? rows_left : left - step;          // of the lines
      if (vectors) {
        const int wide = clamp_bytes(existing);
#pragma unroll
        for (int r = 0; r < kCopies; ++r, from += across, to += next, remain -= lines) {
          const int bytes = remain > 0 ? wide : 0;
          simt::copy_async<16>(to, bytes ? from : cursor, bytes);
        }
      } else if constexpr (sizeof(E) == 4) {
        if (existing <= 0) remain = 0;
#pragma unroll 2
        for (int r = 0; r < kSingles; ++r, from += across, to += next, remain -= lines)
          simt::copy_async<4>(to, remain > 0 ? from : cursor, remain > 0 ? 4 : 0);
      }
    }
    cursor += along;
    whole_left -= kSteps;
  }

 private:
  // A number that would else be computed anew per stage.
  template <class T>
  static SIMT_DEVICE T keep(T v) {
    return Known ? v : simt::unknown(v);
  }
  static SIMT_DEVICE int clamp_bytes(int elements) {
    return elements <= 0 ? 0 : elements >= kWide ? 16 : elements * static_cast<int>(sizeof(E));
  }

  const E* cursor;        // this thread's first element of the next stage
  int64_t across, along;  // from one of its copies to the next, and from stage to stage
  int place, next;        // in the stage, and from one copy to the next
  int step, rows_left;    // k of the first copy; rows that exist from that copy's on
  int whole_left;         // of the k behind the next stage; negative if not all copies of that stage are whole
  bool vectors;
};

// In which layouts the operands of a product may be: whether k is the direction of unit stride. A layout that is not a
// constant of the kernel is passed to it. One kernel then has a product per layout, and one copy of everything else, so that
// the products of a call need less of the instruction cache.
template <bool AMajor, bool BMajor>
struct KnownLayout {
  static constexpr bool kKnown = true;
  static constexpr bool a_major() { return AMajor; }
  static constexpr bool b_major() { return BMajor; }
};
struct AnyLayout {
  static constexpr bool kKnown = false;
  bool a, b;
  SIMT_DEVICE bool a_major() const { return a; }
  SIMT_DEVICE bool b_major() const { return b; }
};
// The row of a warp that is row `in_group` of its group of 8. Floats in [k][row] are loaded four neighbouring rows at a
// time, so that a group has every fourth row. All others are loaded by ldmatrix, whose groups are neighbours.
template <class E, bool KMajor>
constexpr bool kSpread = !KMajor && sizeof(E) == 4;
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

// The k that a tensor core sums. It truncates its sums toward zero, so that they start at zero again every so many k, and
// are then added in float.
template <class E>
constexpr int kSummed = 64 / static_cast<int>(sizeof(E));

// sums += the product of kSummed k, of this warp.
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
template <class E, int Size>
constexpr int kTilePitch = Size + (sizeof(E) == 4 ? 4 : 8);

// Puts the sums of this warp into the tile, or into the transposed tile. False if a sum of the thread is not finite, or may be.
template <class E, int Size>
SIMT_DEVICE bool put_sums(const float (&sums)[Shape<Size>::kRowTiles][4][4], float* tile, bool a_k_major,
                          bool b_k_major, bool transposed = false) {
  constexpr int kPitch = kTilePitch<E, Size>, kGroups = 2 * Shape<Size>::kRowTiles;
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  const bool spread = sizeof(E) == 4 && !a_k_major;
  // Row g of a group of 8, and from one group to the next of the same 32 rows.
  float* const own = tile + (Shape<Size>::warp_row() + g * (spread ? 4 : 1)) * kPitch + Shape<Size>::warp_column();
  const int apart = (spread ? 1 : 8) * kPitch;
  float all = 0;  // not finite if a sum is not, or for a few that are very large
#pragma unroll
  for (int i = 0; i < Shape<Size>::kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2) all += sums[i][j][e] * sums[i][j][e + 1];
  if (transposed) {
    // Of spread rows: four neighbours of column 2 t + e of a group.
    float* const across = tile + (Shape<Size>::warp_column() + 2 * t) * kPitch + Shape<Size>::warp_row() + g * 4;
#pragma unroll
    for (int q = 0; q < kGroups / 4; ++q)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          simt::Vector<float, 4> v;
#pragma unroll
          for (int r = 0; r < 4; ++r) v.v[r] = sums[q * 2 + r / 2][j][r % 2 * 2 + e];
          simt::put_vector<4>(across + (j * 8 + e) * kPitch + q * 32, v);
        }
  } else if (sizeof(E) == 4 && !b_k_major) {
    // Columns 2 t and 2 t + 1 of the four groups are two runs of four neighbours.
#pragma unroll
    for (int q = 0; q < kGroups; ++q)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        simt::Vector<float, 4> v;
#pragma unroll
        for (int j = 0; j < 4; ++j) v.v[j] = sums[q / 2][j][q % 2 * 2 + e];
        simt::put_vector<4>(own + q / 4 * 32 * kPitch + q % 4 * apart + (2 * t + e) * 4, v);
      }
  } else {
#pragma unroll
    for (int q = 0; q < kGroups; ++q)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const simt::Vector<float, 2> v{{sums[q / 2][j][q % 2 * 2], sums[q / 2][j][q % 2 * 2 + 1]}};
        simt::put_vector<2>(own + q / 4 * 32 * kPitch + q % 4 * apart + j * 8 + 2 * t, v);
      }
  }
  return simt::finite(all);
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

// sums += the products of one stage's steps, of which `left` remain.
template <class E, int Size, bool AMajor, bool BMajor>
SIMT_DEVICE void multiply_stage(const E* own_a, const E* own_b, int left, float (&sums)[Shape<Size>::kRowTiles][4][4]) {
  constexpr int kSteps = Stage<E, Size, true>::kSteps;
  constexpr int kNextA = kSummed<E> * (AMajor ? 1 : Stage<E, Size, AMajor>::kPitch);
  constexpr int kNextB = kSummed<E> * (BMajor ? 1 : Stage<E, Size, BMajor>::kPitch);
  int steps = left < kSteps ? left : kSteps;
#pragma unroll 1
  for (; steps > 0; steps -= kSummed<E>) {
    multiply<E, Size, AMajor, BMajor>(own_a, own_b, sums);
    own_a += kNextA;
    own_b += kNextB;
  }
}

// Computes the tile of block `index` of a product.
template <class E, int Size, class Layout>
SIMT_DEVICE void make_tile(const Product<float>& p, const Tiling& tiling, int index, const Layout& layout,
                           bool a_vectors, bool b_vectors) {
  constexpr int kSteps = Stage<E, Size, true>::kSteps;
  constexpr int kStage = kStageBytes<Size, kBytesOfK<E, Size>> / static_cast<int>(sizeof(E));
  Part part;
  if (!find_part<Size>(p, tiling, index, part)) return;
  if constexpr (Size == kLargeTile && sizeof(E) == 4)
    if (p.scales && has_scales(p, part)) return;  // product_halves.cu computes it
  simt::Shared shared;
  E* const x_stages = reinterpret_cast<E*>(shared.take<unsigned char>(kSharedBytes<E, Size>));
  E* const z_stages = x_stages + kStages<E, Size> * kStage;
  const int k = simt::uniform(static_cast<int>(part.k_end - part.k_begin));
  // The rows of the product's tile are those of x, its columns those of z: of A and B or, if `turned`, of B^T and A^T.
  constexpr bool kTurns = sizeof(E) == 4;
  const bool turned = kTurns && layout.a_major() && !layout.b_major();
  const bool x_major = turned ? false : layout.a_major(), z_major = turned ? true : layout.b_major();
  const Source<float> a = p.a[part.b], b = p.b[part.b].t();
  const Source<float> rows(turned ? b.p : a.p, 0, turned ? b.rs : a.rs, turned ? b.cs : a.cs);
  const Source<float> columns(turned ? a.p : b.p, 0, turned ? a.rs : b.rs, turned ? a.cs : b.cs);
  Loader<E, Size, Layout::kKnown> x, z;
  x.start(x_major, rows, turned ? part.column : part.row, turned ? p.n : p.m, part.k_begin, k,
          turned ? b_vectors : a_vectors);
  z.start(z_major, columns, turned ? part.row : part.column, turned ? p.m : p.n, part.k_begin, k,
          turned ? a_vectors : b_vectors);
  float sums[Shape<Size>::kRowTiles][4][4] = {};
  // Some warps of a narrow or low matrix have no rows or columns.
  const int row = turned ? Shape<Size>::warp_column() : Shape<Size>::warp_row();
  const int column = turned ? Shape<Size>::warp_row() : Shape<Size>::warp_column();
  const bool works = part.row + row < p.m && part.column + column < p.n;

  // Each turn fills a stage and, once all others are full, multiplies the oldest one.
  constexpr int kLast = kStages<E, Size> - 1, kBack = -kLast * kStage;
  E* fill = x_stages;
  const E* own_x = x_stages + simt::unknown(if_major(
                                  x_major, [](auto major) { return place_in_a<E, Size, decltype(major)::value>(); }));
  const E* own_z = z_stages + simt::unknown(if_major(
                                  z_major, [](auto major) { return place_in_b<E, Size, decltype(major)::value>(); }));
  int left = k, ahead = k;                      // k to multiply, and to load
  int own_left = simt::uniform(works ? k : 0);  // to multiply by this warp
  const auto multiply_by_warp = [&](auto x_by_k, auto z_by_k) {
    multiply_stage<E, Size, decltype(x_by_k)::value, decltype(z_by_k)::value>(own_x, own_z, own_left, sums);
  };
#pragma unroll 1
  for (int turn = -kLast; left > 0; ++turn) {
    if (turn >= 0) {
      simt::copy_wait<kStages<E, Size> - 2>();
      simt::barrier();
    }
    if (ahead > 0) {
      x.load(x_major, fill, ahead);
      z.load(z_major, fill + kStages<E, Size> * kStage, ahead);
    }
    simt::copy_commit();
    ahead -= kSteps;
    fill += (turn & kLast) == 0 ? kBack : kStage;  // the first stage follows the last
    if (turn < 0) continue;
    if (own_left > 0) {
      if (kTurns && x_major)
        multiply_by_warp(std::true_type{}, std::true_type{});
      else
        if_major(x_major,
                 [&](auto x_by_k) { if_major(z_major, [&](auto z_by_k) { multiply_by_warp(x_by_k, z_by_k); }); });
    }
    const int to_next = (turn & kLast) == kLast ? kBack : kStage;
    own_x += to_next;
    own_z += to_next;
    left -= kSteps;
    own_left -= kSteps;
  }

  // All stages have been read: the tile reuses their memory.
  float* const tile = reinterpret_cast<float*>(x_stages);
  static_assert(Size * kTilePitch<E, Size> * 4 <= kSharedBytes<E, Size>, "the tile fits the stages");
  simt::barrier();
  const bool finite = put_sums<E, Size>(sums, tile, x_major, z_major, turned);
  TileFinish<Shape<Size>::kThreads, Size, kTilePitch<E, Size>, float, false, sizeof(E) == 4>(p, tiling, part, tile)
      .run(!finite);
}

}  // namespace ssdd::cuda::matrix

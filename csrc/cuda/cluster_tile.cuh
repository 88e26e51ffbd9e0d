// The work of one block of factor_cluster.cu on tiles of 64 x 64 in shared memory: products, the Cholesky of a diagonal
// tile, and the solve for a tile below it.
//
// A diagonal tile is factored in strips of 16 columns. Up to three warps, one per scheduler, hold the 16 rows of the
// diagonal block each, and 16 of the rows below. All factor the same diagonal block, so that none waits for another
// within a strip. Four pivots at a time: every lane computes their 4 x 4 block, then its own four elements, and one
// exchange through shared memory updates the columns behind.
// L(r, j) is solved by rows, one per lane. Inverses of diagonal tiles would make it one product, but were tried: for a
// smooth kernel with a ridge of 1e-4 the error of the factor is eight times as large, and at 1e-5 a pivot fails.
#pragma once
#include "tile_tensor.cuh"
#include "triangle.cuh"

namespace ssdd::cuda::cluster_tile {

constexpr int kThreads = 256, kPitch = shared_pitch<float>(kTile), kWhole = kTile * kPitch;
constexpr int kFactorWarps = kTile / kStrip - 1;             // that factor a diagonal tile
constexpr int kSolveWarps = kTile / 32;                      // that solve for a tile
constexpr int kPartPitch = 20;                               // of a warp's sums in shared memory, [32][16]
constexpr int kGroup = 4;                                    // pivots at a time
constexpr int kScratch = 32 * kPartPitch + 2 * 32 * kGroup;  // floats per warp

// --- products ----------------------------------------------------------------------------------------------------

// sums += the product of 16 rows at `first` and 16 at `second` with 16 rows at b, over `steps` of k, a multiple of 16;
// one warp. What a tensor core truncates does not add up, since sums of 16 k start at zero and are then added in float.
SIMT_DEVICE void multiply(const float* first, const float* second, const float* b, int steps, float (&sums)[2][2][4]) {
  const int lane = simt::lane(), place = lane % 16 * kPitch + lane / 16 * 4;
  const float* const own_a[2] = {first + place, second + place};
  const float* const own_b = b + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 4;
#pragma unroll 1
  for (int k = 0; k < steps; k += kDepth) {
    float fresh[2][2][4] = {};
#pragma unroll
    for (int h = k; h < k + kDepth; h += 8) {
      uint32_t v[4], b_big[2][2], b_small[2][2];
      simt::load_matrices(own_b + h, v);
#pragma unroll
      for (int e = 0; e < 4; ++e) tensor::split(simt::from_bits(v[e]), b_big[e / 2][e % 2], b_small[e / 2][e % 2]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t a_big[4], a_small[4];
        simt::load_matrices(own_a[i] + h, v);
#pragma unroll
        for (int e = 0; e < 4; ++e) tensor::split(simt::from_bits(v[e]), a_big[e], a_small[e]);
#pragma unroll
        for (int j = 0; j < 2; ++j) simt::mma_tf32(fresh[i][j], a_small, b_big[j]);
#pragma unroll
        for (int j = 0; j < 2; ++j) simt::mma_tf32(fresh[i][j], a_big, b_small[j]);
#pragma unroll
        for (int j = 0; j < 2; ++j) simt::mma_tf32(fresh[i][j], a_big, b_big[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += fresh[i][j][e];
  }
}

// Calls f(row, column, i, j, e) for each pair of neighbouring sums of this lane, sums[i][j][e] and the next.
template <class F>
SIMT_DEVICE void each_pair(const F& f) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2) f(i * 16 + e / 2 * 8 + simt::lane() / 4, j * 8 + simt::lane() % 4 * 2, i, j, e);
}

// A product a b^T of two tiles; each warp computes 32 x 16 of it.
struct TileProduct {
  float sums[2][2][4];
  SIMT_DEVICE TileProduct(const float* a, const float* b) : sums{} {
    const float* const first = a + row() * kPitch;
    multiply(first, first + 16 * kPitch, b + column() * kPitch, kTile, sums);
  }
  static SIMT_DEVICE int row() { return simt::warp() / 4 * 32; }
  static SIMT_DEVICE int column() { return simt::warp() % 4 * 16; }
  SIMT_DEVICE void subtract_from(float* tile) const {
    each_pair([&](int r, int c, int i, int j, int e) {
      float* const there = tile + (row() + r) * kPitch + column() + c;
      auto v = simt::get_vector<2>(there);
      v.v[0] -= sums[i][j][e];
      v.v[1] -= sums[i][j][e + 1];
      simt::put_vector<2>(there, v);
    });
  }
};

// Copies a tile of block `rank` to this block's `to`; 4 vectors of each thread are on their way at a time.
SIMT_DEVICE void copy_tile(int rank, const float* tile, float* to) {
  const int place = simt::thread() / 16 * kPitch + simt::thread() % 16 * 4;
  simt::Vector<float, 4> v[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) v[r] = simt::get_vector_from<4>(rank, tile + place + 16 * r * kPitch);
#pragma unroll
  for (int r = 0; r < 4; ++r) simt::put_vector<4>(to + place + 16 * r * kPitch, v[r]);
}

// --- the diagonal tile -------------------------------------------------------------------------------------------

// Subtracts from this lane's row the product of its row of the 32 rows at `first` and `second` with 16 rows at b, over
// `steps` of k; one warp. scratch: [32][kPartPitch].
SIMT_DEVICE void subtract_product(const float* first, const float* second, const float* b, int steps, float* scratch,
                                  float (&row)[kStrip]) {
  float sums[2][2][4] = {};
  multiply(first, second, b, steps, sums);
  each_pair([&](int r, int c, int i, int j, int e) {
    simt::put_vector<2>(scratch + r * kPartPitch + c, simt::Vector<float, 2>{{sums[i][j][e], sums[i][j][e + 1]}});
  });
  simt::warp_barrier();
  float part[kStrip];
  get_row(scratch + simt::lane() * kPartPitch, part);
#pragma unroll
  for (int c = 0; c < kStrip; ++c) row[c] -= part[c];
}

// One warp's part of a strip of 16 columns from p on of the tile d: lanes 0 to 15 have the rows of the diagonal block,
// the others 16 of the rows below.
class Strip {
 public:
  SIMT_DEVICE Strip(float* tile, float* memory, int column) : d(tile), scratch(memory), p(column) {
    const int below = p + kStrip * (1 + simt::warp());
    works = simt::warp() == 0 || below < kTile;
    has_others = below < kTile;
    first = has_others ? below : p;
    i = (simt::lane() < kStrip ? p : first - kStrip) + simt::lane();
  }

  // Loads the rows and subtracts the contribution of the strips before.
  SIMT_DEVICE void load() {
    if (!works) return;
    get_row(d + i * kPitch + p, row);
    if (p > 0) subtract_product(d + p * kPitch, d + first * kPitch, d + p * kPitch, p, scratch, row);
  }

  // Factors the strip and writes L and the reciprocals of its diagonal. The first warp writes the diagonal block.
  SIMT_DEVICE void factor(float* inverse) {
    if (!works) return;
    float* const exchange = scratch + 32 * kPartPitch;  // two times [32][4], used in turn
    const bool writes = simt::lane() < kStrip ? simt::warp() == 0 : has_others;
#pragma unroll 1
    for (int at = 0; at < kStrip; at += kGroup) {
      // Factor the 4 x 4 block of these pivots, in every lane.
      float l[kGroup][kGroup], over[kGroup];
#pragma unroll
      for (int r = 0; r < kGroup; ++r)
#pragma unroll
        for (int c = 0; c <= r; ++c) l[r][c] = simt::shuffle(row[c], at + r);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        over[c] = simt::inverse_root(l[c][c]);
#pragma unroll
        for (int r = c + 1; r < kGroup; ++r) {
          l[r][c] *= over[c];
#pragma unroll
          for (int u = c + 1; u <= r; ++u) l[r][u] = simt::fma(-l[r][c], l[u][c], l[r][u]);
        }
      }
      // Solve for this lane's four elements.
      float x[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        x[c] = row[c];
#pragma unroll
        for (int u = 0; u < c; ++u) x[c] = simt::fma(-x[u], l[c][u], x[c]);
        x[c] *= over[c];
      }
      // Write them, and subtract their contribution from the columns behind.
      float* const here = exchange + at / kGroup % 2 * 32 * kGroup;
      put_row(here + simt::lane() * kGroup, x);
      put_row(d + i * kPitch + p + at, x, kGroup, writes);
      put_row(inverse + p + at, over, kGroup, simt::thread() == 0);
      simt::warp_barrier();
#pragma unroll
      for (int next = kGroup; next < kStrip; next += kGroup) {
        if (at + next < kStrip) {
#pragma unroll
          for (int c = next; c < next + kGroup; ++c) {
            float others[kGroup];
            get_row(here + (at + c) * kGroup, others);
#pragma unroll
            for (int u = 0; u < kGroup; ++u) row[c] = simt::fma(-x[u], others[u], row[c]);
          }
        }
      }
#pragma unroll
      for (int c = 0; c + kGroup < kStrip; ++c) row[c] = row[c + kGroup];
    }
  }

 private:
  float *d, *scratch;
  int p, first, i;         // first: of the warp's other rows; i: this lane's row
  bool works, has_others;  // the warp has rows, and rows below the diagonal block
  float row[kStrip];
};

// Factors the tile d, given by its lower triangle, in place. inverse[i] = 1 / L(i, i). *failed <- the 1-based pivot that
// failed, or 0; those behind it are not finite. It begins and ends with barriers.
SIMT_DEVICE void factor_tile(float* d, float* inverse, float* scratch, int* failed) {
#pragma unroll 1
  for (int p = 0; p < kTile; p += kStrip) {
    Strip strip(d, scratch + simt::warp() * kScratch, p);
    simt::barrier();
    strip.load();
    simt::barrier();  // all have read the diagonal block
    strip.factor(inverse);
  }
  simt::barrier();
  if (simt::warp() != 0) return;
  int first = 0;
#pragma unroll
  for (int i = kTile - 32; i >= 0; i -= 32) {
    const float over = simt::get(inverse + i + simt::lane());
    const int bad = simt::first_set(simt::ballot(!(over > 0.0f && simt::finite(over))));
    if (bad) first = i + bad;
  }
  if (simt::lane() == 0) *failed = first;
}

// x <- x L^-T for a tile x; one row per lane of the first warps. inverse[i] = 1 / L(i, i).
SIMT_DEVICE void solve_tile(float* x, const float* l, const float* inverse, float* scratch) {
  if (simt::warp() >= kSolveWarps) return;
  float* const rows = x + simt::warp() * 32 * kPitch;
  float* const own = rows + simt::lane() * kPitch;
#pragma unroll 1
  for (int p = 0; p < kTile; p += kStrip) {
    float row[kStrip];
    get_row(own + p, row);
    if (p > 0) subtract_product(rows, rows + 16 * kPitch, l + p * kPitch, p, scratch + simt::warp() * kScratch, row);
    const float* const block = l + p * (kPitch + 1);
#pragma unroll
    for (int c = 0; c < kStrip; ++c) {
#pragma unroll
      for (int from = 0; from < c; from += kGroup) {
        float others[kGroup];
        get_row(block + c * kPitch + from, others);
#pragma unroll
        for (int u = from; u < from + kGroup; ++u)
          if (u < c) row[c] = simt::fma(-row[u], others[u - from], row[c]);
      }
      row[c] *= simt::get(inverse + p + c);
    }
    put_row(own + p, row);
    simt::warp_barrier();
  }
}

}  // namespace ssdd::cuda::cluster_tile

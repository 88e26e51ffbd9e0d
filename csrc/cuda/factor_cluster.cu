// Cholesky of n <= 512 in float in one cluster of blocks: the lower triangle stays in the shared memory of the blocks,
// which read each other's tiles there (distributed shared memory, sm_90 and later). Off by default.
//
// Mapping: one cluster of 4 or 8 blocks per matrix, 256 threads each. Block r holds row r of tiles of 64 x 64. Per
// column j of tiles:
//   1. Block j factors its diagonal tile.
//   2. Every block r > j reads L(j, j) from block j, and solves L(r, j) = A(r, j) L(j, j)^-T by substitution.
//   3. Block r subtracts L(r, j) L(r, j)^T from its diagonal tile. Block j + 1 then has all that step 1 needs.
//   4. Block r reads L(k, j) from each block k between, and subtracts L(r, j) L(k, j)^T from tile (r, k).
// Two cluster barriers per column order this: one publishes L(j, j), one L(r, j). A block arrives at the next barrier
// before step 4 and waits behind it, so that step 4 overlaps with the next block's step 1 (look-ahead). A tile is
// finished once between two barriers and then only read. Products are three TF32 products (tile_tensor.cuh). One thread
// computes each element in one order of sums: same inputs, same bits.
// A diagonal tile is factored in strips of 16 columns. Up to three warps, one per scheduler, hold the 16 rows of the
// diagonal block each, and 16 of the rows below. All factor the same diagonal block, so that none waits for another
// within a strip. Four pivots at a time: every lane computes their 4 x 4 block, then its own four elements, and one
// exchange through shared memory updates the columns behind.
// L(r, j) is solved by rows, one per lane. Inverses of diagonal tiles would make it one product, but were tried: for a
// smooth kernel with a ridge of 1e-4 the error of the factor is eight times as large, and at 1e-5 a pivot fails.
//
// Traffic: n^2 / 2 elements read from global memory and n^2 / 2 written (and as many zeros), each once. From other
// blocks: 16 KB per product of step 4 and per solve, 1.4 MB at n = 512. FLOPs: n^3 / 3.
// Floor on an H100 at n = 512: the chain. Counted in cycles per column (benchmarks/gpu/floors.py): 16 groups of four
// pivots of 407 (6,500), the updates and barriers of four strips (1,850), a cluster barrier and a read of L(j, j) (900),
// the solve (2,500) and the product of step 3 (1,600): 13,400. The last column ends with its pivots; loads, the trace and
// stores take 6,300: 108,000 cycles, 55 us at 1.98 GHz. Step 4 of the last block takes 12,000 in the first column and
// 1,900 less in each later one. These figures are counted, not measured on a GPU. 188 instructions for four pivots, and
// 33 KB of code.
// Launches: 1, with or without retries.
// Other path: factor_large.cu, for any n and any GPU.
#include "factor_block.cuh"
#include "tile_tensor.cuh"

namespace ssdd::cuda {
namespace {

static_assert(kPanel == kTile, "one size of tiles");
constexpr int kThreads = 256, kPitch = shared_pitch<float>(kTile), kWhole = kTile * kPitch;
constexpr int kMostTiles = 8;                                // blocks of the largest portable cluster
constexpr int kFactorWarps = kTile / kStrip - 1;             // that factor a diagonal tile
constexpr int kSolveWarps = kTile / 32;                      // that solve for a tile
constexpr int kPartPitch = 20;                               // of a warp's sums in shared memory, [32][16]
constexpr int kGroup = 4;                                    // pivots at a time
constexpr int kScratch = 32 * kPartPitch + 2 * 32 * kGroup;  // floats per warp

int tiles_of(int64_t n) { return static_cast<int>((n + kTile - 1) / kTile); }
// Blocks of a cluster. Sizes between are legal, but a scheduler may place only powers of two well.
int blocks_of(int64_t n) { return tiles_of(n) <= 4 ? 4 : kMostTiles; }
int cluster_bytes(int64_t n) {
  return ((tiles_of(n) + 1) * kWhole + 2 * kTile + kFactorWarps * kScratch) * static_cast<int>(sizeof(float));
}

// A block's dynamic shared memory. Every block of the cluster has the same places.
struct Room {
  float* row;                      // its row of tiles
  float *inverse, *other;          // 1 / L(i, i) of its diagonal tile; a tile of another block
  float *other_inverse, *scratch;  // of that block; [kFactorWarps][kScratch]
  SIMT_DEVICE Room(simt::Shared& shared, int tiles) {
    row = shared.take<float>((tiles + 1) * kWhole);
    other = row + tiles * kWhole;
    inverse = shared.take<float>(2 * kTile);
    other_inverse = inverse + kTile;
    scratch = shared.take<float>(kFactorWarps * kScratch);
  }
  SIMT_DEVICE float* tile(int k) const { return row + k * kWhole; }
};

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

// --- the matrix --------------------------------------------------------------------------------------------------

// One block's work on row `rank` of tiles of a matrix of order n.
struct Block {
  Room room;
  int rank, tiles, n;
  int* failed;  // the pivot of this block's diagonal tile that failed, or 0

  // Loads the row from global memory, zero beyond the matrix. vectors: 16 bytes per copy, up to 3 elements beyond the
  // diagonal too.
  SIMT_DEVICE void load(View<const float> a, bool vectors) const {
    const int wide = vectors ? 4 : 1, columns = rank < tiles ? (rank + 1) * kTile : 0;
#pragma unroll 1
    for (int r = simt::warp(); r < kTile; r += kThreads / 32) {
      const int i = rank * kTile + r;
#pragma unroll 1
      for (int j = simt::lane() * wide; j < columns; j += 32 * wide) {
        const bool exists = i < n && j <= i;
        float* const to = room.tile(j / kTile) + r * kPitch + j % kTile;
        const float* const from = exists ? a.p + i * a.rs + j * a.cs : a.p;
        if (vectors)
          simt::copy_async<16>(to, from, exists ? least(n - j, 4) * 4 : 0);
        else
          simt::copy_async<4>(to, from, exists ? 4 : 0);
      }
    }
    simt::copy_commit();
    simt::copy_wait<0>();
    simt::barrier();
  }

  // The element of the diagonal in this block's local row r.
  SIMT_DEVICE float* diagonal(int r) const { return room.tile(rank) + r * (kPitch + 1); }

  // Adds up this block's part of the trace; one warp. The sum is in all lanes.
  SIMT_DEVICE double trace() const {
    double sum = 0;
    for (int r = simt::lane(); r < kTile && rank < tiles; r += 32) sum += static_cast<double>(simt::get(diagonal(r)));
#pragma unroll 1
    for (int mask = 16; mask > 0; mask /= 2) sum += simt::shuffle_xor(sum, mask);
    return sum;
  }

  // Adds the ridge and the jitter to the diagonal. Beyond the matrix it is that of the identity.
  SIMT_DEVICE void shift(double amount) const {
    const int r = simt::thread();
    if (r < kTile && rank < tiles) {
      const double v = rank * kTile + r < n ? static_cast<double>(simt::get(diagonal(r))) + amount : 1.0;
      simt::put(diagonal(r), static_cast<float>(v));
    }
    simt::barrier();
  }

  // Step 4 for column j: subtracts L(rank, j) L(k, j)^T from the tiles (rank, k) left of the diagonal.
  SIMT_DEVICE void update(int j) const {
#pragma unroll 1
    for (int k = j + 1; k < rank; ++k) {
      copy_tile(k, room.tile(j), room.other);
      simt::barrier();
      TileProduct(room.tile(j), room.other).subtract_from(room.tile(k));
      simt::barrier();
    }
  }

  // Factors the matrix with the other blocks of the cluster. Returns the 1-based pivot that failed, or 0: the same in all
  // blocks. It ends with a cluster barrier.
  SIMT_DEVICE int factor() const {
#pragma unroll 1
    for (int j = 0; j < tiles; ++j) {
      const bool below = rank > j && rank < tiles;
      if (rank == j) factor_tile(room.tile(j), room.inverse, room.scratch, failed);
      if (j > 0) simt::cluster_wait();  // L(k, j - 1) of all blocks
      simt::cluster_arrive();
      if (below && j > 0) update(j - 1);
      simt::cluster_wait();  // L(j, j)
      const int bad = simt::get_from(j, failed);
      if (bad) {
        simt::cluster_arrive();
        simt::cluster_wait();
        return j * kTile + bad;
      }
      if (below) {
        copy_tile(j, room.tile(j), room.other);
        if (simt::thread() < kTile / 4)
          simt::put_vector<4>(room.other_inverse + simt::thread() * 4,
                              simt::get_vector_from<4>(j, room.inverse + simt::thread() * 4));
        simt::barrier();
        solve_tile(room.tile(j), room.other, room.other_inverse, room.scratch);
      }
      simt::cluster_arrive();
      if (below) {
        simt::barrier();
        TileProduct(room.tile(j), room.tile(j)).subtract_from(room.tile(rank));
      }
    }
    simt::cluster_wait();
    return 0;
  }

  // Writes the row of L, or NaN.
  SIMT_DEVICE void store(float* out, bool zero_upper, int status) const {
#pragma unroll 1
    for (int r = simt::warp(); r < kTile && rank < tiles; r += kThreads / 32) {
      const int i = rank * kTile + r;
      if (i >= n) return;
      float* const to = out + static_cast<int64_t>(i) * n;
#pragma unroll 2
      for (int j = simt::lane(); j < tiles * kTile; j += 32) {
        const bool lower = j <= i;
        const float v = simt::get_if(lower, room.tile(lower ? j / kTile : 0) + r * kPitch + j % kTile, 0.0f);
        simt::store_if(lower || (zero_upper && j < n), to + j, lower && status ? simt::nan<float>() : v);
      }
    }
  }
};

SIMT_KERNEL_MIN(kThreads, 1)
void cluster_kernel(Factor<float> f, int tiles, bool vectors) {
  simt::Shared shared;
  SIMT_SHARED(int, failed, 1);
  SIMT_SHARED(double, part, 1);
  SIMT_SHARED(Shift, shift, 1);
  const int64_t b = simt::block().x / static_cast<unsigned>(simt::cluster_size());
  const Block block{Room(shared, tiles), simt::cluster_rank(), tiles, static_cast<int>(f.n), failed};
  const float* const scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != 0.0f;
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  int status = kBadParameter;
  if (simt::thread() == 0) *shift = {0, 0, 0};
#pragma unroll 1
  for (int attempt = 0; valid && attempt < attempts && status != 0; ++attempt) {
    block.load(f.source[b], vectors);
    if (attempt == 0) {
      // Add up the trace, each block its part.
      if (simt::warp() == 0) {
        const double sum = block.trace();
        if (simt::lane() == 0) *part = sum;
      }
      simt::cluster_arrive();
      simt::cluster_wait();
      if (simt::thread() == 0) {
        for (int r = 0; r < tiles; ++r) shift->trace += simt::get_from(r, part);
        shift->lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, shift->trace, f.order);
      }
    }
    if (simt::thread() == 0) shift->jitter = jitter_of<float>(attempt, absolute(shift->trace) / block.n);
    simt::barrier();
    block.shift(shift->lambda + shift->jitter);
    status = block.factor();
  }
  if (block.rank == 0 && simt::thread() == 0) report(f, b, status, shift->trace, shift->lambda, shift->jitter);
  block.store(f.factor + b * f.n * f.n, f.zero_upper, status);
}

}  // namespace

bool takes_cluster(const Factor<float>& f) {
  return f.cluster && f.n <= kMostTiles * kTile && f.batch <= kClusterBatch &&
         cluster_bytes(f.n) + 256 <= simt::shared_limit() && simt::has_clusters(&cluster_kernel);
}

void factorise_cluster(const Factor<float>& f, simt::Stream stream) {
  const int blocks = blocks_of(f.n);
  const bool vectors = rows_are_aligned(f.source.p, f.source.bs, f.source.rs, f.source.cs);
  simt::launch_clusters(&cluster_kernel, {static_cast<unsigned>(f.batch * blocks)}, blocks, kThreads,
                        cluster_bytes(f.n), stream, f, tiles_of(f.n), vectors);
  if (f.x && f.c > 0) solve_tiled(f, stream);
}

}  // namespace ssdd::cuda

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
#include "cluster_tile.cuh"
#include "factor_block.cuh"

namespace ssdd::cuda {
namespace {

using namespace cluster_tile;

static_assert(kPanel == kTile, "one size of tiles");
constexpr int kMostTiles = 8;  // blocks of the largest portable cluster

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
  simt::wait_for_earlier_launches();
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
    if (simt::thread() == 0) shift->jitter = jitter_of<float>(attempt, shift->trace, block.n);
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

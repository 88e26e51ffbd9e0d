// A block's tile of queries in the forward of one_pass.cuh: its residuals, and what it adds to the sums of the block.
#pragma once
#include "join.cuh"
#include "one_pass.cuh"

namespace ssdd::cuda {

constexpr int kMostRows = 32;  // of a tile of queries

// A block's tile of queries, and its sums over its tiles.
struct Tile {
  float *x, *r;            // [rows, width], [rows, targets]
  float *moment, *r_sums;  // K_qs^T R and 1^T R as in a part, which begins with M
  float* m;                // nullptr if there is only one tile, whose M goes to global memory
  SIMT_DEVICE Tile(simt::Shared& shared, const OnePass& of, int rows, bool keeps_m) {
    x = shared.take<float>(rows * of.width);
    r = shared.take<float>(rows * of.pitch);
    moment = shared.take<float>(static_cast<int>(of.part - of.moment));
    r_sums = moment + (of.sums - of.moment);
    m = keeps_m ? shared.take<float>(of.targets * of.width) : nullptr;
  }
};
inline int tile_elements(const OnePass& of, int rows, bool keeps_m) {
  return rows * (of.width + of.pitch) + static_cast<int>(of.part - of.moment) + (keeps_m ? of.targets * of.width : 0);
}

// A tile's targets and residuals in global memory.
struct Answers {
  View<const float> y;
  float* out;
  int count;  // of queries that exist
  SIMT_DEVICE Answers(const QueryArgs& a, int64_t b, int first)
      : y(a.y_q[b].from(first, 0)), out(a.out + (b * a.of.q + first) * a.of.c), count(a.of.q - first) {}
};

// Sets the residual of a query of the tile, given its prediction: 0 if it does not exist. Returns its square.
SIMT_DEVICE double set_residual(const OnePass& of, const Answers& answers, int i, int c, float p, float* r) {
  const bool exists = i < answers.count && c < of.c;
  const int row = exists ? i : 0, column = exists ? c : 0;
  const float y = simt::load_if(exists, answers.y.p + row * answers.y.rs + column * answers.y.cs, 0.0f);
  const float residual = exists ? p - y : 0.0f;
  simt::put(r + i * of.pitch + c, residual);
  simt::store_if(exists, answers.out + row * of.c + column, residual);
  return static_cast<double>(residual) * static_cast<double>(residual);
}

// Sets what pads the moment and 1^T R to whole groups to 0.
SIMT_DEVICE void clear_pads(const OnePass& of, const Tile& tile) {
  const int moments = of.s * of.c, sums = static_cast<int>(of.sums - of.moment),
            all = static_cast<int>(of.part - of.moment);
#pragma unroll 1
  for (int e = moments + simt::thread(); e < all; e += kBlockThreads)
    if (e < sums || e >= sums + of.targets) simt::put(tile.moment + e, 0.0f);
}

// Adds the columns of r [rows, targets] to sums, or replaces them.
SIMT_DEVICE void add_columns(const OnePass& of, const float* r, int rows, bool first, float* sums) {
#pragma unroll 1
  for (int c = simt::thread(); c < of.targets; c += kBlockThreads) {
    float sum = first ? 0.0f : simt::get(sums + c);
#pragma unroll 1
    for (int i = 0; i < rows; ++i) sum += simt::get(r + i * of.pitch + c);
    simt::put(sums + c, sum);
  }
}

// Adds a tile's residuals to M and 1^T R.
SIMT_DEVICE void add_tile(const QueryArgs& a, const Tile& tile, bool first, float* left) {
  add_outer(a.of, tile.r, a.rows, tile.x, a.of.width, a.of.width, first, tile.m ? tile.m : left, !tile.m);
  add_columns(a.of, tile.r, a.rows, first, tile.r_sums);
}

// Writes this block's part.
SIMT_DEVICE void leave_sums(const OnePass& of, const Tile& tile, float* left) {
#pragma unroll 1
  for (int e = tile.m ? simt::thread() * 4 : static_cast<int>(of.moment) + simt::thread() * 4; e < of.part;
       e += kBlockThreads * 4)
    simt::store_vector<4>(left + e, simt::get_vector<4>(e < of.moment ? tile.m + e : tile.moment + (e - of.moment)));
}

// Adds the squares of all blocks of the problem to its loss.
SIMT_DEVICE void add_loss(const QueryArgs& a, int64_t b, int part, double squares) {
  const OnePass& of = a.of;
  if (sum_of_blocks<kBlockThreads>(squares, part, of.parts, a.loss_parts + b * of.parts, a.counters + b) &&
      simt::thread() == 0)
    a.loss[b] = static_cast<float>(squares * simt::reciprocal(static_cast<double>(of.q) * of.c));
}

// The largest tile of which every block gets one and of which two blocks fit a multiprocessor, else one block; or 0.
template <class Bytes>
int rows_of(const OnePass& of, const Bytes& bytes) {
  for (int blocks = 2; blocks > 0; --blocks)
    for (int rows = kMostRows; rows >= kUnitRows; rows /= 2)
      if ((of.q + rows - 1) / rows >= of.parts && bytes(rows) <= simt::shared_limit() / blocks - kStaticBytes)
        return rows;
  return 0;
}

}  // namespace ssdd::cuda

// The forward of the loss of a linear kernel with more than 32 support points, with the queries read once (one_pass.cuh),
// and the choice between its two kernels.
//
// Mapping: query_kernel, 256 threads per block, `parts` blocks per problem; each takes every parts-th tile of 8, 16 or 32
// queries. alpha is given. Tiles of X_s and of X_q pass through the same shared memory: every block forms W = alpha^T X_s,
// predicts by W, and at the end forms K_qs^T R from its sum M. A warp computes 8 x 4 products at a time, lanes along the
// features; each lane ends with one of them. The last block of a problem adds up the loss (join.cuh).
// Traffic: X_q and Y_q once from memory, R written once, and per block S D elements of X_s (twice if a backward follows),
// from L2, and C D written.
// FLOPs per block with T tiles of r queries: 2 S C D + 4 T r C D, and 2 S C D if a backward follows.
// Floor on an H100 for B=64 S=100 Q=256 D=512 C=10: 33.6 MB of X_q in 13.8 us. Counted: W, P, M and the moment take about
// 6,000 + 2,300 + 2,500 per 32 queries + 5,000 cycles per block, 2 blocks per multiprocessor at a time.
// Other path: the products of krr.cu, chosen by ssdd_ext/plan.
#include "one_pass_tile.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarps = kBlockThreads / 32;

int query_bytes(const OnePass& of, int rows) {
  return (tile_elements(of, rows, true) + of.targets * of.width + of.pitch) * 4 + 7 * 16;
}

// What a step does with its tile.
enum class Step { weights, predict, moment };

SIMT_KERNEL_MIN(kBlockThreads, 2) void query_kernel(QueryArgs a) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  const OnePass& of = a.of;
  const int64_t b = simt::block().x / of.parts;
  const int part = simt::block().x % of.parts, rows = a.rows;
  const Tile tile(shared, of, rows, true);
  float* const w = shared.take<float>(of.targets * of.width);
  float* const alpha_sums = shared.take<float>(of.pitch);
  float* const left = a.left ? a.left + (b * of.parts + part) * of.part : nullptr;
  const float scale = a.scalars[b * kScalars + kScale], bias = a.scalars[b * kScalars + kBias];
  const int supports = quotient(of.s + rows - 1, rows), tiles = quotient(of.q + rows - 1, rows);
  const int own = quotient(tiles - part + of.parts - 1, of.parts), steps = supports + own + (left ? supports : 0);
  clear_pads(of, tile);
  double squares = 0;
  // W = alpha^T X_s and 1^T alpha; P, R, M and 1^T R; K_qs^T R = scale X_s M^T + bias 1 (1^T R).
#pragma unroll 1
  for (int turn = 0; turn < steps; ++turn) {
    const Step step = turn < supports ? Step::weights : turn < supports + own ? Step::predict : Step::moment;
    const bool queries = step == Step::predict, start = turn == 0 || turn == supports;
    const int first = (queries                ? part + (turn - supports) * of.parts
                       : step == Step::moment ? turn - supports - own
                                              : turn) *
                      rows;
    // Load the tile, and its rows of alpha.
    const Source<float>& x = queries ? a.x_q : a.x_s;
    load_rows(x[b].from(first, 0), queries ? a.vectors_q : a.vectors_s, (queries ? of.q : of.s) - first, rows, 0,
              of.width, of.d, tile.x, of.width);
    simt::copy_commit();
    if (step == Step::weights)
      load_targets(of, {a.coef + (b * of.s + first) * of.c, of.c, 1}, of.s - first, rows, tile.r, of.pitch);
    simt::copy_wait<0>();
    simt::barrier();
    // Multiply by W or M.
    const Answers answers(a, b, queries ? first : 0);
    const int across = of.targets / kUnitColumns, units = rows / kUnitRows * across;
    const float* const by = queries ? w : tile.m;
    const float* const sums = queries ? alpha_sums : tile.r_sums;
#pragma unroll 1
    for (int unit = simt::warp(); step != Step::weights && unit < units; unit += kWarps) {
      const int line = quotient(unit, across);
      int i = line * kUnitRows, c = (unit - line * across) * kUnitColumns;
      const float dot = dot_rows(tile.x + i * of.width, of.width, kUnitRows - 1, by + c * of.width, of.width,
                                 kUnitColumns - 1, of.width);
      i += simt::lane() / kUnitColumns;
      c += simt::lane() % kUnitColumns;
      const float v = scale * dot + bias * simt::get(sums + c);
      if (queries)
        squares += set_residual(of, answers, i, c, v, tile.r);
      else
        simt::put_if(first + i < of.s && c < of.c, tile.moment + (first + i) * of.c + c, v);
    }
    simt::barrier();
    // Add to W or M.
    if (step == Step::weights || (queries && left)) {
      add_outer(of, tile.r, rows, tile.x, of.width, of.width, start, queries ? tile.m : w);
      add_columns(of, tile.r, rows, start, queries ? tile.r_sums : alpha_sums);
    }
    simt::barrier();
  }
  if (left) leave_sums(of, tile, left);
  add_loss(a, b, part, squares);
}

}  // namespace

bool one_pass_fits(const KrrShape& shape) {
  const bool small = shape.s >= 1 && shape.s <= kOnePassSupport && shape.q >= 1 && shape.c >= 1 && shape.c <= 1024 &&
                     shape.d >= 1 && shape.d <= 16384 && shape.q < int64_t(1) << 30;
  const int64_t most_parts = (shape.q + kUnitRows - 1) / kUnitRows;
  if (!small || shape.kernel != KernelKind::linear || shape.n != shape.s || shape.parts > most_parts) return false;
  const OnePass of = one_pass_sizes(shape);
  const int bytes = of.s <= kOnePassFactors ? few_bytes(of, kUnitRows, true) : query_bytes(of, kUnitRows);
  return std::max(bytes, one_pass_backward_bytes(of, kGroup)) <= simt::shared_limit() - kStaticBytes;
}

void one_pass_forward(const KrrForwardArgs<float>& a, const Factor<float>& f, float* loss_parts, int* counters,
                      simt::Stream stream) {
  QueryArgs args{};
  args.of = one_pass_sizes(a.shape);
  args.x_s = {a.x_s, a.s_element};
  args.x_q = {a.x_q, a.q_element};
  args.vectors_s = has_vectors(args.x_s);
  args.vectors_q = has_vectors(args.x_q);
  args.y_q = a.y_q;
  args.scalars = f.scalars;
  args.coef = a.coef;
  args.out = a.out;
  args.left = a.parts;
  args.loss = a.loss;
  args.loss_parts = loss_parts;
  args.counters = counters;
  const OnePass& of = args.of;
  if (of.s <= kOnePassFactors) return launch_few(args, f, stream);
  args.rows = rows_of(of, [&](int rows) { return query_bytes(of, rows); });
  simt::launch(&query_kernel, {static_cast<unsigned>(a.shape.batch * of.parts)}, kBlockThreads,
               query_bytes(of, args.rows), stream, args);
}

}  // namespace ssdd::cuda

// The forward of the loss of a linear kernel with at most 32 support points, with the queries read once (one_pass.cuh).
//
// Mapping: few_kernel, 256 threads per block, `parts` blocks per problem; each takes every parts-th tile of 8, 16 or 32
// queries, which stays in shared memory. Every block forms and factors K_ss, beside K_qs of its first tile: that takes less
// time than a launch of its own. X_s comes in chunks of 256 or 512 features through 2 stages of cp.async. A warp computes
// 8 x 4 products at a time, lanes along the features; each lane ends with one of them. A pivot costs one barrier, and a
// warp solves for two targets. The first block of a problem writes the factor, and the last adds up the loss (join.cuh).
// Traffic: X_q and Y_q once from memory, R written once, S D elements of X_s per tile, from L2, and C D written per part.
// FLOPs per block with T tiles of r queries: S^2 D + S^3 / 3 + 2 S^2 C + 2 T r (S D + 2 S C + C D).
// Floor on an H100 for S=10 Q=1024 D=2048 C=10: 8.4 MB of X_q in 3.4 us. Counted per block: products 6,500 cycles, pivots
// and solve 3,500, M 3,000, and the first trip to memory.
// Other path: the products and the factorisation of krr.cu, chosen by ssdd_ext/plan.
#include "one_pass_tile.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarps = kBlockThreads / 32;

int chunk_of(const OnePass& of) { return of.s <= 16 ? 512 : 256; }

// K_ss, K_qs of a tile, and what follows from K_ss, in shared memory.
struct FewRoom {
  int pitch, odd;                    // of rows of K, and of the matrix that is factored
  float *k_ss, *k_qs, *l, *inverse;  // k_qs [rows, S]; inverse: 1 / L(i, i)
  float* alpha;                      // [S, targets]
  float* stages;                     // 2 x [S, chunk]
  SIMT_DEVICE FewRoom(simt::Shared& shared, const OnePass& of, int rows, int chunk) {
    pitch = shared_pitch<float>(of.s);
    odd = of.s | 1;
    k_ss = shared.take<float>(of.s * pitch);
    k_qs = shared.take<float>(rows * pitch);
    l = shared.take<float>(of.s * odd);
    inverse = shared.take<float>(of.s);
    alpha = shared.take<float>(of.s * (of.targets | 1));
    stages = shared.take<float>(2 * of.s * chunk);
  }
};
// Forms K_qs of the tile from query `first`, with K_ss or without. A unit of 8 x 4 products belongs to one warp in all
// chunks, which adds its sums to those of the chunks before.
SIMT_DEVICE void form_kernels(const QueryArgs& a, int64_t b, int first, bool with_support, const FewRoom& room,
                              const Tile& tile) {
  const OnePass& of = a.of;
  const int columns = (of.s + kUnitColumns - 1) / kUnitColumns, blocks = (of.s + kUnitRows - 1) / kUnitRows;
  // Row block i of the lower triangle has units up to the diagonal.
  const auto in_row = [&](int i) { return 2 * i + 2 < columns ? 2 * i + 2 : columns; };
  int square = 0;
#pragma unroll 1
  for (int i = 0; with_support && i < blocks; ++i) square += in_row(i);
  const int units = square + a.rows / kUnitRows * columns, chunks = (of.width + a.chunk - 1) / a.chunk;
  const float scale = a.scalars[b * kScalars + kScale], bias = a.scalars[b * kScalars + kBias];
  const Source<float> x_s = a.x_s[b], x_q = a.x_q[b].from(first, 0);
  // Each turn multiplies one chunk and starts the copies of the next but one; the first two only copy.
#pragma unroll 1
  for (int t = -2; t < chunks; ++t) {
    const int k = t * a.chunk, length = of.width - k < a.chunk ? of.width - k : a.chunk;
    float* const stage = room.stages + (t & 1) * of.s * a.chunk;
    simt::copy_wait<1>();
    simt::barrier();
#pragma unroll 1
    for (int unit = t < 0 ? units : simt::warp(); unit < units; unit += kWarps) {
      const bool of_support = unit < square;
      int i = of_support ? 0 : (unit - square) / columns, j = of_support ? unit : (unit - square) % columns;
      while (of_support && j >= in_row(i)) j -= in_row(i++);
      i *= kUnitRows;
      j *= kUnitColumns;
      const float dot =
          dot_rows(of_support ? stage + i * a.chunk : tile.x + i * of.width + k, of_support ? a.chunk : of.width,
                   of_support ? of.s - 1 - i : kUnitRows - 1, stage + j * a.chunk, a.chunk, of.s - 1 - j, length);
      i += simt::lane() / kUnitColumns;
      j += simt::lane() % kUnitColumns;
      const bool wanted = j < of.s && (!of_support || (i < of.s && j <= i));
      float* const to = (of_support ? room.k_ss : room.k_qs) + i * room.pitch + j;
      const float sum = simt::get_if(wanted && t > 0, to, 0.0f) + dot;
      simt::put_if(wanted, to, t == chunks - 1 ? scale * sum + bias : sum);
    }
    simt::barrier();  // before the stage is loaded again
    const int next = k + 2 * a.chunk, more = of.width - next < a.chunk ? of.width - next : a.chunk;
    if (more > 0) {
      load_rows(x_s, a.vectors_s, of.s, of.s, next, more, of.d, stage, a.chunk);
      load_rows(x_q, a.vectors_q, of.q - first, a.rows, next, more, of.d, tile.x + next, of.width);
    }
    simt::copy_commit();
  }
  simt::copy_wait<0>();
}

// Factors room.l, lower triangle, by one barrier per pivot; columns are scaled at the end. Returns the 1-based pivot that
// failed, or 0, in all threads.
SIMT_DEVICE int factor_few(int n, const FewRoom& room) {
  const int lane = simt::lane();
#pragma unroll 1
  for (int k = 0; k < n; ++k) {
    const float pivot = simt::get(room.l + k * room.odd + k);
    if (!(pivot > 0.0f && simt::finite(pivot))) return k + 1;
    const float over = 1.0f / pivot;
#pragma unroll 1
    for (int i = k + 1 + simt::warp(); i < n; i += kWarps) {
      const bool part = lane > k && lane <= i;
      float* const element = room.l + i * room.odd + lane;
      const float left = simt::get(room.l + i * room.odd + k) * over;
      const float right = simt::get_if(part, room.l + lane * room.odd + k, 0.0f);
      simt::put_if(part, element, simt::get_if(part, element, 0.0f) - left * right);
    }
    simt::barrier();
  }
  if (simt::warp() == 0 && lane < n)
    simt::put(room.inverse + lane, simt::inverse_root(simt::get(room.l + lane * room.odd + lane)));
  simt::barrier();
#pragma unroll 1
  for (int i = simt::warp(); i < n; i += kWarps) {
    const bool part = lane <= i;
    float* const element = room.l + i * room.odd + lane;
    const float v = simt::get_if(part, element, 0.0f) * simt::get_if(part, room.inverse + lane, 0.0f);
    simt::put_if(part, element, v);
  }
  simt::barrier();
  return 0;
}

// Factors K_ss + lambda I with retries. `reports`: this block writes the outcome. Returns the status.
SIMT_DEVICE int factor_with_ridge(const Factor<float>& f, int64_t b, bool reports, const FewRoom& room) {
  const int n = static_cast<int>(f.n), lane = simt::lane();
  const float* const scalars = f.scalars + b * kScalars;
  double trace = simt::get_if(lane < n, room.k_ss + lane * (room.pitch + 1), 0.0f);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) trace += simt::shuffle_xor(trace, mask);
  const double lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
  const bool valid = scalars[kValid] != 0.0f;
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  double jitter = 0;
  int status = kBadParameter;
#pragma unroll 1
  for (int attempt = 0; valid && attempt < attempts && status != 0; ++attempt) {
    jitter = jitter_of<float>(attempt, trace, n);
    simt::barrier();  // every thread has left the attempt before
#pragma unroll 1
    for (int i = simt::warp(); i < n; i += kWarps) {
      const float k = simt::get_if(lane <= i, room.k_ss + i * room.pitch + lane, 0.0f);
      const double shift = lane == i ? lambda + jitter : 0;
      simt::put_if(lane <= i, room.l + i * room.odd + lane, static_cast<float>(static_cast<double>(k) + shift));
    }
    simt::barrier();
    status = factor_few(n, room);
  }
  if (reports && simt::thread() == 0) report(f, b, status, trace, lambda, jitter);
  return status;
}

// Writes L, with K above the diagonal; NaN if the problem failed.
SIMT_DEVICE void write_few(const Factor<float>& f, int64_t b, int status, const FewRoom& room) {
  const int n = static_cast<int>(f.n), j = simt::lane();
#pragma unroll 1
  for (int i = simt::warp(); i < n; i += kWarps) {
    const float l = status ? simt::nan<float>() : simt::get_if(j <= i, room.l + i * room.odd + j, 0.0f);
    const float k = simt::get_if(j > i && j < n, room.k_ss + j * room.pitch + i, 0.0f);
    simt::store_if(j < n, f.factor + (b * n + i) * n + j, j <= i ? l : k);
  }
}

// Solves for alpha; NaN if the problem failed. `writes`: to f.x too.
SIMT_DEVICE void solve_few(const OnePass& of, const Factor<float>& f, int64_t b, int status, bool writes,
                           const FewRoom& room) {
  const int pitch = of.targets | 1;
  load_targets(of, f.y[b], of.s, of.s, room.alpha, pitch);
  simt::barrier();
  solve_targets<1>(of, room.l, room.inverse, status != 0, room.alpha);
  simt::barrier();
#pragma unroll 1
  for (int i = simt::warp(); writes && i < of.s; i += kWarps)
#pragma unroll 1
    for (int c = simt::lane(); c < of.c; c += 32)
      simt::store(f.x + (b * of.s + i) * of.c + c, simt::get(room.alpha + i * pitch + c));
}

// Adds K_qs^T R of the tile to the moment.
SIMT_DEVICE void add_moment(const QueryArgs& a, const Tile& tile, bool first, const FewRoom& room) {
  const OnePass& of = a.of;
#pragma unroll 1
  for (int s = simt::warp(); s < of.s; s += kWarps)
#pragma unroll 1
    for (int c = simt::lane(); c < of.c; c += 32) {
      float sum = first ? 0.0f : simt::get(tile.moment + s * of.c + c);
#pragma unroll 2
      for (int i = 0; i < a.rows; ++i)
        sum = simt::fma(simt::get(room.k_qs + i * room.pitch + s), simt::get(tile.r + i * of.pitch + c), sum);
      simt::put(tile.moment + s * of.c + c, sum);
    }
}

SIMT_KERNEL_MIN(kBlockThreads, 2) void few_kernel(QueryArgs a, Factor<float> f) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  const OnePass& of = a.of;
  const int64_t b = simt::block().x / of.parts;
  const int part = simt::block().x % of.parts, tiles = (of.q + a.rows - 1) / a.rows;
  const bool writes = part == 0;
  const FewRoom room(shared, of, a.rows, a.chunk);
  const Tile tile(shared, of, a.rows, a.left && tiles > of.parts);
  float* const left = a.left ? a.left + (b * of.parts + part) * of.part : nullptr;
  clear_pads(of, tile);
  double squares = 0;
#pragma unroll 1
  for (int t = part; t < tiles; t += of.parts) {
    const bool first = t == part;
    form_kernels(a, b, t * a.rows, first, room, tile);
    simt::barrier();
    if (first) {
      const int status = factor_with_ridge(f, b, writes, room);
      if (writes) write_few(f, b, status, room);
      solve_few(of, f, b, status, writes, room);
    }
    // Predict.
    const Answers answers(a, b, t * a.rows);
#pragma unroll 1
    for (int i = simt::warp(); i < a.rows; i += kWarps)
#pragma unroll 1
      for (int c = simt::lane(); c < of.targets; c += 32) {
        float p = 0;
#pragma unroll 2
        for (int s = 0; s < of.s; ++s)
          p = simt::fma(simt::get(room.k_qs + i * room.pitch + s), simt::get(room.alpha + s * (of.targets | 1) + c), p);
        squares += set_residual(of, answers, i, c, p, tile.r);
      }
    simt::barrier();
    if (!left) continue;
    add_tile(a, tile, first, left);
    add_moment(a, tile, first, room);
    simt::barrier();  // before the tile is loaded again, and before the sums are left
  }
  if (left) leave_sums(of, tile, left);
  add_loss(a, b, part, squares);
}

}  // namespace

int few_bytes(const OnePass& of, int rows, bool keeps_m) {
  const int pitch = shared_pitch<float>(of.s);
  const int arrays =
      (of.s + rows) * pitch + of.s * (of.s | 1) + of.s + of.s * (of.targets | 1) + 2 * of.s * chunk_of(of);
  return (arrays + tile_elements(of, rows, keeps_m)) * 4 + 11 * 16;  // each array begins at a multiple of 16
}

void launch_few(QueryArgs args, const Factor<float>& f, simt::Stream stream) {
  const OnePass& of = args.of;
  const auto bytes = [&](int rows) { return few_bytes(of, rows, args.left && (of.q + rows - 1) / rows > of.parts); };
  args.chunk = chunk_of(of);
  args.rows = rows_of(of, bytes);
  simt::launch(&few_kernel, {static_cast<unsigned>(f.batch * of.parts)}, kBlockThreads, bytes(args.rows), stream, args,
               f);
}

}  // namespace ssdd::cuda

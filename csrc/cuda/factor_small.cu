// Problems that fit one warp or one block: read once, everything on chip, written once.
//
// warp_kernel, n <= 32: a warp a problem, 4 a block. Lane i holds column i of the lower triangle in registers (32, rows
// coalesced), step k broadcasts column k by shuffles. x: a lane a column of it, L again by shuffles.
// block_kernel, n <= block_limit: 256 threads a problem, the matrix in shared memory; see triangle.cuh. With few columns of
// y the solve is done there too, else by solve_kernel, one block for 64 columns, which also does what follows the backward's
// (after_solve.cuh).
// Traffic: n^2 / 2 elements read, n^2 / 2 written (and as many zeros), 2 n c for x, 5 n c for what follows. FLOPs n^3 / 3 + 2 n^2 c.
// Floor on an H100: a problem of 128 moves 131 KB and takes 0.7 MFLOP, far below a launch; a chain of n pivots, each a square
// root, a reciprocal and a shuffle (about 100 cycles), is the real one: 128 x 100 / 1.7 GHz = 8 us.
// Other path: factor_large.cu for matrices beyond one block's shared memory, factor_fused.cu from features.
#include "factor_block.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarpThreads = 128;

template <class T>
SIMT_KERNEL(kWarpThreads) warp_kernel(Factor<T> f) {
  const int64_t b = static_cast<int64_t>(simt::block().x) * (kWarpThreads / 32) + simt::warp();
  if (b >= f.batch) return;  // a whole warp
  const int lane = simt::lane(), n = static_cast<int>(f.n);
  const View<const T> a = f.source[b];
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  T column[32], inverse = 1;
  double trace = 0, lambda = 0, jitter = 0;
  int failed = kBadParameter;
  for (int attempt = 0; valid && attempt < attempts && failed != 0; ++attempt) {
    T diagonal = 0;
    const T* from = a.p + lane * a.cs;  // walks down: 32 addresses at once would not fit the registers
#pragma unroll
    for (int j = 0; j < 32; ++j, from += a.rs) {
      column[j] = simt::load_if(j < n && lane <= j, from, T(0));
      if (lane == j) diagonal = column[j];
    }
    if (attempt == 0) {
      trace = static_cast<double>(diagonal);
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) trace += simt::shuffle_xor(trace, mask);
      lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
    }
    jitter = jitter_of<T>(attempt, absolute(trace) / n);
    const T shifted = static_cast<T>(static_cast<double>(diagonal) + lambda + jitter);
#pragma unroll
    for (int j = 0; j < 32; ++j)
      if (lane == j) column[j] = shifted;
    failed = factor_columns<32>(column, n, inverse);
  }
  const T bad = failed ? simt::nan<T>() : T(0);
  T* out = f.factor + b * f.n * f.n + lane;
#pragma unroll
  for (int j = 0; j < 32; ++j, out += n) {
    const bool lower = lane <= j;
    simt::store_if(j < n && lane < n && (lower || f.zero_upper), out, !lower ? T(0) : failed ? bad : column[j]);
  }
  if (lane == 0) report(f, b, failed, trace, lambda, jitter);
  if (!f.x) return;
  const View<const T> y = f.y[b];
#pragma unroll 1
  for (int64_t c0 = 0; c0 < f.c; c0 += 32) {
    const bool exists = c0 + lane < f.c;
    const T* from = y.p + (c0 + lane) * y.cs;
    T x[32];
#pragma unroll
    for (int j = 0; j < 32; ++j, from += y.rs) x[j] = simt::load_if(j < n && exists, from, T(0));
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      if (k >= n) break;
      x[k] *= simt::shuffle(inverse, k);
#pragma unroll
      for (int j = k + 1; j < 32; ++j) x[j] = simt::fma(-simt::shuffle(column[j], k), x[k], x[j]);
    }
#pragma unroll
    for (int k = 31; k >= 0; --k) {
      if (k >= n) continue;
      T sum = x[k];
#pragma unroll
      for (int j = k + 1; j < 32; ++j) sum = simt::fma(-simt::shuffle(column[j], k), x[j], sum);
      x[k] = sum * simt::shuffle(inverse, k);
    }
    T* to = f.x + b * f.n * f.c + c0 + lane;
#pragma unroll
    for (int j = 0; j < 32; ++j, to += f.c)
      simt::store_if(j < n && exists, to, x[j] + bad);
  }
}

template <class T>
SIMT_KERNEL_MIN(kBlockThreads, 1) block_kernel(Factor<T> f) {
  simt::Shared shared;
  const BlockRoom<T> room(shared, f.n);
  const int64_t b = simt::block().x;
  const int status = factor_with_retries(f, b, room, [&](int) { load_lower(f.source[b], room.n, room.a, room.pitch); });
  write_factor(f, b, room, status);
}

template <class T>
SIMT_KERNEL(kBlockThreads) solve_kernel(int64_t size, const T* factor, int64_t columns, Batch<const T> y, T* out,
                                        const int32_t* status, int64_t chunks, Solved<T> after) {
  simt::Shared shared;
  const int n = static_cast<int>(size), pitch = shared_pitch(n);
  T* const l = shared.take<T>(n * pitch);
  T* const inverse = shared.take<T>(n);
  const int64_t b = simt::block().x / chunks, c0 = simt::block().x % chunks * kColumns;
  const Columns<T> x{out + b * size * columns + c0, columns, 1,
                     static_cast<int>(columns - c0 < kColumns ? columns - c0 : kColumns)};
  const bool bad = status && status[b] != 0;
  if (y.p) copy_columns(y[b].from(0, c0), n, x, bad ? simt::nan<T>() : T(0));
  if (bad) return;  // the same for the whole block
  load_lower<T>({factor + b * size * size, size, 1}, n, l, pitch);
  simt::barrier();
  for (int i = simt::thread(); i < n; i += kBlockThreads) simt::put(inverse + i, T(1) / simt::get(l + i * pitch + i));
  simt::barrier();
  substitute<false>(l, pitch, n, inverse, x);
  substitute<true>(l, pitch, n, inverse, x);
  if (!after.scalars) return;
  const bool nothing = failed(after.aux, b);
  double sum = 0;
  for (int e = simt::thread(); e < n * x.count; e += kBlockThreads)
    sum += hand_on(after, b, e / x.count, c0 + e % x.count, nothing);
  set_lambda_bar<kBlockThreads>(after, b, simt::block().x % chunks, chunks, sum);
}

}  // namespace

template <class T>
int64_t block_limit() {
  // One block a processor at least; a device with less shared memory goes on to the next rung sooner.
  return largest_order(kWarpLimit, [](int64_t n) { return block_bytes<T>(n); });
}

template <class T>
void factorise_small(const Factor<T>& f, simt::Stream stream) {
  if (f.n <= kWarpLimit)
    return simt::launch(&warp_kernel<T>, {static_cast<unsigned>((f.batch + 3) / 4)}, kWarpThreads, 0, stream, f);
  simt::launch(&block_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, block_bytes<T>(f.n), stream, f);
  if (f.x && f.c > kColumns) solve_small<T>(f.batch, f.n, f.factor, f.c, f.y, f.x, f.status, stream);
}

template <class T>
void solve_small(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x,
                 const int32_t* status, simt::Stream stream, const Solved<T>& after) {
  const int64_t chunks = (c + kColumns - 1) / kColumns;
  simt::launch(&solve_kernel<T>, {static_cast<unsigned>(batch * chunks)}, kBlockThreads, block_bytes<T>(n), stream, n, factor,
               c, y, x, status, chunks, after);
}

#define SSDD_INSTANTIATE(T)                                        \
  template int64_t block_limit<T>();                               \
  template void factorise_small(const Factor<T>&, simt::Stream);   \
  template void solve_small(int64_t, int64_t, const T*, int64_t, const Batch<const T>&, T*, const int32_t*, simt::Stream, \
                            const Solved<T>&);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

// Cholesky and solve of problems that fit one warp or one block: read once, kept on chip, written once.
//
// Mapping: warp_kernel, n <= 32: one warp per problem, 4 per block. block_kernel, n <= block_limit: 256 threads per
// problem. Both hold the matrix in shared memory and factor it by triangle.cuh: lane i of the first warp has row i of a
// strip in registers.
// With few columns of y the same kernel solves. Else solve_kernel does: one block per 8 columns, or per 32 if that
// gives enough blocks to fill the chip. It also does the work of after_solve.cuh.
// Traffic: n^2 / 2 elements read, n^2 / 2 written (and as many zeros), 2 n c for x, 5 n c for after_solve. solve_kernel
// reads n^2 / 2 of L per block. FLOPs: n^3 / 3 + 2 n^2 c.
// Floor on an H100: a problem with n = 128 moves 131 KB and takes 0.7 MFLOP, far below the cost of a launch. The limit
// is the chain of pivots, counted for n = 128: 128 pivots of about 95 cycles, and per strip of 16 an update of 350
// cycles and a panel of 300: 17,000 cycles, 9 us. A solve takes about 400 cycles per strip and direction.
// The strips of a solve are substituted. Inverses of the 16 x 16 blocks on the diagonal would make a product of each, but
// in float, at condition 1e6, with residuals up to 4 times and predictions of the linear kernel up to 3 times less accurate
// (means over 4 to 8 matrices of order 10 to 48, simulated in numpy).
// Other path: factor_large.cu for matrices beyond one block's shared memory, factor_fused.cu from features.
#include "factor_block.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarpThreads = 128;

// Elements of shared memory per warp, a multiple of 16 bytes.
template <class T>
constexpr int warp_room(int n) {
  return n * shared_pitch<T>(n) + whole_strips(n) + BlockRoom<T>::working(n);
}

template <class T>
SIMT_KERNEL_MIN(kWarpThreads, 1)
void warp_kernel(Factor<T> f) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  SIMT_SHARED(int, failures, kWarpThreads / 32);
  const int lane = simt::lane(), n = static_cast<int>(f.n), room = warp_room<T>(n);
  T* const own = shared.take<T>(kWarpThreads / 32 * room) + simt::warp() * room;
  const Square<T> matrix{own, n, shared_pitch<T>(n)};
  T* const inverse = own + n * matrix.pitch;
  T* const panel = inverse + whole_strips(n);
  int* const failed = failures + simt::warp();
  const int64_t b = static_cast<int64_t>(simt::block().x) * (kWarpThreads / 32) + simt::uniform(simt::warp());
  if (b >= f.batch) return;  // the same for the whole warp
  const View<const T> a = f.source[b];
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = simt::uniform(scalars[kValid]) != T(0);
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  double trace = 0, lambda = 0, jitter = 0;
  int status = kBadParameter;
#pragma unroll 1
  for (int attempt = 0; valid && attempt < attempts && status != 0; ++attempt) {
    // Load the lower triangle.
#pragma unroll 1
    for (int i = 0; i < n; ++i)
      simt::copy_async_if<sizeof(T)>(lane <= i, matrix.at(i, lane <= i ? lane : 0),
                                     lane <= i ? a.p + i * a.rs + lane * a.cs : a.p, static_cast<int>(sizeof(T)));
    simt::copy_commit();
    simt::copy_wait<0>();
    if (lane == 0) *failed = 0;
    simt::warp_barrier();
    // Add ridge and jitter.
    const double diagonal =
        static_cast<double>(simt::get_if(lane < n, matrix.at(lane < n ? lane : 0, lane < n ? lane : 0), T(0)));
    if (attempt == 0) {
      trace = diagonal;
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) trace += simt::shuffle_xor(trace, mask);
      lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
    }
    jitter = jitter_of<T>(attempt, trace, n);
    if (lane < n) *matrix.at(lane, lane) = static_cast<T>(diagonal + lambda + jitter);
    simt::warp_barrier();
    factor_shared<32>(matrix, inverse, panel, failed);
    status = simt::uniform(*failed);
    simt::warp_barrier();  // before lane 0 writes it again
  }
  // Write L, or NaN.
  T* out = f.factor + b * f.n * f.n + lane;
#pragma unroll 1
  for (int i = 0; i < n; ++i, out += n) {
    const bool lower = lane <= i;
    const T v = simt::get_if(lower && status == 0, matrix.at(i, lower ? lane : 0), T(0));
    simt::store_if(lane < n && (lower || f.zero_upper), out, lower && status ? simt::nan<T>() : v);
  }
  if (lane == 0) report(f, b, status, trace, lambda, jitter);
  if (!f.x) return;
  const Columns<kPassColumns, T> x{panel + kPanelRoom, kPassColumns};
  solve_columns<32>(matrix, inverse, x, f.y[b], f.c, status != 0, f.x + b * f.n * f.c);
}

template <class T>
SIMT_KERNEL_MIN(kBlockThreads, (sizeof(T) == 4 ? 2 : 1))
void block_kernel(Factor<T> f, bool vectors) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  BlockRoom<T> room(shared, f.n);
  room.place_work(shared.take<T>(BlockRoom<T>::working(room.a.n)));
  const int64_t b = simt::block().x;
  const int status = factor_with_retries(f, b, room, [&](int) {
    load_lower<kBlockThreads>(f.source[b], vectors, room.a);
    simt::copy_wait<0>();
  });
  write_factor(f, b, room, status);
}

// u <- A^-1 y for one chunk of Width columns. Without y, u itself is the right-hand side.
template <int Width, class T>
SIMT_KERNEL_MIN(kBlockThreads, 1)
void solve_kernel(int64_t size, const T* factor, bool vectors, int64_t columns, Batch<const T> y, T* out,
                  const int32_t* status, int64_t chunks, AfterSolve<T> after) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  const int n = static_cast<int>(size);
  const Square<T> l{shared.take<T>(n * shared_pitch<T>(n)), n, shared_pitch<T>(n)};
  T* const inverse = shared.take<T>(whole_strips(n));
  const Columns<Width, T> x{shared.take<T>(whole_strips(n) * Width), Width};
  const int64_t b = simt::block().x / chunks, chunk = simt::block().x % chunks, c0 = chunk * Width;
  T* const own = out + b * size * columns;
  const bool bad = status && status[b] != 0;
  // Load L and the columns.
  if (!bad) load_lower<kBlockThreads, T>({factor + b * size * size, size, 1}, vectors, l);
  load_columns<kBlockThreads>(y.p ? y[b] : View<const T>{own, columns, 1}, n, c0, columns, x);
  simt::copy_wait<0>();
  simt::barrier();
  if (!bad) {  // the same for the whole block
#pragma unroll 1
    for (int i = simt::thread(); i < n; i += kBlockThreads)
      simt::put(inverse + i, simt::reciprocal(simt::get(l.at(i, i))));
    simt::barrier();
    substitute_twice<kBlockThreads>(l, inverse, x);
  }
  if (!after.scalars) return store_columns<kBlockThreads>(x, n, c0, columns, bad, own);
  // Pack u and x, and sum <u, x>.
  const bool nothing = failed(after.aux, b);
  double sum = 0;
  const int c = simt::thread() % Width;
#pragma unroll 2
  for (int i = simt::thread() / Width; c0 + c < columns && i < n; i += kBlockThreads / Width)
    sum += pack_element(after, (b * size + i) * columns + c0 + c, c0 + c,
                        nothing ? simt::nan<T>() : simt::get(x.at(i, c)), true);
  set_lambda_bar<kBlockThreads>(after, b, chunk, chunks, sum);
}

template <int Width, class T>
int solve_bytes(int64_t size) {
  const int n = static_cast<int>(size);
  return static_cast<int>((n * shared_pitch<T>(n) + whole_strips(n) * (1 + Width)) * static_cast<int64_t>(sizeof(T))) +
         48;
}

template <int Width, class T>
void launch_solve(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x,
                  const int32_t* status, simt::Stream stream, const AfterSolve<T>& after) {
  const int64_t chunks = (c + Width - 1) / Width;
  const bool vectors = rows_are_aligned(factor, n * n, n, 1);
  simt::launch(&solve_kernel<Width, T>, {static_cast<unsigned>(batch * chunks)}, kBlockThreads,
               solve_bytes<Width, T>(n), stream, n, factor, vectors, c, y, x, status, chunks, after);
}

}  // namespace

template <class T>
int64_t block_limit() {
  // At least one block per multiprocessor. A device with less shared memory uses the tiled path from a smaller n on.
  return largest_order(kWarpLimit, [](int64_t n) { return block_bytes<T>(n); });
}

template <class T>
void factorise_small(const Factor<T>& f, simt::Stream stream) {
  if (f.n <= kWarpLimit) {
    constexpr int kWarps = kWarpThreads / 32;
    return simt::launch(&warp_kernel<T>, {static_cast<unsigned>((f.batch + kWarps - 1) / kWarps)}, kWarpThreads,
                        kWarps * warp_room<T>(static_cast<int>(f.n)) * static_cast<int>(sizeof(T)), stream, f);
  }
  const bool vectors = rows_are_aligned(f.source.p, f.source.bs, f.source.rs, f.source.cs);
  simt::launch(&block_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, block_bytes<T>(f.n), stream, f,
               vectors);
  if (f.x && f.c > kPassLimit) solve_small<T>(f.batch, f.n, f.factor, f.c, f.y, f.x, f.status, stream);
}

template <class T>
void solve_small(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x,
                 const int32_t* status, simt::Stream stream, const AfterSolve<T>& after) {
  // Wide chunks read L less often. Narrow ones make more blocks, and fit if little shared memory is left beside L.
  const bool wide = batch * ((c + 31) / 32) >= kChip / 2 && solve_bytes<32, T>(n) <= simt::shared_limit();
  if (wide)
    launch_solve<32>(batch, n, factor, c, y, x, status, stream, after);
  else
    launch_solve<kNarrowColumns>(batch, n, factor, c, y, x, status, stream, after);
}

#define SSDD_INSTANTIATE(T)                                                                                 \
  template int64_t block_limit<T>();                                                                        \
  template void factorise_small(const Factor<T>&, simt::Stream);                                            \
  template void solve_small(int64_t, int64_t, const T*, int64_t, const Batch<const T>&, T*, const int32_t*, \
                            simt::Stream, const AfterSolve<T>&);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

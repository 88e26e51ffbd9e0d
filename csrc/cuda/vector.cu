// Copies, mirrors, sums and scalars. All are bound by memory or by their launch; each reads and writes every element once.
//
// Mapping: copy_kernel and mirror_kernel a block of 256 threads a square of 32 x 32; sum_columns_kernel a block 32 columns;
// dot_kernel a block 8192 elements; nan_kernel and zero_kernel a thread an element; the kernels of scalars a thread a problem.
// Traffic, elements read and written: copy n and n, mirror n^2 / 2 and n^2 / 2, sums n and one a column, dot 2 n and one a
// block; nan_kernel writes those of failed problems only. FLOPs: at most 2 an element. Floor on an H100: bytes / 3.35 TB/s,
// from L2 less; below some megabytes the launch. Other path: none.
#include "vector.cuh"

#include <algorithm>

#include "scalars.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256, kSquare = 32;
constexpr int64_t kPart = 8192;  // elements that one block of a dot product sums

unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

// Sums 256 values in a fixed order; the result is thread 0's.
SIMT_DEVICE double block_sum(double v) {
  SIMT_SHARED(double, warps, kThreads / 32);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += simt::shuffle_xor(v, mask);
  if (simt::lane() == 0) simt::put(warps + simt::warp(), v);
  simt::barrier();
  double sum = 0;
  if (simt::thread() == 0)
    for (int w = 0; w < kThreads / 32; ++w) sum += simt::get(warps + w);
  return sum;
}

// Squares of 32 x 32 through shared memory where the source's unit stride runs down the columns: both sides coalesced.
// pitch 33: a column of the square falls into 32 banks.
template <class T>
SIMT_KERNEL(kThreads) copy_kernel(Copy<T> c, int64_t squares_n, int64_t squares) {
  SIMT_SHARED(T, square, kSquare * (kSquare + 1));
  const int64_t index = simt::block().x % squares, b = simt::block().x / squares;
  const int64_t i0 = index / squares_n * kSquare, j0 = index % squares_n * kSquare;
  const View<const T> x = c.x[b];
  const bool down = x.rs == 1 && x.cs != 1;
  const int fast = simt::lane(), slow = simt::warp();
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int i = down ? fast : slow + r, j = down ? slow + r : fast;
    if (i0 + i < c.rows && j0 + j < c.columns)
      simt::put(square + i * (kSquare + 1) + j, simt::load(x.p + (i0 + i) * x.rs + (j0 + j) * x.cs));
  }
  simt::barrier();
  const T factor = static_cast<T>(c.factor) * (c.factor_of ? c.factor_of[b * kScalars] : T(1));
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int i = slow + r, j = fast;
    if (i0 + i < c.rows && j0 + j < c.columns)
      simt::store(c.out + b * c.out_bs + (i0 + i) * c.ld + j0 + j, factor * simt::get(square + i * (kSquare + 1) + j));
  }
}

// One square of the triangle and its mirror image.
template <class T>
SIMT_KERNEL(kThreads) mirror_kernel(int64_t n, T* a, Mirror how, int64_t squares_n, int64_t squares,
                                      const int32_t* active) {
  SIMT_SHARED(T, square, kSquare * (kSquare + 1));
  const int64_t index = simt::block().x % squares, b = simt::block().x / squares;
  const int64_t i0 = index / squares_n * kSquare, j0 = index % squares_n * kSquare;
  if (j0 > i0 || (active && active[b] == 0)) return;  // the whole block
  a += b * n * n;
  const int fast = simt::lane(), slow = simt::warp();
  const bool up = how != Mirror::upper_to_lower;
  // From (i, j) to (j, i); i > j in the lower triangle.
  const int64_t from_i = up ? i0 : j0, from_j = up ? j0 : i0;
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int64_t i = from_i + slow + r, j = from_j + fast;
    if (i < n && j < n) simt::put(square + (slow + r) * (kSquare + 1) + fast, simt::load(a + i * n + j));
  }
  simt::barrier();
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int64_t i = from_j + slow + r, j = from_i + fast;
    if (i >= n || j >= n || !(up ? i < j : i > j)) continue;
    const T v = simt::get(square + fast * (kSquare + 1) + slow + r);
    simt::store(a + i * n + j, how == Mirror::zero_upper ? T(0) : v);
  }
}

// A warp's lanes take neighbouring columns, its 8 warps every eighth row.
template <class T>
SIMT_KERNEL(kThreads) sum_columns_kernel(ColumnSums<T> c, int64_t strips) {
  SIMT_SHARED(double, sums, kThreads);
  const int64_t b = simt::block().x / strips, j = simt::block().x % strips * 32 + simt::lane();
  const Source<T> x = c.x[b];
  double sum = 0;
  if (j < c.columns)
    for (int64_t i = simt::warp(); i < c.rows; i += kThreads / 32) sum += static_cast<double>(x(i, j));
  simt::put(sums + simt::thread(), sum);
  simt::barrier();
  if (simt::warp() != 0 || j >= c.columns) return;
  for (int w = 1; w < kThreads / 32; ++w) sum += simt::get(sums + w * 32 + simt::lane());
  const double factor = c.factor * (c.factor_of ? static_cast<double>(c.factor_of[b * kScalars]) : 1.0);
  simt::store(c.out + b * c.out_bs + j, static_cast<T>(factor * sum));
}

template <class T>
SIMT_KERNEL(kThreads) dot_kernel(int64_t count, const T* x, const T* y, int64_t parts, double factor, T* out) {
  const int64_t b = simt::block().x / parts, begin = simt::block().x % parts * kPart;
  const int64_t end = begin + kPart < count ? begin + kPart : count;
  double sum = 0;
  for (int64_t e = begin + simt::thread(); e < end; e += kThreads)
    sum += static_cast<double>(simt::load(x + b * count + e)) * static_cast<double>(simt::load(y + b * count + e));
  sum = block_sum(sum);
  if (simt::thread() == 0) simt::store(out + simt::block().x, static_cast<T>(factor * sum));
}

template <class T>
SIMT_KERNEL(kThreads) join_dots_kernel(int64_t parts, const T* partial, double factor, T* out) {
  const int64_t b = simt::block().x;
  double sum = 0;
  for (int64_t e = simt::thread(); e < parts; e += kThreads) sum += static_cast<double>(simt::load(partial + b * parts + e));
  sum = block_sum(sum);
  if (simt::thread() == 0) simt::store(out + b, static_cast<T>(factor * sum));
}

template <class T>
SIMT_KERNEL(kThreads) nan_kernel(int64_t count, int64_t strips, const int32_t* status, const T* aux, T* out) {
  const int64_t b = simt::block().x / strips, e = simt::block().x % strips * kThreads + simt::thread();
  const bool failed = (status && status[b] != 0) || (aux && aux[3 * b + 1] != aux[3 * b + 1]);
  if (failed && e < count) simt::store(out + b * count + e, simt::nan<T>());
}

template <class T>
SIMT_KERNEL(kThreads) zero_kernel(int64_t count, T* out) {
  const int64_t e = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (e < count) simt::store(out + e, T(0));
}

template <class T>
SIMT_KERNEL(kThreads) scalars_kernel(ScalarArgs<T> a) {
  const int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (b < a.ticket_count) a.tickets[b] = 0;
  if (b >= a.batch) return;
  T* out = a.out + b * kScalars;
  const bool linear = a.kernel == KernelKind::linear;
  const T first = a.parameters > 0 ? a.hyper.get(b, 0) : T(1), bias = linear && a.parameters > 1 ? a.hyper.get(b, 1) : T(0);
  // Constant places only: a run-time index would put the values into local memory.
  const int ridge = a.hyper.count > a.parameters ? a.hyper.count - 1 : -1;
  const T v = ridge == 0 ? a.hyper.get(b, 0) : ridge == 1 ? a.hyper.get(b, 1) : ridge == 2 ? a.hyper.get(b, 2) : T(0);
  const bool valid = first > T(0) && simt::finite(first) && bias >= T(0) && simt::finite(bias) && v >= T(0) && simt::finite(v);
  const T bad = valid ? T(0) : simt::nan<T>();
  const T gamma = a.g ? static_cast<T>(a.g_factor * static_cast<double>(a.g[b](0, 0))) : T(1);
  out[kScale] = first + bad;
  out[kBias] = bias + bad;
  out[kRootScale] = simt::square_root(first + bad);
  out[kRootBias] = simt::square_root(bias + bad);
  out[kRootBoth] = simt::square_root(first * bias + bad);
  out[kLengthscale] = first + bad;
  out[kMap] = T(-0.5) / (first * first) + bad;
  out[kRidge] = v + bad;
  out[kGamma] = gamma;
  out[kGammaScale] = gamma * (first + bad);
  out[kGammaRootScale] = gamma * simt::square_root(first + bad);
  out[kGammaBias] = gamma * (bias + bad);
  out[kValid] = valid ? T(1) : T(0);
}

template <class T>
SIMT_KERNEL(kThreads) lambda_bar_kernel(int64_t batch, const T* dots, RidgeKind ridge, bool detach, int64_t order, T* scalars) {
  const int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (b >= batch) return;
  T* out = scalars + b * kScalars;
  const T lambda_bar = -dots[b];
  const T through = static_cast<T>(ridge_trace_slope(ridge, detach, static_cast<double>(out[kRidge]), order)) * lambda_bar;
  out[kLambdaBar] = lambda_bar;
  out[kThroughTrace] = through;
  out[kTraceScale] = T(2) * through * out[kScale];
}

}  // namespace

template <class T>
void copy(const Copy<T>& c, simt::Stream stream) {
  if (c.batch == 0 || c.rows == 0 || c.columns == 0) return;
  const int64_t squares_n = blocks_for(c.columns, kSquare), squares = squares_n * blocks_for(c.rows, kSquare);
  simt::launch(&copy_kernel<T>, {static_cast<unsigned>(squares * c.batch)}, kThreads, 0, stream, c, squares_n, squares);
}

template <class T>
void mirror(int64_t batch, int64_t n, T* a, Mirror how, simt::Stream stream, const int32_t* active) {
  if (batch == 0 || n == 0) return;
  const int64_t squares_n = blocks_for(n, kSquare), squares = squares_n * squares_n;
  simt::launch(&mirror_kernel<T>, {static_cast<unsigned>(squares * batch)}, kThreads, 0, stream, n, a, how, squares_n, squares,
               active);
}

template <class T>
void sum_columns(const ColumnSums<T>& c, simt::Stream stream) {
  if (c.batch == 0 || c.columns == 0) return;
  const int64_t strips = blocks_for(c.columns, 32);
  simt::launch(&sum_columns_kernel<T>, {static_cast<unsigned>(strips * c.batch)}, kThreads, 0, stream, c, strips);
}

int64_t dot_room(int64_t batch, int64_t count) { return batch * ((count + kPart - 1) / kPart); }

template <class T>
void dot(int64_t batch, int64_t count, const T* x, const T* y, double factor, T* out, T* partial, simt::Stream stream) {
  if (batch == 0) return;
  const int64_t parts = (count + kPart - 1) / kPart;
  if (parts <= 1) {
    simt::launch(&dot_kernel<T>, {static_cast<unsigned>(batch)}, kThreads, 0, stream, count, x, y, int64_t(1), factor, out);
    return;
  }
  simt::launch(&dot_kernel<T>, {static_cast<unsigned>(batch * parts)}, kThreads, 0, stream, count, x, y, parts, 1.0, partial);
  simt::launch(&join_dots_kernel<T>, {static_cast<unsigned>(batch)}, kThreads, 0, stream, parts, partial, factor, out);
}

template <class T>
void nan_where_failed(int64_t batch, int64_t count, const int32_t* status, const T* aux, T* out, simt::Stream stream) {
  if (batch == 0 || count == 0 || !out) return;
  const int64_t strips = blocks_for(count, kThreads);
  simt::launch(&nan_kernel<T>, {static_cast<unsigned>(strips * batch)}, kThreads, 0, stream, count, strips, status, aux, out);
}

template <class T>
void zero(int64_t count, T* out, simt::Stream stream) {
  if (count == 0) return;
  simt::launch(&zero_kernel<T>, {blocks_for(count, kThreads)}, kThreads, 0, stream, count, out);
}

template <class T>
void set_scalars(const ScalarArgs<T>& args, simt::Stream stream) {
  if (args.batch == 0) return;
  simt::launch(&scalars_kernel<T>, {blocks_for(std::max(args.batch, args.ticket_count), kThreads)}, kThreads, 0, stream, args);
}

template <class T>
void set_lambda_bar(int64_t batch, const T* dots, RidgeKind ridge, bool detach, int64_t order, T* scalars,
                    simt::Stream stream) {
  if (batch == 0) return;
  simt::launch(&lambda_bar_kernel<T>, {blocks_for(batch, kThreads)}, kThreads, 0, stream, batch, dots, ridge, detach, order,
               scalars);
}

#define SSDD_INSTANTIATE(T)                                                                                    \
  template void copy(const Copy<T>&, simt::Stream);                                                            \
  template void mirror(int64_t, int64_t, T*, Mirror, simt::Stream, const int32_t*);                            \
  template void sum_columns(const ColumnSums<T>&, simt::Stream);                                               \
  template void dot(int64_t, int64_t, const T*, const T*, double, T*, T*, simt::Stream);                       \
  template void nan_where_failed(int64_t, int64_t, const int32_t*, const T*, T*, simt::Stream);                \
  template void zero(int64_t, T*, simt::Stream);                                                               \
  template void set_scalars(const ScalarArgs<T>&, simt::Stream);                                               \
  template void set_lambda_bar(int64_t, const T*, RidgeKind, bool, int64_t, T*, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

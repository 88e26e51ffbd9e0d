// Copies, mirrors, sums and scalars. All are limited by memory or by their launch. Each reads and writes every element
// once.
//
// Mapping: copy_kernel and mirror_kernel: one block of 256 threads per square of 32 x 32. sum_columns_kernel: one block
// per 32 columns. after_solve_kernel: one block per 2048 elements; the last of a problem's blocks sets the scalars
// (join.cuh). nan_kernel and fill_kernel: one thread per element. scalars_kernel: one thread per problem, and one block
// per 32 columns of the column sums.
// Traffic, elements read and written: copy n and n, mirror n^2 / 2 and n^2 / 2, sums n and one per column, after_solve
// 2 n and, with a pack, 3 n. nan_kernel writes only failed problems. FLOPs: at most 2 per element.
// Floor on an H100: bytes / 3.35 TB/s, less from L2; below a few megabytes the launch. Other path: none.
#include "vector.cuh"

#include <algorithm>

#include "after_solve.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256, kSquare = 32;
constexpr int64_t kPart = 2048;  // elements of a problem per block of after_solve

unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

// Copies squares of 32 x 32 through shared memory if the source's unit stride runs down the columns, so that both sides
// are coalesced. With pitch 33 a column of the square is in 32 different banks.
template <class T>
SIMT_KERNEL(kThreads)
void copy_kernel(Copy<T> c, int64_t squares_n, int64_t squares) {
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
  const T bad = c.status && c.status[b] != 0 ? simt::nan<T>() : T(0);
  const T factor = static_cast<T>(c.factor) * (c.factor_of ? c.factor_of[b * kScalars] : T(1)) + bad;
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int i = slow + r, j = fast;
    if (i0 + i < c.rows && j0 + j < c.columns)
      simt::store(c.out + b * c.out_bs + (i0 + i) * c.ld + j0 + j, factor * simt::get(square + i * (kSquare + 1) + j));
  }
}

// One square of the upper triangle, copied to its mirror image.
template <class T>
SIMT_KERNEL(kThreads)
void mirror_kernel(int64_t n, T* a, int64_t squares_n, int64_t squares) {
  SIMT_SHARED(T, square, kSquare * (kSquare + 1));
  const int64_t index = simt::block().x % squares, b = simt::block().x / squares;
  const int64_t i0 = index / squares_n * kSquare, j0 = index % squares_n * kSquare;
  if (i0 > j0) return;  // the same for the whole block
  a += b * n * n;
  const int fast = simt::lane(), slow = simt::warp();
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int64_t i = i0 + slow + r, j = j0 + fast;
    if (i < n && j < n) simt::put(square + (slow + r) * (kSquare + 1) + fast, simt::load(a + i * n + j));
  }
  simt::barrier();
#pragma unroll
  for (int r = 0; r < kSquare; r += kThreads / 32) {
    const int64_t i = j0 + slow + r, j = i0 + fast;
    if (i < n && j < n && i > j) simt::store(a + i * n + j, simt::get(square + fast * (kSquare + 1) + slow + r));
  }
}

// Lanes have neighbouring columns; the 8 warps have every eighth row each.
template <class T>
SIMT_KERNEL(kThreads)
void sum_columns_kernel(ColumnSums<T> c, int64_t strips) {
  const int64_t b = simt::block().x / strips, j = simt::block().x % strips * 32 + simt::lane();
  const double sum = column_sum<kThreads>(c.x[b], c.rows, c.columns, j);
  if (simt::warp() != 0 || j >= c.columns) return;
  const double factor = c.factor * (c.factor_of ? static_cast<double>(c.factor_of[b * kScalars]) : 1.0);
  simt::store(c.out + b * c.out_bs + j, static_cast<T>(factor * sum));
}

template <class T>
SIMT_KERNEL(kThreads)
void after_solve_kernel(AfterSolve<T> s, int64_t parts) {
  const int64_t b = simt::block().x / parts, part = simt::block().x % parts, count = s.rows * s.columns,
                begin = part * kPart;
  const int64_t end = begin + kPart < count ? begin + kPart : count;
  const bool bad = failed(s.aux, b);
  double sum = 0;
  for (int64_t e = begin + simt::thread(); e < end; e += kThreads) {
    const T u = bad ? simt::nan<T>() : simt::load(s.u + b * count + e);
    sum += pack_element(s, b, e / s.columns, e % s.columns, u, bad);
  }
  set_lambda_bar<kThreads>(s, b, part, parts, sum);
}

// `strips` blocks per problem, few enough to cost little if no problem failed.
template <class T>
SIMT_KERNEL(kThreads)
void nan_kernel(int64_t count, int64_t strips, const int32_t* status, T* out) {
  const int64_t b = simt::block().x / strips, first = simt::block().x % strips * kThreads + simt::thread();
  if (status[b] == 0) return;
  for (int64_t e = first; e < count; e += strips * kThreads) simt::store(out + b * count + e, simt::nan<T>());
}

template <class T>
SIMT_KERNEL(kThreads)
void fill_kernel(int64_t count, T value, T* out) {
  const int64_t e = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (e < count) simt::store(out + e, value);
}

// The factor of a squared distance, or of a 1-norm.
template <class T>
SIMT_DEVICE T map_of(KernelKind kind, T first, T second) {
  const T square = first * first;
  switch (kind) {
    case KernelKind::matern_1:
      return T(1) / square;
    case KernelKind::matern_3:
      return T(3) / square;
    case KernelKind::matern_5:
      return T(5) / square;
    case KernelKind::laplace_1:
      return T(-1) / first;
    case KernelKind::rational_quadratic:
      return T(0.5) / (second * square);
    default:
      return T(-0.5) / square;
  }
}

// The first `own` blocks set the scalars, one thread per problem. Each of the others sums 32 columns of e.
template <class T>
SIMT_KERNEL(kThreads)
void scalars_kernel(ScalarArgs<T> a, int64_t own) {
  if (simt::block().x >= own) {
    const int64_t strips = (a.e_columns + 31) / 32, index = simt::block().x - own, b = index / strips;
    const int64_t j = index % strips * 32 + simt::lane();
    const double sum = column_sum<kThreads>(a.e[b], a.e_rows, a.e_columns, j);
    if (simt::warp() != 0 || j >= a.e_columns) return;
    const HyperParameters<T> hyper(a, b);
    const T factor = hyper.gamma * (hyper.bias + hyper.bad);
    return simt::store(a.column_sums + b * a.sums_bs + j, static_cast<T>(static_cast<double>(factor) * sum));
  }
  const int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (b < a.counter_count) a.counters[b] = 0;
  if (b >= a.batch) return;
  T* out = a.out + b * kScalars;
  const HyperParameters<T> hyper(a, b);
  const T first = hyper.first, bias = hyper.bias, gamma = hyper.gamma, bad = hyper.bad;
  out[kScale] = first + bad;
  out[kBias] = bias + bad;
  out[kRootScale] = simt::square_root(first + bad);
  out[kRootBias] = simt::square_root(bias + bad);
  out[kRootBoth] = simt::square_root(first * bias + bad);
  out[kLengthscale] = first + bad;
  out[kMap] = map_of(a.kernel, first, bias) + bad;
  out[kRidge] = hyper.ridge + bad;
  out[kGamma] = gamma;
  out[kGammaScale] = gamma * (first + bad);
  out[kGammaRootScale] = gamma * simt::square_root(first + bad);
  out[kGammaBias] = gamma * (bias + bad);
  out[kValid] = bad == T(0) ? T(1) : T(0);
}

}  // namespace

template <class T>
void copy(const Copy<T>& c, simt::Stream stream) {
  if (c.batch == 0 || c.rows == 0 || c.columns == 0) return;
  const int64_t squares_n = blocks_for(c.columns, kSquare), squares = squares_n * blocks_for(c.rows, kSquare);
  simt::launch(&copy_kernel<T>, {static_cast<unsigned>(squares * c.batch)}, kThreads, 0, stream, c, squares_n, squares);
}

template <class T>
void mirror(int64_t batch, int64_t n, T* a, simt::Stream stream) {
  if (batch == 0 || n == 0) return;
  const int64_t squares_n = blocks_for(n, kSquare), squares = squares_n * squares_n;
  simt::launch(&mirror_kernel<T>, {static_cast<unsigned>(squares * batch)}, kThreads, 0, stream, n, a, squares_n,
               squares);
}

template <class T>
void sum_columns(const ColumnSums<T>& c, simt::Stream stream) {
  if (c.batch == 0 || c.columns == 0) return;
  const int64_t strips = blocks_for(c.columns, 32);
  simt::launch(&sum_columns_kernel<T>, {static_cast<unsigned>(strips * c.batch)}, kThreads, 0, stream, c, strips);
}

namespace {
int64_t parts_of(int64_t count) { return std::max<int64_t>(1, (count + kPart - 1) / kPart); }
}  // namespace

int64_t after_solve_room(int64_t batch, int64_t rows, int64_t columns) {
  return batch * std::max(parts_of(rows * columns), columns / kNarrowColumns + 1);
}

template <class T>
void after_solve(const AfterSolve<T>& s, simt::Stream stream) {
  if (s.batch == 0) return;
  const int64_t parts = parts_of(s.rows * s.columns);
  simt::launch(&after_solve_kernel<T>, {static_cast<unsigned>(s.batch * parts)}, kThreads, 0, stream, s, parts);
}

template <class T>
void nan_if_failed(int64_t batch, int64_t count, const int32_t* status, T* out, simt::Stream stream) {
  if (batch == 0 || count == 0) return;
  const int64_t strips = std::min<int64_t>(blocks_for(count, kThreads), std::max<int64_t>(1, 4 * kChip / batch));
  simt::launch(&nan_kernel<T>, {static_cast<unsigned>(strips * batch)}, kThreads, 0, stream, count, strips, status,
               out);
}

template <class T>
void fill(int64_t count, double value, T* out, simt::Stream stream) {
  if (count == 0) return;
  simt::launch(&fill_kernel<T>, {blocks_for(count, kThreads)}, kThreads, 0, stream, count, static_cast<T>(value), out);
}

template <class T>
void set_scalars(const ScalarArgs<T>& args, simt::Stream stream) {
  if (args.batch == 0) return;
  const unsigned own = blocks_for(std::max(args.batch, args.counter_count), kThreads);
  const unsigned sums = args.column_sums ? static_cast<unsigned>(args.batch) * blocks_for(args.e_columns, 32) : 0;
  simt::launch(&scalars_kernel<T>, {own + sums}, kThreads, 0, stream, args, static_cast<int64_t>(own));
}

#define SSDD_INSTANTIATE(T)                                                        \
  template void copy(const Copy<T>&, simt::Stream);                                \
  template void mirror(int64_t, int64_t, T*, simt::Stream);                        \
  template void sum_columns(const ColumnSums<T>&, simt::Stream);                   \
  template void after_solve(const AfterSolve<T>&, simt::Stream);                   \
  template void nan_if_failed(int64_t, int64_t, const int32_t*, T*, simt::Stream); \
  template void fill(int64_t, double, T*, simt::Stream);                           \
  template void set_scalars(const ScalarArgs<T>&, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

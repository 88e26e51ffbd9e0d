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

// The problem and the part of it that block `index` has, if a problem has so many blocks. In 32 bits, since the hardware
// has no 64-bit division. A grid has less than 2^31 blocks.
struct PartOfProblem {
  int64_t b, part;
};
SIMT_DEVICE PartOfProblem part_of(unsigned index, int64_t parts) {
  const unsigned each = static_cast<unsigned>(parts), b = index / each;
  return {b, index - b * each};
}

// Copies squares of 32 x 32 through shared memory if the source's unit stride runs down the columns, so that both sides
// are coalesced. With pitch 33 a column of the square is in 32 different banks.
template <class T>
SIMT_KERNEL(kThreads)
void copy_kernel(Copy<T> c, int64_t squares_n, int64_t squares) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(T, square, kSquare * (kSquare + 1));
  const auto [b, index] = part_of(simt::block().x, squares);
  const auto [row, column] = part_of(static_cast<unsigned>(index), squares_n);
  const int64_t i0 = row * kSquare, j0 = column * kSquare;
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
  simt::wait_for_earlier_launches();
  SIMT_SHARED(T, square, kSquare * (kSquare + 1));
  const auto [b, index] = part_of(simt::block().x, squares);
  const auto [row, column] = part_of(static_cast<unsigned>(index), squares_n);
  const int64_t i0 = row * kSquare, j0 = column * kSquare;
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
  simt::wait_for_earlier_launches();
  const auto [b, strip] = part_of(simt::block().x, strips);
  const int64_t j = strip * 32 + simt::lane();
  const double sum = column_sum<kThreads>(c.x[b], c.rows, c.columns, j);
  if (simt::warp() != 0 || j >= c.columns) return;
  const double factor = c.factor * (c.factor_of ? static_cast<double>(c.factor_of[b * kScalars]) : 1.0);
  simt::store(c.out + b * c.out_bs + j, static_cast<T>(factor * sum));
}

// x % y for 0 <= x < 2^52 and y > 0: the quotient from doubles is at most one off. A division of 64 bits is 2 KB of code.
SIMT_DEVICE int remainder(int64_t x, int y) {
  const auto about = static_cast<int64_t>(static_cast<double>(x) * simt::reciprocal(static_cast<double>(y)));
  const int64_t rest = x - about * y;
  return static_cast<int>(rest < 0 ? rest + y : rest < y ? rest : rest - y);
}

template <class T>
SIMT_KERNEL_MIN(kThreads, 4)
void after_solve_kernel(AfterSolve<T> s, int64_t parts) {
  simt::wait_for_earlier_launches();
  const auto [b, part] = part_of(simt::block().x, parts);
  const int64_t count = s.rows * s.columns, begin = part * kPart;
  const int64_t end = begin + kPart < count ? begin + kPart : count;
  const bool bad = failed(s.aux, b);
  constexpr int kAtOnce = 2;
  // The column of this thread's elements, which are kThreads apart.
  const int64_t first = begin + simt::thread();
  const int columns = s.columns > 0 ? static_cast<int>(s.columns) : 1;
  const int columns_on = kThreads % static_cast<unsigned>(columns);
  int j = remainder(first, columns);
  double sum = 0;
#pragma unroll kAtOnce
  for (int64_t e = first; e < end; e += kThreads) {
    const T own = simt::load(s.u + b * count + e);
    sum += pack_element(s, b * count + e, j, bad ? simt::nan<T>() : own, bad);
    j += columns_on;
    if (j >= columns) j -= columns;
  }
  set_lambda_bar<kThreads>(s, b, part, parts, sum);
}

// `strips` blocks per problem, few enough to cost little if no problem failed.
template <class T>
SIMT_KERNEL(kThreads)
void nan_kernel(int64_t count, int64_t strips, const int32_t* status, T* out) {
  simt::wait_for_earlier_launches();
  const auto [b, strip] = part_of(simt::block().x, strips);
  const int64_t first = strip * kThreads + simt::thread();
  if (status[b] == 0) return;
#pragma unroll 1
  for (int64_t e = first; e < count; e += strips * kThreads) simt::store(out + b * count + e, simt::nan<T>());
}

template <class T>
SIMT_KERNEL(kThreads)
void fill_kernel(int64_t count, T value, T* out) {
  simt::wait_for_earlier_launches();
  const int64_t e = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (e < count) simt::store(out + e, value);
}

// The factor of a squared distance, or of a 1-norm.
template <class T>
SIMT_DEVICE T map_of(KernelKind kind, T first, T second) {
  // One division for all, in double: it has the range.
  T over = T(-0.5), under = first * first;
  switch (kind) {
    case KernelKind::matern_1:
      over = T(1);
      break;
    case KernelKind::matern_3:
      over = T(3);
      break;
    case KernelKind::matern_5:
      over = T(5);
      break;
    case KernelKind::laplace_1:
      over = T(-1);
      under = first;
      break;
    case KernelKind::rational_quadratic:
      over = T(0.5);
      under *= second;
      break;
    default:
      break;
  }
  return static_cast<T>(static_cast<double>(over) * simt::reciprocal(static_cast<double>(under)));
}

// The first `own` blocks set the scalars, one thread per problem. Each of the others sums 32 columns of e.
template <class T>
SIMT_KERNEL(kThreads)
void scalars_kernel(ScalarArgs<T> a, int64_t own) {
  simt::wait_for_earlier_launches();
  const bool sums = simt::block().x >= own;
  int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread(), j = 0;
  double sum = 0;
  if (sums) {
    const auto [problem, strip] = part_of(simt::block().x - static_cast<unsigned>(own), (a.e_columns + 31) / 32);
    b = problem;
    j = strip * 32 + simt::lane();
    sum = column_sum<kThreads>(a.e[b], a.e_rows, a.e_columns, j);
    if (simt::warp() != 0 || j >= a.e_columns) return;
  } else {
    if (b < a.counter_count) a.counters[b] = 0;
    if (b >= a.batch) return;
  }
  const HyperParameters<T> hyper(a, b);
  const T first = hyper.first, bias = hyper.bias, gamma = hyper.gamma, bad = hyper.bad;
  if (sums) {
    const T factor = gamma * (bias + bad);
    return simt::store(a.column_sums + b * a.sums_bs + j, static_cast<T>(static_cast<double>(factor) * sum));
  }
  T* out = a.out + b * kScalars;
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

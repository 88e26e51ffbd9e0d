// Problems larger than one block's shared memory: right-looking, panels of 64 columns, three launches a panel.
//
//   diagonal_kernel   one block a problem factors the 64 x 64 diagonal block in shared memory (triangle.cuh)
//   panel_kernel      one block for 64 rows below solves x L^T = a there
//   product           the rest of the lower triangle minus panel panel^T, on the tensor cores for float
//
// Traffic: each panel rewrites the triangle that is left, n^3 / 384 elements read and written in all, from L2 where the matrix
// fits (n <= 3,500 in float on an H100: 50 MB). FLOPs n^3 / 3. Floor at n = 2048: 2.9 GFLOP = 28 us as three TF32 products
// through mma.sync; 32 diagonal blocks, each a chain of 64 pivots (about 6 us), take 200 us: the chain is the limit.
// A retry with jitter starts from the upper triangle, which holds A; launches of problems that need none return at once.
// Other path: factor_small.cu where a matrix fits one block's shared memory.
#include "factor.cuh"
#include "triangle.cuh"
#include "vector.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kPanelPitch = shared_pitch(kPanel);

template <class T>
struct Attempt {
  Factor<T> f;
  T* diagonal;      // [batch, n] of A
  int32_t* active;  // [batch]
  int attempt;
};

// The trace and ridge (first attempt); the diagonal of this attempt. One block a problem.
template <class T>
SIMT_KERNEL(kBlockThreads) begin_kernel(Attempt<T> a) {
  SIMT_SHARED(double, sums, kBlockThreads);
  const Factor<T>& f = a.f;
  const int64_t b = simt::block().x, n = f.n;
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const bool runs = valid && (a.attempt == 0 || f.status[b] != 0);
  simt::barrier();  // all have read the status
  if (simt::thread() == 0) a.active[b] = runs;
  if (!valid && simt::thread() == 0) report(f, b, kBadParameter, 0, 0, 0);
  if (!runs) return;  // the same for the whole block
  T* factor = f.factor + b * n * n;
  T* diagonal = a.diagonal + b * n;
  double sum = 0;
  for (int64_t i = simt::thread(); i < n; i += kBlockThreads) {
    // A sector for each element of the diagonal, whatever one does; once a problem, so not counted.
    if (a.attempt == 0) simt::store(diagonal + i, factor[i * n + i]);
    sum += static_cast<double>(simt::load(diagonal + i));
  }
  simt::put(sums + simt::thread(), sum);
  for (int half = kBlockThreads / 2; half > 0; half /= 2) {
    simt::barrier();
    if (simt::thread() < half)
      simt::put(sums + simt::thread(), simt::get(sums + simt::thread()) + simt::get(sums + simt::thread() + half));
  }
  simt::barrier();
  const double trace = simt::get(sums);
  const double lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
  const double jitter = jitter_of<T>(a.attempt, absolute(trace) / static_cast<double>(n));
  for (int64_t i = simt::thread(); i < n; i += kBlockThreads)
    factor[i * n + i] = static_cast<T>(static_cast<double>(simt::load(diagonal + i)) + lambda + jitter);
  if (simt::thread() == 0) report(f, b, 0, trace, lambda, jitter);
}

template <class T>
SIMT_DEVICE void load_diagonal_block(const T* factor, int64_t n, int64_t p, int size, T* shared) {
  for (int i = simt::warp(); i < size; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < kPanel; j += 32)
      simt::put_if(j <= i, shared + i * kPanelPitch + j, simt::load_if(j <= i, factor + (p + i) * n + p + j, T(0)));
}

template <class T>
SIMT_KERNEL(kBlockThreads) diagonal_kernel(Attempt<T> a, int64_t p) {
  SIMT_SHARED(T, block, kPanel * kPanelPitch);
  SIMT_SHARED(T, inverse, kPanel);
  SIMT_SHARED(int, failed, 1);
  const Factor<T>& f = a.f;
  const int64_t b = simt::block().x, n = f.n;
  if (a.active[b] == 0) return;
  const int size = static_cast<int>(n - p < kPanel ? n - p : kPanel);
  T* factor = f.factor + b * n * n;
  if (simt::thread() == 0) *failed = 0;
  load_diagonal_block(factor, n, p, size, block);
  simt::barrier();
  factor_shared(block, kPanelPitch, size, inverse, failed);
  if (*failed) {
    if (simt::thread() == 0) {
      f.status[b] = static_cast<int32_t>(p) + *failed;
      f.aux[3 * b + 1] = simt::nan<T>();
      a.active[b] = 0;
    }
    return;
  }
  for (int i = simt::warp(); i < size; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < kPanel; j += 32)
      simt::store_if(j <= i, factor + (p + i) * n + p + j, j <= i ? simt::get(block + i * kPanelPitch + j) : T(0));
}

// 64 rows below the diagonal block, each as a column of the system L x = a.
template <class T>
SIMT_KERNEL(kBlockThreads) panel_kernel(Attempt<T> a, int64_t p, int64_t strips) {
  simt::Shared shared;
  T* const block = shared.take<T>(kPanel * kPanelPitch);
  T* const rows = shared.take<T>(kPanel * kPanelPitch);
  T* const inverse = shared.take<T>(kPanel);
  const int64_t b = simt::block().x / strips, n = a.f.n, first = p + kPanel + simt::block().x % strips * kPanel;
  if (a.active[b] == 0) return;
  T* factor = a.f.factor + b * n * n;
  const int count = static_cast<int>(n - first < kPanel ? n - first : kPanel);
  load_diagonal_block(factor, n, p, kPanel, block);
  for (int i = simt::warp(); i < count; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < kPanel; j += 32)
      simt::put(rows + i * kPanelPitch + j, simt::load(factor + (first + i) * n + p + j));
  simt::barrier();
  if (simt::thread() < kPanel)
    simt::put(inverse + simt::thread(), T(1) / simt::get(block + simt::thread() * (kPanelPitch + 1)));
  simt::barrier();
  substitute<false>(block, kPanelPitch, kPanel, inverse, Columns<T>{rows, 1, kPanelPitch, count});
  for (int i = simt::warp(); i < count; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < kPanel; j += 32)
      simt::store(factor + (first + i) * n + p + j, simt::get(rows + i * kPanelPitch + j));
}

// Rows p.. of x against the diagonal block there: one block for 64 columns of x.
template <bool Transposed, class T>
SIMT_KERNEL(kBlockThreads) substitute_kernel(int64_t n, const T* factor, int64_t p, int64_t columns, T* x, int64_t chunks) {
  SIMT_SHARED(T, block, kPanel * kPanelPitch);
  SIMT_SHARED(T, inverse, kPanel);
  const int64_t b = simt::block().x / chunks, c0 = simt::block().x % chunks * kColumns;
  const int size = static_cast<int>(n - p < kPanel ? n - p : kPanel);
  load_diagonal_block(factor + b * n * n, n, p, size, block);
  simt::barrier();
  if (simt::thread() < size)
    simt::put(inverse + simt::thread(), T(1) / simt::get(block + simt::thread() * (kPanelPitch + 1)));
  simt::barrier();
  const int count = static_cast<int>(columns - c0 < kColumns ? columns - c0 : kColumns);
  substitute<Transposed>(block, kPanelPitch, size, inverse, Columns<T>{x + (b * n + p) * columns + c0, columns, 1, count});
}

}  // namespace

int64_t factor_room(int64_t batch, int64_t n) {
  // The smallest block_limit of any device decides nothing here: room for the last rung always.
  return n <= kWarpLimit ? 0 : (batch * n + 3) / 4 * 4 + (batch + 3) / 4 * 4;
}

template <class T>
void factorise_large(const Factor<T>& f, simt::Stream stream) {
  const int64_t n = f.n, whole = n * n;
  const bool in_place = f.source.p == f.factor;
  if (!in_place) {
    copy<T>({f.batch, n, n, f.source, f.factor, whole, n}, stream);
    if (f.on_failure == OnFailure::jitter) mirror(f.batch, n, f.factor, Mirror::lower_to_upper, stream);
  }
  Attempt<T> a{f, f.work, reinterpret_cast<int32_t*>(f.work + (f.batch * n + 3) / 4 * 4), 0};
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  const int panel_bytes = (2 * kPanel * kPanelPitch + kPanel + 12) * static_cast<int>(sizeof(T));
  for (; a.attempt < attempts; ++a.attempt) {
    if (a.attempt > 0) {
      // active still says which problems ran in the attempt before; those that succeeded are not touched by begin.
      mirror(f.batch, n, f.factor, Mirror::upper_to_lower, stream, f.status);
    }
    simt::launch(&begin_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, a);
    for (int64_t p = 0; p < n; p += kPanel) {
      simt::launch(&diagonal_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, a, p);
      const int64_t rest = n - p - kPanel;
      if (rest <= 0) break;
      const int64_t strips = (rest + kPanel - 1) / kPanel;
      simt::launch(&panel_kernel<T>, {static_cast<unsigned>(f.batch * strips)}, kBlockThreads, panel_bytes, stream, a, p, strips);
      Product<T> update{};
      update.batch = f.batch, update.m = update.n = rest, update.k = kPanel;
      T* panel = f.factor + (p + kPanel) * n + p;
      update.a = {panel, whole, n, 1}, update.b = {panel, whole, 1, n};
      update.c = panel + kPanel, update.c_bs = whole, update.ld = n;
      update.alpha = -1, update.accumulate = true, update.triangle = Triangle::lower, update.active = a.active;
      product(update, stream);
    }
  }
  if (f.zero_upper) mirror(f.batch, n, f.factor, Mirror::zero_upper, stream);
  nan_where_failed<T>(f.batch, whole, f.status, nullptr, f.factor, stream);
  if (!f.x) return;
  copy<T>({f.batch, n, f.c, f.y, f.x, n * f.c, f.c}, stream);
  solve_large(f.batch, n, f.factor, f.c, f.x, stream);
  nan_where_failed<T>(f.batch, n * f.c, f.status, nullptr, f.x, stream);
}

// Forward and back over blocks of 64 rows, two launches each. Traffic: the factor's triangle twice, n^2 / 2 elements, and of x
// c n^2 / 64 read and written, from L2. FLOPs 2 n^2 c. Floor: n / 64 blocks twice, each a chain of 64 rows (about 3 us).
template <class T>
void solve_large(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, simt::Stream stream) {
  const int64_t chunks = (c + kColumns - 1) / kColumns, blocks = (n + kPanel - 1) / kPanel;
  const unsigned grid = static_cast<unsigned>(batch * chunks);
  Product<T> update{};
  update.batch = batch, update.n = c, update.alpha = -1, update.accumulate = true, update.c_bs = n * c, update.ld = c;
  for (int64_t p = 0; p < n; p += kPanel) {
    simt::launch(&substitute_kernel<false, T>, {grid}, kBlockThreads, 0, stream, n, factor, p, c, x, chunks);
    update.m = n - p - kPanel, update.k = kPanel;
    if (update.m <= 0) break;
    update.a = {factor + (p + kPanel) * n + p, n * n, n, 1};
    update.b = {x + p * c, n * c, c, 1};
    update.c = x + (p + kPanel) * c;
    product(update, stream);
  }
  for (int64_t p = (blocks - 1) * kPanel; p >= 0; p -= kPanel) {
    simt::launch(&substitute_kernel<true, T>, {grid}, kBlockThreads, 0, stream, n, factor, p, c, x, chunks);
    update.m = p, update.k = n - p < kPanel ? n - p : kPanel;
    update.a = {factor + p * n, n * n, 1, n};
    update.b = {x + p * c, n * c, c, 1};
    update.c = x;
    product(update, stream);
  }
}

template <class T>
void factorise(const Factor<T>& f, simt::Stream stream) {
  if (f.batch == 0 || f.n == 0) return;
  f.n <= kWarpLimit || f.n <= block_limit<T>() ? factorise_small(f, stream) : factorise_large(f, stream);
}

template <class T>
void solve_factored(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, simt::Stream stream) {
  if (batch == 0 || n == 0 || c == 0) return;
  if (n <= kWarpLimit || n <= block_limit<T>())
    solve_small<T>(batch, n, factor, c, {}, x, nullptr, stream);
  else
    solve_large(batch, n, factor, c, x, stream);
}

#define SSDD_INSTANTIATE(T)                                        \
  template void factorise_large(const Factor<T>&, simt::Stream);   \
  template void solve_large(int64_t, int64_t, const T*, int64_t, T*, simt::Stream); \
  template void factorise(const Factor<T>&, simt::Stream);         \
  template void solve_factored(int64_t, int64_t, const T*, int64_t, T*, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

// Gram matrix, ridge, Cholesky, jitter retry and solve of one problem in one block: the points are read once (more often where
// the triangle has more than 8 squares), everything else stays in shared memory.
//
// Mapping: 256 threads a problem. Points come 16 features at a time through 2 stages of cp.async, [point][feature]; 16 bytes a
// copy where rows are aligned for it, one element otherwise (any stride; 16-bit floats are loaded and widened). The lower
// triangle is cut into squares of 32 x 32, a warp a square, lanes 8 x 4 with 4 x 8 elements each in registers over all of d. Up
// to 8 squares (n <= 96: 6) are one round; with fewer squares than warps the features of a stage are shared out between groups
// of warps and their sums added in order.
// More squares take more rounds, each reading the points again (from L2). Sums of 16 features are promoted, so that rounding
// grows with d / 16. Squared distances are summed as such: exactly 0 of a point to itself.
// Traffic: rounds n d elements read (once from memory), n^2 written (L below, K above the diagonal), 2 n c for x.
// FLOPs 2 (3: distances) x 1024 d a square, n^3 / 3, 2 n^2 c; a step of k costs a warp 12 loads of shared memory for 32 FFMA, so
// that one multiprocessor does about 290 GF/s of the Gram matrix.
// Floor on an H100 for 10,000 problems of 100 x 64: 256 MB read, 400 MB written = 0.2 ms; Gram matrix 13 GFLOP = 0.35 ms.
// Other path (krr.cu picks by KrrShape::fused_gram, as the plan of ssdd_ext/plan says): few problems with many features, where one
// multiprocessor a problem would read all of them; B = 1 with 10 x 2048 is 128 stages of about 250 cycles here, 19 us, where
// the tiled Gram product (product_tensor.cu) splits k over 16 blocks and takes 4 us and a launch. And long d in large
// batches, where the tensor cores are ahead: about 0.8 TF/s a multiprocessor.
#include "factor_block.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarps = kBlockThreads / 32, kSquare = 32;
// 16 features and 16 bytes: rows stay aligned, and 8 of them begin in 8 banks.
template <class T>
constexpr int kStagePitch = kStrip + 16 / static_cast<int>(sizeof(T));

// Whole squares: rows beyond the last point are read and their sums not used.
constexpr int stage_rows(int n) { return (n + kSquare - 1) / kSquare * kSquare; }

// Features k .. k + 16 of every point, zero from d on.
template <class T>
SIMT_DEVICE void load_features(const Source<T>& x, int n, int64_t k, int64_t d, bool vectors, T* stage) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T)), kPieces = kStrip / kWide;
  const int left = d - k < kStrip ? static_cast<int>(d - k) : kStrip;
  if (vectors) {
#pragma unroll 1
    for (int e = simt::thread(); e < n * kPieces; e += kBlockThreads) {
      const int row = e / kPieces, step = e % kPieces * kWide;
      const int exist = left - step < 0 ? 0 : left - step < kWide ? left - step : kWide;
      simt::copy_async<16>(stage + row * kStagePitch<T> + step, exist ? x.p + row * x.rs + k + step : x.p,
                           exist * static_cast<int>(sizeof(T)));
    }
  } else {
    const bool along_k = x.cs == 1 || x.rs != 1;
#pragma unroll 1
    for (int e = simt::thread(); e < n * kStrip; e += kBlockThreads) {
      const int row = along_k ? e / kStrip : e % n, step = along_k ? e % kStrip : e / n;
      const bool exists = step < left;
      T* const to = stage + row * kStagePitch<T> + step;
      if (x.element == Element::own)
        simt::copy_async<sizeof(T)>(to, exists ? x.p + row * x.rs + (k + step) * x.cs : x.p,
                                    exists ? static_cast<int>(sizeof(T)) : 0);
      else
        simt::put(to, exists ? x(row, k + step) : T(0));
    }
  }
}

// K's lower triangle into shared memory.
template <class T, bool Distance>
SIMT_DEVICE void form_gram(const Points<T>& points, const Source<T>& x, bool vectors, const T* scalars,
                           const BlockRoom<T>& room, T* stages) {
  const int n = room.a.n, side = (n + kSquare - 1) / kSquare, squares = side * (side + 1) / 2;
  const int groups = squares < kWarps ? kWarps / squares : 1, group = simt::warp() / squares;
  const int stage_size = stage_rows(n) * kStagePitch<T>, li = simt::lane() % 8, lj = simt::lane() / 8;
  const T scale = Distance ? T(1) : scalars[kScale], plus = Distance ? T(0) : scalars[kBias], map = scalars[kMap];
  for (int first = 0; first < squares; first += kWarps) {
    const int square = groups > 1 ? simt::warp() % squares : first + simt::warp();
    const bool works = groups > 1 ? group < groups : square < squares;
    int si = 0, sj = square;
    while (sj > si) sj -= ++si;
    const int i0 = si * kSquare + li, j0 = sj * kSquare + lj;
    T sums[4][8] = {};
    // Each turn starts the copies of the next 16 features and works on those before; the first has none.
    int slot = 1;
#pragma unroll 1
    for (int64_t k = -kStrip; k < points.d; k += kStrip, slot ^= 1) {
      simt::copy_wait<0>();
      simt::barrier();
      if (k + kStrip < points.d) load_features(x, n, k + kStrip, points.d, vectors, stages + (slot ^ 1) * stage_size);
      simt::copy_commit();
      if (!works || k < 0) continue;
      const T* stage = stages + slot * stage_size;
      T fresh[4][8] = {};
#pragma unroll 2  // more would hold loads of all 16 steps in registers
      for (int step = groups > 1 ? group : 0; step < kStrip; step += groups) {
        T a[4], b[8];
#pragma unroll
        for (int r = 0; r < 4; ++r) a[r] = simt::get(stage + (i0 + 8 * r) * kStagePitch<T> + step);
#pragma unroll
        for (int e = 0; e < 8; ++e) b[e] = simt::get(stage + (j0 + 4 * e) * kStagePitch<T> + step);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const T difference = a[r] - b[e];
            fresh[r][e] =
                Distance ? simt::fma(difference, difference, fresh[r][e]) : simt::fma(a[r], b[e], fresh[r][e]);
          }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[r][e] += fresh[r][e];
    }
    simt::barrier();  // the stages belong to the next round

    // Add the sums of the groups, in their order.
#pragma unroll 1
    for (int turn = 0; turn < groups; ++turn) {
      if (works && (groups == 1 || turn == group)) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const int i = i0 + 8 * r, j = j0 + 4 * e;
            const bool inside = i < n && j <= i;
            T* const element = room.a.at(i, j);
            const T before = simt::get_if(inside && turn > 0, element, T(0));
            simt::put_if(inside, element, sums[r][e] + before);
          }
      }
      simt::barrier();
    }
  }
  // The kernel's values.
#pragma unroll 1
  for (int i = simt::warp(); i < n; i += kWarps)
#pragma unroll 1
    for (int j0 = 0; j0 <= i; j0 += 32) {
      const int j = j0 + simt::lane();
      const bool inside = j <= i;
      T* const element = room.a.at(i, inside ? j : i);
      const T v = simt::get_if(inside, element, T(0));
      simt::put_if(inside, element, Distance ? simt::exponential(map * v) : simt::fma(scale, v, plus));
    }
}

// K between shared memory and above the diagonal of the factor, where a retry finds it: lanes run along its rows, and down
// a column of 16-byte vectors here.
template <bool Out, class T>
SIMT_DEVICE void move_gram(const Square<T>& a, T* factor) {
#pragma unroll 1
  for (int j = simt::warp() * kVector<T>; j < a.n; j += kWarps * kVector<T>)
#pragma unroll 1
    for (int i0 = j - j % 32; i0 < a.n; i0 += 32) {
      const int i = i0 + simt::lane();
      const bool part = i > j && i < a.n;
      T v[kVector<T>];
      T* const here = part ? a.at(i, j) : a.p;
      if (Out) get_row(here, v);
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        T* const there = factor + (j + e) * a.n + i;
        const bool inside = part && j + e < i;
        if (Out)
          simt::store_if(inside, there, v[e]);
        else
          v[e] = simt::load_if(inside, there, T(0));
      }
      if (!Out) put_row(here, v, kVector<T>, part);
    }
}

// Elements that the stages of features have, or later the factorisation and the solve.
template <class T>
constexpr int stages_room(int n) {
  const int stages = 2 * stage_rows(n) * kStagePitch<T>, working = BlockRoom<T>::working(n);
  return stages > working ? stages : working;
}

template <class T, bool Distance>
SIMT_KERNEL_MIN(kBlockThreads, (sizeof(T) == 4 ? 2 : 1))
void fused_kernel(Factor<T> f, Points<T> points, bool vectors) {
  simt::Shared shared;
  BlockRoom<T> room(shared, f.n);
  T* const stages = shared.take<T>(stages_room<T>(room.a.n));
  room.place_work(stages);
  const int64_t b = simt::block().x;
  T* const factor = f.factor + b * f.n * f.n;
  const int status = factor_with_retries(f, b, room, [&](int attempt) {
    if (attempt == 0) {
      form_gram<T, Distance>(points, points.x[b], vectors, f.scalars + b * kScalars, room, stages);
      simt::barrier();
      move_gram<true>(room.a, factor);
    } else {
      move_gram<false>(room.a, factor);
    }
  });
  write_factor(f, b, room, status);
}

template <class T>
int fused_bytes(int64_t n) {
  return room_bytes<T>(n, stages_room<T>(static_cast<int>(n)));
}

}  // namespace

template <class T>
int64_t fused_limit() {
  return largest_order(0, [](int64_t n) { return fused_bytes<T>(n); });
}

template <class T>
void factorise_points(const Factor<T>& f, const Points<T>& points, simt::Stream stream) {
  if (f.batch == 0 || f.n == 0) return;
  const Source<T>& x = points.x;
  constexpr int64_t kWide = 16 / static_cast<int64_t>(sizeof(T));
  const bool vectors = x.element == Element::own && x.cs == 1 && x.rs % kWide == 0 && x.bs % kWide == 0 &&
                       reinterpret_cast<uintptr_t>(x.p) % 16 == 0;
  auto* kernel = points.kernel == KernelKind::rbf ? &fused_kernel<T, true> : &fused_kernel<T, false>;
  simt::launch(kernel, {static_cast<unsigned>(f.batch)}, kBlockThreads, fused_bytes<T>(f.n), stream, f, points,
               vectors);
  if (f.x && f.c > kPassLimit) solve_small<T>(f.batch, f.n, f.factor, f.c, f.y, f.x, f.status, stream);
}

#define SSDD_INSTANTIATE(T)          \
  template int64_t fused_limit<T>(); \
  template void factorise_points(const Factor<T>&, const Points<T>&, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

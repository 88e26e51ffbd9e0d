// Gram matrix, ridge, Cholesky, jitter retry and solve of one problem in one block. The points are read once, or once
// per round if the triangle has more than 8 squares. Everything else stays in shared memory.
//
// Mapping: 256 threads per problem. Points are loaded 16 features at a time through 2 stages of cp.async,
// [point][feature]. A copy moves 16 bytes if rows are aligned, else one element (any stride; 16-bit floats are loaded
// and widened).
// The lower triangle is cut into squares of 32 x 32, one per warp; 8 x 4 lanes with 4 x 8 elements each accumulate in
// registers over all of d. Up to 8 squares (n <= 96: 6) are one round. If there are fewer squares than warps, groups of
// warps share the features of a stage, and their sums are added in order. More squares take more rounds, and each round
// reads the points again (from L2).
// Rounding: sums of 16 features are promoted, so that the error grows with d / 16. Squared distances are summed
// directly: the distance of a point to itself is exactly 0.
// Traffic: rounds n d elements read (once from memory), n^2 written (L below, K above the diagonal), 2 n c for x.
// FLOPs: 2 (3 for distances) x 1024 d per square, n^3 / 3, 2 n^2 c. One step of k costs a warp 12 loads from shared
// memory for 32 FFMA, so that one multiprocessor does about 290 GF/s of the Gram matrix.
// Floor on an H100 for 10,000 problems of 100 x 64: 256 MB read and 400 MB written in 0.2 ms; Gram matrix 13 GFLOP in
// 0.35 ms.
// Other path: the tiled Gram product (product_tensor.cu), chosen by KrrShape::fused_gram from the plan of
// ssdd_ext/plan. It is faster for few problems with many features: B = 1 with 10 x 2048 is 128 stages of about 250
// cycles here, 19 us, while the tiled product splits k over 16 blocks and takes 4 us and one launch. It is also faster
// for long d in large batches, since the tensor cores do about 0.8 TF/s per multiprocessor.
#include "factor_block.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarps = kBlockThreads / 32, kSquare = 32;
// 16 features plus 16 bytes: rows are aligned, and 8 consecutive rows begin in 8 banks.
template <class T>
constexpr int kStagePitch = kStrip + 16 / static_cast<int>(sizeof(T));

// Whole squares. Rows beyond the last point are read, and their sums are not used.
constexpr int stage_rows(int n) { return (n + kSquare - 1) / kSquare * kSquare; }

// Loads features k .. k + 16 of every point, zero from d on.
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

// What a warp computes in one round: a square of 32 x 32 of the lower triangle, over all features or a part of them.
struct Share {
  bool works;         // false: this warp has no square in this round
  int group, groups;  // the warp sums features group, group + groups, ... of each stage
  int i0, j0;         // this lane's first row and column; it has 4 rows 8 apart and 8 columns 4 apart
};

// The share of this warp in the round that begins with square `first` of `squares`. Squares are numbered row by row.
SIMT_DEVICE Share share_of(int squares, int first) {
  Share share;
  int column = first + simt::uniform(simt::warp()), row = 0;
  share.group = 0;
  share.groups = 1;
#pragma unroll 1
  while ((share.groups + 1) * squares <= kWarps) ++share.groups;
#pragma unroll 1
  for (; column >= squares; column -= squares) ++share.group;
  share.works = share.group < share.groups;
#pragma unroll 1
  while (column > row) column -= ++row;
  share.i0 = row * kSquare + simt::lane() % 8;
  share.j0 = column * kSquare + simt::lane() / 8;
  return share;
}

// Adds the products, or squared differences, of this share's features of one stage to its sums.
template <bool Distance, class T>
SIMT_DEVICE void add_stage(const T* stage, const Share& share, T (&sums)[4][8]) {
  constexpr int kAtOnce = sizeof(T) == 4 ? 2 : 1;  // more would hold loads of all 16 steps in registers
  T fresh[4][8] = {};
#pragma unroll kAtOnce
  for (int step = share.groups > 1 ? share.group : 0; step < kStrip; step += share.groups) {
    T a[4], b[8];
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = simt::get(stage + (share.i0 + 8 * r) * kStagePitch<T> + step);
#pragma unroll
    for (int e = 0; e < 8; ++e) b[e] = simt::get(stage + (share.j0 + 4 * e) * kStagePitch<T> + step);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const T difference = a[r] - b[e];
        fresh[r][e] = Distance ? simt::fma(difference, difference, fresh[r][e]) : simt::fma(a[r], b[e], fresh[r][e]);
      }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int e = 0; e < 8; ++e) sums[r][e] += fresh[r][e];
}

// Writes the sums of a share to the lower triangle of a; `add`: adds them to the elements there. Rows of the sums move up
// to the first one, so that the loop has one row's code.
template <class T>
SIMT_DEVICE void write_share(const Square<T>& a, const Share& share, T (&sums)[4][8], bool add) {
#pragma unroll 1
  for (int i = share.i0, end = i + 32; i < end; i += 8) {
    const int last = i < a.n ? i - share.j0 : -1;  // the last column inside, less this lane's first
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      T* const element = a.at(i, share.j0) + 4 * e;
      const T before = simt::get_if(4 * e <= last && add, element, T(0));
      simt::put_if(4 * e <= last, element, sums[0][e] + before);
    }
#pragma unroll
    for (int r = 0; r + 1 < 4; ++r)
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[r][e] = sums[r + 1][e];
  }
}

// Forms K's lower triangle in shared memory.
template <class T, bool Distance>
SIMT_DEVICE void form_gram(const Points<T>& points, const Source<T>& x, bool vectors, const T* scalars,
                           const BlockRoom<T>& room, T* stages) {
  const int n = room.a.n, side = (n + kSquare - 1) / kSquare, squares = side * (side + 1) / 2;
  const int stage_size = stage_rows(n) * kStagePitch<T>;
  const T scale = Distance ? T(1) : scalars[kScale], plus = Distance ? T(0) : scalars[kBias], map = scalars[kMap];
  for (int first = 0; first < squares; first += kWarps) {
    const Share share = share_of(squares, first);
    T sums[4][8] = {};

    // Each iteration starts the copies of the next 16 features and multiplies the previous 16. The first one only
    // copies.
    int slot = 1;
#pragma unroll 1
    for (int64_t k = -kStrip; k < points.d; k += kStrip, slot ^= 1) {
      simt::copy_wait<0>();
      simt::barrier();
      if (k + kStrip < points.d) load_features(x, n, k + kStrip, points.d, vectors, stages + (slot ^ 1) * stage_size);
      simt::copy_commit();
      if (share.works && k >= 0) add_stage<Distance>(stages + slot * stage_size, share, sums);
    }
    simt::barrier();  // the next round reuses the stages

    // Add the sums of the groups, in their order.
#pragma unroll 1
    for (int turn = 0; turn < share.groups; ++turn) {
      if (share.works && (share.groups == 1 || turn == share.group)) write_share(room.a, share, sums, turn > 0);
      simt::barrier();
    }
  }

  // Apply the kernel function.
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

// Copies K between shared memory and the upper triangle of the factor, from where a retry reads it. Lanes run along a
// row of the factor, and down a column of 16-byte vectors in shared memory. out: to the factor.
template <class T>
SIMT_DEVICE void move_gram(const Square<T>& a, T* factor, bool out) {
#pragma unroll 1
  for (int j = simt::warp() * kVector<T>; j < a.n; j += kWarps * kVector<T>)
#pragma unroll 1
    for (int i0 = j - j % 32; i0 < a.n; i0 += 32) {
      const int i = i0 + simt::lane();
      const bool part = i > j && i < a.n;
      T* const here = part ? a.at(i, j) : a.p;
      T v[kVector<T>];
      get_row(here, v);
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        T* const there = factor + (j + e) * a.n + i;
        const bool inside = part && j + e < i;
        simt::store_if(inside && out, there, v[e]);
        if (!out) v[e] = simt::load_if(inside, there, T(0));
      }
      put_row(here, v, kVector<T>, part && !out);
    }
}

// Elements for the stages of features, reused by the factorisation and the solve.
template <class T>
constexpr int stages_room(int n) {
  const int stages = 2 * stage_rows(n) * kStagePitch<T>, working = BlockRoom<T>::working(n);
  return stages > working ? stages : working;
}

template <class T, bool Distance>
SIMT_KERNEL_MIN(kBlockThreads, (sizeof(T) == 4 ? 2 : 1))
void fused_kernel(Factor<T> f, Points<T> points, bool vectors) {
  simt::wait_for_earlier_launches();
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
    }
    move_gram(room.a, factor, attempt == 0);
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

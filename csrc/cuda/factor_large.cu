// Problems larger than one block's shared memory: Cholesky and solve by tiles of 64 x 64, a launch each, the tiles' dependencies
// kept by flags in global memory, so that the next panel is factored while the rest of the triangle is still being updated.
//
// factor_tiles_kernel: a block makes one tile of L from the left, L(i, j) = (A(i, j) - sum_k<j L(i, k) L(j, k)^T) L(j, j)^-T, in
// registers throughout (tile.cuh: tensor cores for float, at fp32 accuracy). A tile of the diagonal is factored in shared memory
// (triangle.cuh) and its inverse kept, so that the triangular solves with it become products: x = r M, M = L(j, j)^-T, and once
// more x += (r - x L(j, j)^T) M, without which a tile near singular costs digits. solve_tiles_kernel: a block makes 64 rows of 64
// columns of x, first of L^-1 y, then of L^-T, the diagonal again by the kept inverses and in two steps.
// Order: blocks draw tickets; a tile's needs all have smaller tickets, whose blocks are running already, so that waiting ends
// whatever the order in which blocks start. Every tile is made by one block in one order of sums: same inputs, same bits.
//
// Traffic: each tile of the triangle read and written once, n^2 elements; L read from L2 n^3 / 192 elements (2 tiles a product).
// FLOPs n^3 / 3 + 2 n^2 c. Floor on an H100 at n = 2048: 2.9 GFLOP = 28 us as three TF32 products through mma.sync. The
// chain is the limit: of each 64 columns 64 pivots (about 8 us), the inverse (1.5 us), three products and one update (1 us each)
// behind their flags (about 1 us each): 32 x 15 us = 480 us; n = 512: 120 us. Counted, not measured on a GPU.
// Launches: 5 without retries (begin, factor, NaN where failed, y copied, solve) whatever n is, one more where A is not in place;
// three more for each retry.
// Other path: factor_small.cu where a matrix fits one block's shared memory.
//
// Inverses beside substitution, in the twin's rounding (tests/simt/test_large.cpp: a smooth kernel of 200 points on a line, float,
// against fp64): residual |A x - y| / |A| |x| and error |x - x*| / |x*|, by plain substitution with the same factor in brackets.
//   ridge 1e-1: 2.0e-8 (1.3e-8), 3.5e-6 (9.9e-6)      ridge 1e-3: 3.0e-8 (2.0e-8), 5.2e-4 (1.1e-3)
//   ridge 1e-5: 2.1e-8 (1.6e-8), 3.7e-2 (7.5e-2)      ridge 3e-6: 1.7e-8 (1.3e-8), 0.11 (0.21)
// With one step in place of two the residual was 2.3e-7 at ridge 1e-3, and the error five times that of substitution.
// A retry with jitter starts from the upper triangle, which holds A; blocks of problems that need none return at once.
#include "factor.cuh"
#include "../arena.h"
#include "desk.cuh"
#include "vector.cuh"

namespace ssdd::cuda {
namespace {

static_assert(kPanel == kTile && kColumns == kTile, "one size of tiles");
int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// What the blocks of a batch tell each other, and what of A is kept.
template <class T>
struct Room {
  T* kept;                  // [batch, tiles, 2, 64, 64] of the diagonal: the inverses, and L with zeros above
  T* diagonal;              // [batch, n] of A
  int32_t* active;          // [batch]
  int *factored, *solved;   // [batch, tiles, tiles]; [batch, chunks, 2 tiles]
  int* tickets;             // of the factorisation, of the solve
  int64_t total;
};

template <class T>
Room<T> room_of(int64_t batch, int64_t n, int64_t c, T* memory) {
  Arena<T> arena{memory};
  Room<T> r{};
  const int64_t tiles = tiles_of(n);
  r.kept = arena.take(batch * tiles * 2 * kTile * kTile);
  r.diagonal = arena.take(batch * n);
  r.active = reinterpret_cast<int32_t*>(arena.take(batch));
  r.factored = reinterpret_cast<int*>(arena.take(batch * tiles * tiles));
  r.solved = reinterpret_cast<int*>(arena.take(batch * tiles_of(c) * 2 * tiles));
  r.tickets = reinterpret_cast<int*>(arena.take(2));
  r.total = arena.used;
  return r;
}

template <class T>
struct Attempt {
  Factor<T> f;
  Room<T> room;
  int64_t tiles, solved;  // flags of `solved` a problem
  int attempt;
};

SIMT_DEVICE void clear_flags(int* flags, int64_t count) {
  for (int64_t i = simt::thread(); i < count; i += kBlockThreads) simt::store(flags + i, static_cast<int>(kWaiting));
}

// The trace and ridge (first attempt); the diagonal of this attempt; no flag set. One block a problem.
template <class T>
SIMT_KERNEL(kBlockThreads) begin_kernel(Attempt<T> a) {
  SIMT_SHARED(double, sums, kBlockThreads);
  const Factor<T>& f = a.f;
  const int64_t b = simt::block().x, n = f.n;
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const bool runs = valid && (a.attempt == 0 || f.status[b] != 0);
  clear_flags(a.room.factored + b * a.tiles * a.tiles, a.tiles * a.tiles);
  clear_flags(a.room.solved + b * a.solved, a.solved);
  if (b == 0 && simt::thread() < 2) a.room.tickets[simt::thread()] = 0;
  simt::barrier();  // all have read the status
  if (simt::thread() == 0) a.room.active[b] = runs;
  if (!valid && simt::thread() == 0) report(f, b, kBadParameter, 0, 0, 0);
  if (!runs) return;  // the same for the whole block
  T* factor = f.factor + b * n * n;
  T* diagonal = a.room.diagonal + b * n;
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

// --- factor ------------------------------------------------------------------------------------------------------

template <class T>
SIMT_KERNEL(Tile<T>::kThreads) factor_tiles_kernel(Attempt<T> a, bool vectors, bool kept_vectors) {
  constexpr int kThreads = Tile<T>::kThreads, kSteps = Tile<T>::kSteps;
  simt::Shared shared;
  SIMT_SHARED(T, inverse, kTile);
  const Desk<T> desk(shared, a.room.tickets);
  const Factor<T>& f = a.f;
  const int64_t n = f.n, b = desk.ticket() % f.batch;
  // Column by column of tiles, and in each all problems' diagonals first.
  int64_t j = 0, i = desk.ticket() / f.batch;
  while (i >= a.tiles - j) i -= a.tiles - j, ++j;
  i += j;
  if (a.room.active[b] == 0) return;  // the whole block; so do all of this problem
  T* const factor = f.factor + b * n * n;
  int* const flags = a.room.factored + b * a.tiles * a.tiles;
  T* const kept = a.room.kept + (b * a.tiles + j) * 2 * kTile * kTile;
  const int rows = least(n - i * kTile, kTile), columns = least(n - j * kTile, kTile);
  const View<const T> row_i{factor + i * kTile * n, n, 1}, row_j{factor + j * kTile * n, n, 1};
  T* const here = factor + i * kTile * n + j * kTile;
  const bool diagonal = i == j;

  desk.bring(here, n, rows, columns);
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t k = 0; k < j * kTile; k += kSteps) {
    if (k % kTile == 0) {
      desk.wait_for(flags + i * a.tiles + k / kTile);
      if (!diagonal) desk.wait_for(flags + j * a.tiles + k / kTile);
    }
    simt::barrier();  // seen by all, who are done with the operands
    Tile<T>::template load<true>(row_i.from(0, k), rows, kSteps, vectors, desk.a);
    if (!diagonal) Tile<T>::template load<true>(row_j.from(0, k), columns, kSteps, vectors, desk.b);
    desk.arrived();
    tile.template multiply<true, true>(desk.a, diagonal ? desk.a : desk.b);
  }
  if (!diagonal) desk.wait_for(flags + j * a.tiles + j);
  desk.arrived();
  if (desk.state[1]) return desk.raise(flags + i * a.tiles + j, kFailed);  // the same for the whole block

  if (diagonal) {
    // Beyond the last row the identity.
    tile.each([&](int r, int c, T sum) { desk.put(r, c, r >= rows ? (r == c ? T(1) : T(0)) : desk.get(r, c) - sum); });
    simt::barrier();
    factor_shared<kThreads>(desk.own, kOwnPitch, kTile, inverse, desk.state + 2);
    if (desk.state[2]) {
      if (simt::thread() == 0) {
        f.status[b] = static_cast<int32_t>(j * kTile) + desk.state[2];
        f.aux[3 * b + 1] = simt::nan<T>();
      }
      return desk.raise(flags + j * a.tiles + j, kFailed);
    }
    invert_shared<kThreads>(desk.own, kOwnPitch, inverse, desk.a, Desk<T>::kInversePitch);
    desk.take_out(here, n, rows, rows, true);
    keep(desk.own, kOwnPitch, desk.a, Desk<T>::kInversePitch, kThreads, kept);
    return desk.raise(flags + j * a.tiles + j, kReady);
  }
  // S = A - sum; L = S inverse^T, and once more of what that leaves of S.
  const View<const T> inverse_t{kept, 1, kTile}, l_t{kept + kTile * kTile, 1, kTile};
  tile.each([&](int r, int c, T sum) { desk.put(r, c, desk.get(r, c) - sum); });
  Tile<T> first;
  desk.template times<false, true>(first, inverse_t, kept_vectors, nullptr);
  desk.template times<false, true>(tile, l_t, kept_vectors, &first);
  tile.each([&](int r, int c, T sum) { desk.put(r, c, desk.get(r, c) - sum); });
  desk.template times<false, true>(tile, inverse_t, kept_vectors, nullptr);
  first.each([&](int r, int c, T x) { desk.put(r, c, x); });
  tile.each([&](int r, int c, T x) { desk.put(r, c, desk.get(r, c) + x); });
  simt::barrier();
  desk.take_out(here, n, rows, columns, false);
  desk.raise(flags + i * a.tiles + j, kReady);
}

// The inverses of a factor's diagonal tiles, for a solve that did not factor; no flag set. One block a tile.
template <class T>
SIMT_KERNEL(kBlockThreads) invert_kernel(int64_t n, int64_t tiles, const T* factor, Room<T> room, int64_t solved) {
  simt::Shared shared;
  T* const l = shared.take<T>(kTile * kOwnPitch);
  T* const out = shared.take<T>(kTile * kOwnPitch);
  SIMT_SHARED(T, inverse, kTile);
  const int64_t b = simt::block().x / tiles, i = simt::block().x % tiles;
  if (i == 0) clear_flags(room.solved + b * solved, solved);
  if (simt::block().x == 0 && simt::thread() == 0) room.tickets[1] = 0;
  const T* here = factor + b * n * n + i * kTile * (n + 1);
  const int rows = least(n - i * kTile, kTile);
  for (int e = simt::thread(); e < kTile * kTile; e += kBlockThreads) {
    const int r = e / kTile, c = e % kTile;
    const bool exists = r < rows && c <= r;
    simt::put(l + r * kOwnPitch + c, simt::load_if(exists, exists ? here + r * n + c : here, r == c ? T(1) : T(0)));
  }
  simt::barrier();
  if (simt::thread() < kTile) simt::put(inverse + simt::thread(), T(1) / simt::get(l + simt::thread() * (kOwnPitch + 1)));
  simt::barrier();
  invert_shared<kBlockThreads>(l, kOwnPitch, inverse, out, kOwnPitch);
  keep(l, kOwnPitch, out, kOwnPitch, kBlockThreads, room.kept + simt::block().x * static_cast<int64_t>(2 * kTile * kTile));
}

// --- solve -------------------------------------------------------------------------------------------------------

template <class T>
struct Solve {
  int64_t batch, n, c, tiles, chunks;
  const T* factor;
  T* x;
  Room<T> room;
  bool vectors, x_vectors, kept_vectors;
};

// Tile i of one chunk: x(i) = L(i, i)^-1 (x(i) - sum_k<i L(i, k) x(k)), Back: x(i) = L(i, i)^-T (x(i) - sum_k>i L(k, i)^T x(k)).
template <bool Back, class T>
SIMT_DEVICE void solve_tile(const Solve<T>& s, const Desk<T>& desk, int64_t b, int64_t chunk, int64_t i) {
  const int64_t n = s.n, c = s.c;
  int* const forward = s.room.solved + (b * s.chunks + chunk) * 2 * s.tiles;
  int* const flags = Back ? forward + s.tiles : forward;
  const T* const factor = s.factor + b * n * n;
  T* const x = s.x + b * n * c + chunk * kTile;
  const T* const kept = s.room.kept + (b * s.tiles + i) * 2 * kTile * kTile;
  const int rows = least(n - i * kTile, kTile), columns = least(c - chunk * kTile, kTile);
  if (Back) {
    desk.wait_for(forward + i);
    simt::barrier();
  }
  desk.bring(x + i * kTile * c, c, rows, columns);
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t m = 0, others = Back ? s.tiles - 1 - i : i; m < others; ++m) {
    const int64_t k = Back ? s.tiles - 1 - m : m;  // in the order in which they come
#pragma unroll 1
    for (int64_t at = k * kTile, end = at + kTile; at < end; at += Tile<T>::kSteps) {
      const int steps = least(n - at, Tile<T>::kSteps);
      simt::barrier();  // all are done with the operands
      // L does not have to be waited for.
      if (Back)
        Tile<T>::template load<false>({factor + at * n + i * kTile, 1, n}, rows, steps, s.vectors, desk.a);
      else
        Tile<T>::template load<true>({factor + i * kTile * n + at, n, 1}, rows, steps, s.vectors, desk.a);
      desk.wait_for(flags + k);
      simt::barrier();
      Tile<T>::template load<false>({x + at * c, 1, c}, columns, steps, s.x_vectors, desk.b);
      desk.arrived();
      tile.template multiply<!Back, false>(desk.a, desk.b);
    }
  }
  desk.arrived();
  // r = x - sum; x = inverse r, and once more of what that leaves of r.
  const T* const l = kept + kTile * kTile;
  const View<const T> inverse_m{kept, Back ? 1 : kTile, Back ? kTile : 1}, l_m{l, inverse_m.rs, inverse_m.cs};
  tile.each([&](int r, int k, T sum) { desk.put(r, k, desk.get(r, k) - sum); });
  Tile<T> first;
  desk.template times<true, !Back>(first, inverse_m, s.kept_vectors, nullptr);
  desk.template times<true, !Back>(tile, l_m, s.kept_vectors, &first);
  tile.each([&](int r, int k, T sum) { desk.put(r, k, desk.get(r, k) - sum); });
  desk.template times<true, !Back>(tile, inverse_m, s.kept_vectors, nullptr);
  first.each([&](int r, int k, T v) { desk.put(r, k, v); });
  tile.each([&](int r, int k, T v) { desk.put(r, k, desk.get(r, k) + v); });
  simt::barrier();
  desk.take_out(x + i * kTile * c, c, rows, columns, false);
  desk.raise(flags + i, kReady);
}

template <class T>
SIMT_KERNEL(Tile<T>::kThreads) solve_tiles_kernel(Solve<T> s) {
  simt::Shared shared;
  const Desk<T> desk(shared, s.room.tickets + 1);
  const int64_t across = s.batch * s.chunks, step = desk.ticket() / across, which = desk.ticket() % across;
  if (step < s.tiles)
    solve_tile<false>(s, desk, which / s.chunks, which % s.chunks, step);
  else
    solve_tile<true>(s, desk, which / s.chunks, which % s.chunks, 2 * s.tiles - 1 - step);
}

template <class T>
bool aligned(const T* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// The inverses and flags are in place.
template <class T>
void run_solve(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, const Room<T>& room, simt::Stream stream) {
  const Solve<T> s{batch, n, c, tiles_of(n), tiles_of(c), factor, x, room,
                   aligned(factor, n), aligned(x, c), aligned(room.kept, kTile)};
  simt::launch(&solve_tiles_kernel<T>, {static_cast<unsigned>(batch * s.chunks * 2 * s.tiles)}, Tile<T>::kThreads, Desk<T>::kBytes,
               stream, s);
}

}  // namespace

int64_t factor_room(int64_t batch, int64_t n, int64_t c) {
  // The smallest block_limit of any device decides nothing here: room for the last rung always.
  return n <= kWarpLimit ? 0 : room_of<float>(batch, n, c, nullptr).total;
}

template <class T>
void factorise_large(const Factor<T>& f, simt::Stream stream) {
  const int64_t n = f.n, whole = n * n, tiles = tiles_of(n);
  const bool in_place = f.source.p == f.factor;
  if (!in_place) {
    copy<T>({f.batch, n, n, f.source, f.factor, whole, n}, stream);
    if (f.on_failure == OnFailure::jitter) mirror(f.batch, n, f.factor, Mirror::lower_to_upper, stream);
  }
  Attempt<T> a{f, room_of(f.batch, n, f.c, f.work), tiles, tiles_of(f.c) * 2 * tiles, 0};
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  for (; a.attempt < attempts; ++a.attempt) {
    // Those that succeeded are touched neither by mirror nor by begin.
    if (a.attempt > 0) mirror(f.batch, n, f.factor, Mirror::upper_to_lower, stream, f.status);
    simt::launch(&begin_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, a);
    simt::launch(&factor_tiles_kernel<T>, {static_cast<unsigned>(f.batch * tiles * (tiles + 1) / 2)}, Tile<T>::kThreads,
                 Desk<T>::kBytes, stream, a, aligned(f.factor, n), aligned(a.room.kept, kTile));
  }
  if (f.zero_upper)
    mirror(f.batch, n, f.factor, Mirror::zero_upper, stream, f.status);
  else
    nan_where_failed<T>(f.batch, whole, f.status, f.factor, stream);
  if (!f.x) return;
  // NaN in all of y is NaN in all of x.
  if (f.x != f.y.p)
    copy<T>({f.batch, n, f.c, f.y, f.x, n * f.c, f.c, 1, nullptr, f.status}, stream);
  else
    nan_where_failed<T>(f.batch, n * f.c, f.status, f.x, stream);
  if (f.c > 0) run_solve(f.batch, n, f.factor, f.c, f.x, a.room, stream);
}

template <class T>
void solve_large(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, T* work, simt::Stream stream) {
  const int64_t tiles = tiles_of(n);
  const Room<T> room = room_of(batch, n, c, work);
  simt::launch(&invert_kernel<T>, {static_cast<unsigned>(batch * tiles)}, kBlockThreads,
               2 * Desk<T>::kWhole * static_cast<int>(sizeof(T)) + 32, stream, n, tiles, factor, room, tiles_of(c) * 2 * tiles);
  run_solve(batch, n, factor, c, x, room, stream);
}

template <class T>
void factorise(const Factor<T>& f, simt::Stream stream) {
  if (f.batch == 0 || f.n == 0) return;
  f.n <= kWarpLimit || f.n <= block_limit<T>() ? factorise_small(f, stream) : factorise_large(f, stream);
}

template <class T>
void solve_factored(const Solved<T>& s, const T* factor, T* work, simt::Stream stream) {
  if (s.batch == 0) return;
  const bool some = s.rows > 0 && s.columns > 0;
  if (some && (s.rows <= kWarpLimit || s.rows <= block_limit<T>()))
    return solve_small<T>(s.batch, s.rows, factor, s.columns, {}, s.u, nullptr, stream, s);
  if (some) solve_large(s.batch, s.rows, factor, s.columns, s.u, work, stream);
  after_solve(s, stream);
}

#define SSDD_INSTANTIATE(T)                                        \
  template void factorise_large(const Factor<T>&, simt::Stream);   \
  template void solve_large(int64_t, int64_t, const T*, int64_t, T*, T*, simt::Stream); \
  template void factorise(const Factor<T>&, simt::Stream);         \
  template void solve_factored(const Solved<T>&, const T*, T*, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

// Problems larger than one block's shared memory: Cholesky and solve by tiles of 64 x 64, one launch each. Semaphores
// in global memory order the tiles, so that the next panel is factored while the rest of the triangle is still being
// updated.
//
// Mapping: one block per tile, of 256 threads: a tile is waited for, so that its time counts more than its instructions.
// factor_tiles_kernel computes one tile of L from the left: L(i, j) = (A(i, j) - sum_k<j L(i, k) L(j, k)^T) L(j, j)^-T.
// The sum is a product in registers (tile.cuh: tensor cores for float, at fp32 accuracy). A diagonal tile is then
// factored in shared memory. Other tiles are solved there as columns of L(i, j)^T. Both steps are in triangle.cuh.
// solve_tiles_kernel computes 64 rows of 64 columns of x in the same way, first of L^-1 y, then of L^-T.
// Order: each block draws an index. A tile depends only on tiles of smaller indices, whose blocks are already running,
// so that every wait ends in whatever order blocks start. One block computes each tile, in one order of sums: same
// inputs, same bits.
// A tile is read from the source and written to the factor, and then zeros to its mirror image. A is not copied.
//
// Traffic: each tile of the triangle is read once, n^2 / 2 elements, and n^2 are written. L is read from L2 n^3 / 192
// times (2 tiles per product). FLOPs: n^3 / 3 + 2 n^2 c.
// Floor on an H100 at n = 2048: 2.9 GFLOP, 28 us as three TF32 products through mma.sync. The limit is the chain: per
// 64 columns 64 pivots (8,000 cycles), one substitution (2,200), one product (2,000), and two semaphores with the tiles
// after them (5,000): 10 us; n = 512: 75 us. One tile of the solve is a product, a substitution and a semaphore: 4 us.
// These figures are counted, not measured on a GPU.
// Launches: 3 without retries (begin, factor, NaN if failed) and the solve, for any n; two more per retry.
// Other path: factor_small.cu if a matrix fits one block's shared memory.
//
// A retry with jitter reads the source again. If the source is the factor itself, it reads the upper triangle, which
// also holds A. Blocks of problems without a retry return at once.
#include "factor.cuh"
#include "../arena.h"
#include "tile_context.cuh"
#include "vector.cuh"

namespace ssdd::cuda {
namespace {

static_assert(kPanel == kTile, "one size of tiles");
int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// The memory that all blocks of a batch share, in global memory.
template <class T>
struct Workspace {
  T *diagonal, *shift;                        // [batch, n] of A; [batch] ridge and jitter of this attempt
  int32_t* active;                            // [batch]
  int *factor_semaphores, *solve_semaphores;  // semaphores [batch, tiles, tiles]; [batch, chunks, 2 tiles]
  int* counters;                              // of the factorisation, of the solve
  int64_t total;
};

template <class T>
Workspace<T> workspace_of(int64_t batch, int64_t n, int64_t c, T* memory) {
  Arena<T> arena{memory};
  Workspace<T> r{};
  const int64_t tiles = tiles_of(n);
  r.diagonal = arena.take(batch * n);
  r.shift = arena.take(batch);
  r.active = reinterpret_cast<int32_t*>(arena.take(batch));
  r.factor_semaphores = reinterpret_cast<int*>(arena.take(batch * tiles * tiles));
  r.solve_semaphores = reinterpret_cast<int*>(arena.take(batch * tiles_of(c) * 2 * tiles));
  r.counters = reinterpret_cast<int*>(arena.take(2));
  r.total = arena.used;
  return r;
}

template <class T>
struct Attempt {
  Factor<T> f;
  Workspace<T> room;
  int64_t tiles;
  int64_t solve_count;  // semaphores of the solve per problem
  int attempt;
};

SIMT_DEVICE void clear(int* semaphores, int64_t count) {
#pragma unroll 1
  for (int64_t i = simt::thread(); i < count; i += kBlockThreads)
    simt::store(semaphores + i, static_cast<int>(kWaiting));
}

// Saves the diagonal, computes the trace and this attempt's ridge and jitter, and clears the semaphores. One block per
// problem.
template <class T>
SIMT_KERNEL(kBlockThreads)
void begin_kernel(Attempt<T> a) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(double, sums, kBlockThreads);
  const Factor<T>& f = a.f;
  const int64_t b = simt::block().x, n = f.n;
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const bool runs = valid && (a.attempt == 0 || f.status[b] != 0);
  clear(a.room.factor_semaphores + b * a.tiles * a.tiles, a.tiles * a.tiles);
  clear(a.room.solve_semaphores + b * a.solve_count, a.solve_count);
  if (b == 0 && simt::thread() < 2) a.room.counters[simt::thread()] = 0;
  simt::barrier();  // all have read the status
  if (simt::thread() == 0) a.room.active[b] = runs;
  if (!valid && simt::thread() == 0) report(f, b, kBadParameter, 0, 0, 0);
  if (!runs) return;  // the same for the whole block
  const View<const T> source = f.source[b];
  T* diagonal = a.room.diagonal + b * n;
  const T* const from = a.attempt == 0 ? source.p : diagonal;
  const int64_t stride = a.attempt == 0 ? source.rs + source.cs : 1;
  double sum = 0;
  constexpr int kAtOnce = 4;  // loads in flight per thread
#pragma unroll 1
  for (int64_t first = simt::thread(); first < n; first += kAtOnce * kBlockThreads) {
    // Every element of the diagonal lies in a sector of its own. It is read once per problem, so it is not counted.
    T v[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      v[u] = first + u * kBlockThreads < n ? from[(first + u * kBlockThreads) * stride] : T(0);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      simt::store_if(a.attempt == 0 && first + u * kBlockThreads < n, diagonal + first + u * kBlockThreads, v[u]);
      sum += static_cast<double>(v[u]);
    }
  }
  simt::put(sums + simt::thread(), sum);
#pragma unroll 1
  for (int half = kBlockThreads / 2; half > 0; half /= 2) {
    simt::barrier();
    if (simt::thread() < half)
      simt::put(sums + simt::thread(), simt::get(sums + simt::thread()) + simt::get(sums + simt::thread() + half));
  }
  simt::barrier();
  const double trace = simt::get(sums);
  const double lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
  const double jitter = jitter_of<T>(a.attempt, trace, n);
  if (simt::thread() != 0) return;
  a.room.shift[b] = static_cast<T>(lambda + jitter);
  report(f, b, 0, trace, lambda, jitter);
}

// --- factor ------------------------------------------------------------------------------------------------------

template <class T>
SIMT_KERNEL_MIN(Tile<T>::kThreads, 1)
void factor_tiles_kernel(Attempt<T> a, bool vectors) {
  simt::wait_for_earlier_launches();
  constexpr int kThreads = Tile<T>::kThreads, kSteps = Tile<T>::kSteps, kPitch = TileContext<T>::kPitch;
  simt::Shared shared;
  SIMT_SHARED(T, inverse, kTile);
  const TileContext<T> context(shared, a.room.counters);
  const Factor<T>& f = a.f;
  const int batch = static_cast<int>(f.batch), tiles = static_cast<int>(a.tiles);
  const int64_t n = f.n, b = context.work_index() % batch;
  // Find the tile: column by column of tiles, and within a column the diagonal tiles of all problems first.
  int column = 0, row = context.work_index() / batch;
  while (row >= tiles - column) {
    row -= tiles - column;
    ++column;
  }
  row += column;
  const int64_t i = row, j = column;
  if (a.room.active[b] == 0) return;  // the same for all blocks of this problem
  T* const factor = f.factor + b * n * n;
  int* const semaphores = a.room.factor_semaphores + b * a.tiles * a.tiles;
  int* const done = semaphores + i * a.tiles + j;
  const int rows = least(n - i * kTile, kTile), columns = least(n - j * kTile, kTile);
  const View<const T> row_i{factor + i * kTile * n, n, 1}, row_j{factor + j * kTile * n, n, 1};
  const GlobalTile<T> here{factor + i * kTile * n + j * kTile, n, rows, columns};
  const bool diagonal = i == j;

  // Load A's tile. Off the diagonal it is transposed, since L(i, j)^T = L(j, j)^-1 S^T is solved by columns.
  const typename TileContext<T>::Layout own = context.layout(!diagonal);
  context.load_tile(f.source[b].from(i * kTile, j * kTile), rows, columns, own);
  T pivot = 0;  // this thread's element of the diagonal
  if (diagonal && simt::thread() < rows)
    pivot = simt::load(a.room.diagonal + b * n + i * kTile + simt::thread()) + a.room.shift[b];
  // Add up the products with the tiles to the left.
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t k = 0; k < j * kTile; k += kSteps) {
    if (k % kTile == 0) {
      context.wait(semaphores + i * a.tiles + k / kTile);
      if (!diagonal) context.wait(semaphores + j * a.tiles + k / kTile);
    }
    simt::barrier();  // the semaphores are seen, and the operands are free
    Tile<T>::template load<true>(row_i.from(0, k), rows, kSteps, vectors, context.a);
    if (!diagonal) Tile<T>::template load<true>(row_j.from(0, k), columns, kSteps, vectors, context.b);
    context.wait_for_copies();
    tile.template multiply<true, true>(context.a, diagonal ? context.a : context.b);
  }
  if (!diagonal) context.wait(semaphores + j * a.tiles + j);
  context.wait_for_copies();
  if (context.failed()) return context.post(done, kFailed);  // the same for the whole block

  if (diagonal) {
    if (simt::thread() < rows) simt::put(own.at(simt::thread(), simt::thread()), pivot);
    simt::barrier();
  }
  context.subtract(tile, own);
  if (!diagonal) {
    // Solve with L(j, j), loaded into the memory of the operands.
    const Square<T> l{context.a, kTile, kPitch};
    load_lower<kThreads>(row_j.from(0, j * kTile), vectors, l);
    context.solve(l, inverse, false);
  } else {
    // Factor the diagonal tile.
    simt::barrier();
    factor_shared<kThreads>(Square<T>{context.own, rows, kPitch}, inverse, context.a, context.state + 2);
    if (context.state[2]) {
      if (simt::thread() == 0) {
        f.status[b] = static_cast<int32_t>(j * kTile) + context.state[2];
        f.aux[3 * b + 1] = simt::nan<T>();
      }
      return context.post(done, kFailed);
    }
  }
  const GlobalTile<T> mirrored{factor + j * kTile * n + i * kTile, n, columns, rows};
  context.store_tile(own, here, diagonal, f.zero_upper);
  context.post(done, kReady);
  if (f.zero_upper && !diagonal) context.store_zeros(mirrored);
}

// Clears the solve's semaphores and counter, for a solve without a factorisation. One block per problem.
template <class T>
SIMT_KERNEL(kBlockThreads)
void clear_kernel(Workspace<T> room, int64_t solve_count) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x;
  clear(room.solve_semaphores + b * solve_count, solve_count);
  if (b == 0 && simt::thread() == 0) room.counters[1] = 0;
}

// --- solve -------------------------------------------------------------------------------------------------------

template <class T>
struct Solve {
  int64_t batch, n, c, tiles, chunks;
  const T* factor;
  T* x;
  Workspace<T> room;
  bool vectors, x_vectors;
  bool ahead;        // L(i, i) is loaded into memory of its own during the products
  Batch<const T> y;  // the right-hand side; may be x itself
};
// Computes tile i of one chunk: x(i) = L(i, i)^-1 (x(i) - sum_k<i L(i, k) x(k)); back: x(i) = L(i, i)^-T (x(i) -
// sum_k>i L(k, i)^T x(k)).
template <class T>
SIMT_DEVICE void solve_tile(const Solve<T>& s, const TileContext<T>& context, T* triangle, T* inverse, bool back,
                            int64_t b, int64_t chunk, int64_t i) {
  const int64_t n = s.n, c = s.c;
  int* const forward = s.room.solve_semaphores + (b * s.chunks + chunk) * 2 * s.tiles;
  int* const semaphores = back ? forward + s.tiles : forward;
  const T* const factor = s.factor + b * n * n;
  T* const x = s.x + b * n * c + chunk * kTile;
  const int rows = least(n - i * kTile, kTile), columns = least(c - chunk * kTile, kTile);
  const GlobalTile<T> here{x + i * kTile * c, c, rows, columns};
  const Square<T> l{triangle, rows, TileContext<T>::kPitch};
  const View<const T> l_here{factor + i * kTile * (n + 1), n, 1};
  if (s.ahead) load_lower<TileContext<T>::kThreads>(l_here, s.vectors, l);
  if (back) {
    context.wait(forward + i);
    simt::barrier();
  }
  const View<const T> source = back ? View<const T>{here.p, c, 1} : s.y[b].from(i * kTile, chunk * kTile);
  context.load_tile(source, rows, columns, context.layout(false));
  // Add up the products with the finished tiles of x.
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t m = 0, others = back ? s.tiles - 1 - i : i; m < others; ++m) {
    const int64_t k = back ? s.tiles - 1 - m : m;  // in the order in which they finish
#pragma unroll 1
    for (int64_t at = k * kTile, end = at + kTile; at < end; at += Tile<T>::kSteps) {
      const int steps = least(n - at, Tile<T>::kSteps);
      simt::barrier();  // the operands are free
      // L is complete, so its operand is loaded before the wait.
      if (back)
        Tile<T>::template load<false>({factor + at * n + i * kTile, 1, n}, rows, steps, s.vectors, context.a);
      else
        Tile<T>::template load<true>({factor + i * kTile * n + at, n, 1}, rows, steps, s.vectors, context.a);
      context.wait(semaphores + k);
      simt::barrier();
      Tile<T>::template load<false>({x + at * c, 1, c}, columns, steps, s.x_vectors, context.b);
      context.wait_for_copies();
      if (back)
        tile.template multiply<false, false>(context.a, context.b);
      else
        tile.template multiply<true, false>(context.a, context.b);
    }
  }
  context.wait_for_copies();
  // Solve with the diagonal tile.
  if (!s.ahead) load_lower<TileContext<T>::kThreads>(l_here, s.vectors, l);
  context.subtract(tile, context.layout(false));
  context.solve(l, inverse, back);
  context.store_tile(context.layout(false), here, false, false);
  context.post(semaphores + i, kReady);
}

template <class T>
SIMT_KERNEL_MIN(Tile<T>::kThreads, 1)
void solve_tiles_kernel(Solve<T> s) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  SIMT_SHARED(T, inverse, kTile);
  const TileContext<T> context(shared, s.room.counters + 1);
  T* const triangle = s.ahead ? shared.take<T>(TileContext<T>::kWhole) : context.a;
  const int chunks = static_cast<int>(s.chunks), across = static_cast<int>(s.batch) * chunks,
            tiles = static_cast<int>(s.tiles);
  const int step = context.work_index() / across, which = context.work_index() % across;
  const bool back = simt::uniform(step >= tiles ? 1 : 0) != 0;
  solve_tile(s, context, triangle, inverse, back, which / chunks, which % chunks, back ? 2 * tiles - 1 - step : step);
}

template <class T>
bool aligned(const T* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// x <- A^-1 y. All semaphores of the solve must be clear.
template <class T>
void run_solve(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x,
               const Workspace<T>& room, simt::Stream stream) {
  const int room_ahead = TileContext<T>::kBytes + TileContext<T>::kWhole * static_cast<int>(sizeof(T));
  const bool ahead = room_ahead <= simt::shared_limit() / 2;  // two blocks per multiprocessor still fit
  Solve<T> s{};
  s.batch = batch;
  s.n = n;
  s.c = c;
  s.tiles = tiles_of(n);
  s.chunks = tiles_of(c);
  s.factor = factor;
  s.x = x;
  s.room = room;
  s.vectors = aligned(factor, n);
  s.x_vectors = aligned(x, c);
  s.ahead = ahead;
  s.y = y;
  simt::launch(&solve_tiles_kernel<T>, {static_cast<unsigned>(batch * s.chunks * 2 * s.tiles)}, Tile<T>::kThreads,
               ahead ? room_ahead : TileContext<T>::kBytes, stream, s);
}

}  // namespace

int64_t factor_room(int64_t batch, int64_t n, int64_t c) {
  // Always enough for the tiled path, since block_limit differs between devices.
  return n <= kWarpLimit ? 0 : workspace_of<float>(batch, n, c, nullptr).total;
}

template <class T>
void factorise_large(const Factor<T>& f, simt::Stream stream) {
  const int64_t n = f.n, whole = n * n, tiles = tiles_of(n);
  const bool in_place = f.source.p == f.factor;
  Attempt<T> a{f, workspace_of(f.batch, n, f.c, f.work), tiles, tiles_of(f.c) * 2 * tiles, 0};
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  for (; a.attempt < attempts; ++a.attempt) {
    if (a.attempt > 0 && in_place) a.f.source = {f.factor, whole, 1, n};  // the upper triangle
    simt::launch(&begin_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, a);
    simt::launch(&factor_tiles_kernel<T>, {static_cast<unsigned>(f.batch * tiles * (tiles + 1) / 2)}, Tile<T>::kThreads,
                 TileContext<T>::kBytes, stream, a, aligned(f.factor, n));
  }
  nan_if_failed<T>(f.batch, whole, f.status, f.factor, stream);
  // NaN in all of the factor is NaN in all of x.
  if (f.x && f.c > 0) run_solve(f.batch, n, f.factor, f.c, f.y, f.x, a.room, stream);
}

template <class T>
void solve_tiled(const Factor<T>& f, simt::Stream stream) {
  const Workspace<T> room = workspace_of(f.batch, f.n, f.c, f.work);
  simt::launch(&clear_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, room,
               tiles_of(f.c) * 2 * tiles_of(f.n));
  run_solve(f.batch, f.n, f.factor, f.c, f.y, f.x, room, stream);
}

template <class T>
void solve_large(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, T* work, simt::Stream stream) {
  const int64_t tiles = tiles_of(n);
  const Workspace<T> room = workspace_of(batch, n, c, work);
  simt::launch(&clear_kernel<T>, {static_cast<unsigned>(batch)}, kBlockThreads, 0, stream, room,
               tiles_of(c) * 2 * tiles);
  run_solve<T>(batch, n, factor, c, {x, n * c, c, 1}, x, room, stream);
}

template <class T>
void factorise(const Factor<T>& f, simt::Stream stream) {
  if (f.batch == 0 || f.n == 0) return;
  if (f.n <= kWarpLimit || f.n <= block_limit<T>()) return factorise_small(f, stream);
  if (takes_cluster(f)) return factorise_cluster(f, stream);
  factorise_large(f, stream);
}

template <class T>
void solve_factored(const AfterSolve<T>& s, const T* factor, T* work, simt::Stream stream) {
  if (s.batch == 0) return;
  const bool some = s.rows > 0 && s.columns > 0;
  if (some && (s.rows <= kWarpLimit || s.rows <= block_limit<T>()))
    return solve_small<T>(s.batch, s.rows, factor, s.columns, {}, s.u, nullptr, stream, s);
  if (some) solve_large(s.batch, s.rows, factor, s.columns, s.u, work, stream);
  after_solve(s, stream);
}

#define SSDD_INSTANTIATE(T)                                                             \
  template void factorise_large(const Factor<T>&, simt::Stream);                        \
  template void solve_tiled(const Factor<T>&, simt::Stream);                            \
  template void solve_large(int64_t, int64_t, const T*, int64_t, T*, T*, simt::Stream); \
  template void factorise(const Factor<T>&, simt::Stream);                              \
  template void solve_factored(const AfterSolve<T>&, const T*, T*, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

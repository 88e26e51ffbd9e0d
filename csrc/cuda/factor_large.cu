// Problems larger than one block's shared memory: Cholesky and solve by tiles of 64 x 64, one launch each. Semaphores in global
// memory keep the order of the tiles, so that the next panel is factored while the rest of the triangle is still being updated.
//
// factor_tiles_kernel: a block makes one tile of L from the left, L(i, j) = (A(i, j) - sum_k<j L(i, k) L(j, k)^T) L(j, j)^-T. The
// sum is a product in registers (tile.cuh: tensor cores for float, at fp32 accuracy). A tile of the diagonal is then factored
// in shared memory, others are substituted there as columns of L(i, j)^T, both by triangle.cuh.
// solve_tiles_kernel: a block makes 64 rows of 64 columns of x, first of L^-1 y, then of L^-T, in the same way.
// Order: blocks draw tickets. A tile needs tiles of smaller tickets only, whose blocks are running already, so that waiting
// ends whatever the order in which blocks start. Every tile is made by one block in one order of sums: same inputs, same bits.
//
// A tile is read from the source and written to the factor, and the zeros of its mirror image behind it: no copy of A is made.
//
// Traffic: each tile of the triangle is read once, n^2 / 2 elements, and n^2 written; L is read from L2 n^3 / 192 times (2 tiles per product).
// FLOPs n^3 / 3 + 2 n^2 c. Floor on an H100 at n = 2048: 2.9 GFLOP = 28 us as three TF32 products through mma.sync. The chain
// is the limit: of each 64 columns 64 pivots (8,000 cycles), one substitution (2,200), one product (3,000), two semaphores and
// the tiles behind them (5,000): 10 us; n = 512: 80 us. Of a tile of the solve a product, a substitution and a semaphore: 4 us.
// Counted, not measured on a GPU.
// Launches: 3 without retries (begin, factor, NaN if failed) and the solve, whatever n is; two more per retry.
// Other path: factor_small.cu if a matrix fits one block's shared memory.
//
// A retry with jitter reads the source again, or, if that is the factor itself, the upper triangle, which holds A too. Blocks of
// problems that need none return at once.
#include "factor.cuh"
#include "../arena.h"
#include "desk.cuh"
#include "vector.cuh"

namespace ssdd::cuda {
namespace {

static_assert(kPanel == kTile, "one size of tiles");
int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// What the blocks of a batch share, in global memory.
template <class T>
struct Room {
  T *diagonal, *shift;     // [batch, n] of A; [batch] what this attempt adds to it: ridge and jitter
  int32_t* active;         // [batch]
  int *factored, *solved;  // semaphores [batch, tiles, tiles]; [batch, chunks, 2 tiles]
  int* tickets;            // of the factorisation, of the solve
  int64_t total;
};

template <class T>
Room<T> room_of(int64_t batch, int64_t n, int64_t c, T* memory) {
  Arena<T> arena{memory};
  Room<T> r{};
  const int64_t tiles = tiles_of(n);
  r.diagonal = arena.take(batch * n);
  r.shift = arena.take(batch);
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
  int64_t tiles, solved;  // semaphores of `solved` per problem
  int attempt;
};

SIMT_DEVICE void clear(int* semaphores, int64_t count) {
#pragma unroll 1
  for (int64_t i = simt::thread(); i < count; i += kBlockThreads)
    simt::store(semaphores + i, static_cast<int>(kWaiting));
}

// The diagonal and its trace; ridge and jitter of this attempt; no semaphore posted. One block per problem.
template <class T>
SIMT_KERNEL(kBlockThreads)
void begin_kernel(Attempt<T> a) {
  SIMT_SHARED(double, sums, kBlockThreads);
  const Factor<T>& f = a.f;
  const int64_t b = simt::block().x, n = f.n;
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const bool runs = valid && (a.attempt == 0 || f.status[b] != 0);
  clear(a.room.factored + b * a.tiles * a.tiles, a.tiles * a.tiles);
  clear(a.room.solved + b * a.solved, a.solved);
  if (b == 0 && simt::thread() < 2) a.room.tickets[simt::thread()] = 0;
  simt::barrier();  // all have read the status
  if (simt::thread() == 0) a.room.active[b] = runs;
  if (!valid && simt::thread() == 0) report(f, b, kBadParameter, 0, 0, 0);
  if (!runs) return;  // the same for the whole block
  const View<const T> source = f.source[b];
  T* diagonal = a.room.diagonal + b * n;
  const T* const from = a.attempt == 0 ? source.p : diagonal;
  const int64_t stride = a.attempt == 0 ? source.rs + source.cs : 1;
  double sum = 0;
  constexpr int kAtOnce = 4;  // loads, each of which takes a trip to memory
#pragma unroll 1
  for (int64_t first = simt::thread(); first < n; first += kAtOnce * kBlockThreads) {
    // A sector for each element of the diagonal, whatever one does; once a problem, so not counted.
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
  const double jitter = jitter_of<T>(a.attempt, absolute(trace) / static_cast<double>(n));
  if (simt::thread() != 0) return;
  a.room.shift[b] = static_cast<T>(lambda + jitter);
  report(f, b, 0, trace, lambda, jitter);
}

// --- factor ------------------------------------------------------------------------------------------------------

template <class T>
SIMT_KERNEL_MIN(Tile<T>::kThreads, 1)
void factor_tiles_kernel(Attempt<T> a, bool vectors) {
  constexpr int kThreads = Tile<T>::kThreads, kSteps = Tile<T>::kSteps, kPitch = Desk<T>::kPitch;
  simt::Shared shared;
  SIMT_SHARED(T, inverse, kTile);
  const Desk<T> desk(shared, a.room.tickets);
  const Factor<T>& f = a.f;
  const int batch = static_cast<int>(f.batch), tiles = static_cast<int>(a.tiles);
  const int64_t n = f.n, b = desk.ticket() % batch;
  // Column by column of tiles, and in each all problems' diagonals first.
  int column = 0, row = desk.ticket() / batch;
  while (row >= tiles - column) {
    row -= tiles - column;
    ++column;
  }
  row += column;
  const int64_t i = row, j = column;
  if (a.room.active[b] == 0) return;  // the whole block; so do all of this problem
  T* const factor = f.factor + b * n * n;
  int* const semaphores = a.room.factored + b * a.tiles * a.tiles;
  int* const done = semaphores + i * a.tiles + j;
  const int rows = least(n - i * kTile, kTile), columns = least(n - j * kTile, kTile);
  const View<const T> row_i{factor + i * kTile * n, n, 1}, row_j{factor + j * kTile * n, n, 1};
  const GlobalTile<T> here{factor + i * kTile * n + j * kTile, n, rows, columns};
  const bool diagonal = i == j;

  // A's tile; off the diagonal transposed, since L(i, j)^T = L(j, j)^-1 S^T is solved by columns.
  const typename Desk<T>::Layout own = desk.layout(!diagonal);
  desk.load_tile(f.source[b].from(i * kTile, j * kTile), rows, columns, own);
  T pivot = 0;  // this thread's element of the diagonal
  if (diagonal && simt::thread() < rows)
    pivot = simt::load(a.room.diagonal + b * n + i * kTile + simt::thread()) + a.room.shift[b];
  // The sum of products with the tiles to the left.
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t k = 0; k < j * kTile; k += kSteps) {
    if (k % kTile == 0) {
      desk.wait(semaphores + i * a.tiles + k / kTile);
      if (!diagonal) desk.wait(semaphores + j * a.tiles + k / kTile);
    }
    simt::barrier();  // seen by all, who are done with the operands
    Tile<T>::template load<true>(row_i.from(0, k), rows, kSteps, vectors, desk.a);
    if (!diagonal) Tile<T>::template load<true>(row_j.from(0, k), columns, kSteps, vectors, desk.b);
    desk.wait_for_copies();
    tile.template multiply<true, true>(desk.a, diagonal ? desk.a : desk.b);
  }
  if (!diagonal) desk.wait(semaphores + j * a.tiles + j);
  desk.wait_for_copies();
  if (desk.failed()) return desk.post(done, kFailed);  // the same for the whole block

  if (diagonal) {
    if (simt::thread() < rows) simt::put(own.at(simt::thread(), simt::thread()), pivot);
    simt::barrier();
  }
  desk.subtract(tile, own);
  if (!diagonal) {
    // Substitute: the operands' place takes L(j, j).
    const Square<T> l{desk.a, kTile, kPitch};
    load_lower<kThreads>(row_j.from(0, j * kTile), vectors, l);
    desk.solve(l, inverse, false);
  } else {
    // Factor the diagonal tile.
    simt::barrier();
    factor_shared<kThreads>(Square<T>{desk.own, rows, kPitch}, inverse, desk.a, desk.state + 2);
    if (desk.state[2]) {
      if (simt::thread() == 0) {
        f.status[b] = static_cast<int32_t>(j * kTile) + desk.state[2];
        f.aux[3 * b + 1] = simt::nan<T>();
      }
      return desk.post(done, kFailed);
    }
  }
  const GlobalTile<T> mirrored{factor + j * kTile * n + i * kTile, n, columns, rows};
  desk.store_tile(own, here, diagonal, f.zero_upper);
  desk.post(done, kReady);
  if (f.zero_upper && !diagonal) desk.store_zeros(mirrored);
}

// No semaphore posted, for a solve that did not factor. One block per problem.
template <class T>
SIMT_KERNEL(kBlockThreads)
void clear_kernel(Room<T> room, int64_t solved) {
  const int64_t b = simt::block().x;
  clear(room.solved + b * solved, solved);
  if (b == 0 && simt::thread() == 0) room.tickets[1] = 0;
}

// --- solve -------------------------------------------------------------------------------------------------------

template <class T>
struct Solve {
  int64_t batch, n, c, tiles, chunks;
  const T* factor;
  T* x;
  Room<T> room;
  bool vectors, x_vectors;
  bool ahead;        // L(i, i) has a place of its own, and is there when the last product is done
  Batch<const T> y;  // what x is solved for; may be x itself
};
// Tile i of one chunk: x(i) = L(i, i)^-1 (x(i) - sum_k<i L(i, k) x(k)), back: x(i) = L(i, i)^-T (x(i) - sum_k>i L(k, i)^T x(k)).
template <class T>
SIMT_DEVICE void solve_tile(const Solve<T>& s, const Desk<T>& desk, T* triangle, T* inverse, bool back, int64_t b,
                            int64_t chunk, int64_t i) {
  const int64_t n = s.n, c = s.c;
  int* const forward = s.room.solved + (b * s.chunks + chunk) * 2 * s.tiles;
  int* const semaphores = back ? forward + s.tiles : forward;
  const T* const factor = s.factor + b * n * n;
  T* const x = s.x + b * n * c + chunk * kTile;
  const int rows = least(n - i * kTile, kTile), columns = least(c - chunk * kTile, kTile);
  const GlobalTile<T> here{x + i * kTile * c, c, rows, columns};
  const Square<T> l{triangle, rows, Desk<T>::kPitch};
  const View<const T> l_here{factor + i * kTile * (n + 1), n, 1};
  if (s.ahead) load_lower<Desk<T>::kThreads>(l_here, s.vectors, l);
  if (back) {
    desk.wait(forward + i);
    simt::barrier();
  }
  const View<const T> given = back ? View<const T>{here.p, c, 1} : s.y[b].from(i * kTile, chunk * kTile);
  desk.load_tile(given, rows, columns, desk.layout(false));
  // The sum of products with the tiles of x that are there.
  Tile<T> tile;
  tile.clear();
#pragma unroll 1
  for (int64_t m = 0, others = back ? s.tiles - 1 - i : i; m < others; ++m) {
    const int64_t k = back ? s.tiles - 1 - m : m;  // in the order in which they come
#pragma unroll 1
    for (int64_t at = k * kTile, end = at + kTile; at < end; at += Tile<T>::kSteps) {
      const int steps = least(n - at, Tile<T>::kSteps);
      simt::barrier();  // all are done with the operands
      // L does not have to be waited for.
      if (back)
        Tile<T>::template load<false>({factor + at * n + i * kTile, 1, n}, rows, steps, s.vectors, desk.a);
      else
        Tile<T>::template load<true>({factor + i * kTile * n + at, n, 1}, rows, steps, s.vectors, desk.a);
      desk.wait(semaphores + k);
      simt::barrier();
      Tile<T>::template load<false>({x + at * c, 1, c}, columns, steps, s.x_vectors, desk.b);
      desk.wait_for_copies();
      if (back)
        tile.template multiply<false, false>(desk.a, desk.b);
      else
        tile.template multiply<true, false>(desk.a, desk.b);
    }
  }
  desk.wait_for_copies();
  // Substitute.
  if (!s.ahead) load_lower<Desk<T>::kThreads>(l_here, s.vectors, l);
  desk.subtract(tile, desk.layout(false));
  desk.solve(l, inverse, back);
  desk.store_tile(desk.layout(false), here, false, false);
  desk.post(semaphores + i, kReady);
}

template <class T>
SIMT_KERNEL_MIN(Tile<T>::kThreads, 1)
void solve_tiles_kernel(Solve<T> s) {
  simt::Shared shared;
  SIMT_SHARED(T, inverse, kTile);
  const Desk<T> desk(shared, s.room.tickets + 1);
  T* const triangle = s.ahead ? shared.take<T>(Desk<T>::kWhole) : desk.a;
  const int chunks = static_cast<int>(s.chunks), across = static_cast<int>(s.batch) * chunks,
            tiles = static_cast<int>(s.tiles);
  const int step = desk.ticket() / across, which = desk.ticket() % across;
  const bool back = step >= tiles;
  solve_tile(s, desk, triangle, inverse, back, which / chunks, which % chunks, back ? 2 * tiles - 1 - step : step);
}

template <class T>
bool aligned(const T* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// x <- A^-1 y; no semaphore of the solve is posted.
template <class T>
void run_solve(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x, const Room<T>& room,
               simt::Stream stream) {
  const int room_ahead = Desk<T>::kBytes + Desk<T>::kWhole * static_cast<int>(sizeof(T));
  const bool ahead = room_ahead <= simt::shared_limit() / 2;  // two blocks per multiprocessor still
  const Solve<T> s{batch, n, c, tiles_of(n), tiles_of(c), factor, x, room, aligned(factor, n), aligned(x, c), ahead, y};
  simt::launch(&solve_tiles_kernel<T>, {static_cast<unsigned>(batch * s.chunks * 2 * s.tiles)}, Tile<T>::kThreads,
               ahead ? room_ahead : Desk<T>::kBytes, stream, s);
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
  Attempt<T> a{f, room_of(f.batch, n, f.c, f.work), tiles, tiles_of(f.c) * 2 * tiles, 0};
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  for (; a.attempt < attempts; ++a.attempt) {
    if (a.attempt > 0 && in_place) a.f.source = {f.factor, whole, 1, n};  // the upper triangle
    simt::launch(&begin_kernel<T>, {static_cast<unsigned>(f.batch)}, kBlockThreads, 0, stream, a);
    simt::launch(&factor_tiles_kernel<T>, {static_cast<unsigned>(f.batch * tiles * (tiles + 1) / 2)}, Tile<T>::kThreads,
                 Desk<T>::kBytes, stream, a, aligned(f.factor, n));
  }
  nan_where_failed<T>(f.batch, whole, f.status, f.factor, stream);
  // NaN in all of the factor is NaN in all of x.
  if (f.x && f.c > 0) run_solve(f.batch, n, f.factor, f.c, f.y, f.x, a.room, stream);
}

template <class T>
void solve_large(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, T* work, simt::Stream stream) {
  const int64_t tiles = tiles_of(n);
  const Room<T> room = room_of(batch, n, c, work);
  simt::launch(&clear_kernel<T>, {static_cast<unsigned>(batch)}, kBlockThreads, 0, stream, room,
               tiles_of(c) * 2 * tiles);
  run_solve<T>(batch, n, factor, c, {x, n * c, c, 1}, x, room, stream);
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

#define SSDD_INSTANTIATE(T)                                                             \
  template void factorise_large(const Factor<T>&, simt::Stream);                        \
  template void solve_large(int64_t, int64_t, const T*, int64_t, T*, T*, simt::Stream); \
  template void factorise(const Factor<T>&, simt::Stream);                              \
  template void solve_factored(const Solved<T>&, const T*, T*, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

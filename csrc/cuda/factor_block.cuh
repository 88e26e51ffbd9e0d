// Parts shared by the one-block factorisations: A's lower triangle in shared memory, ridge and retries, and the output.
#pragma once
#include "factor.cuh"
#include "triangle.cuh"

namespace ssdd::cuda {

constexpr int kPassColumns = 16;  // columns per pass of the solve

// The shared memory of one problem. `panel` and `x` are used by the factorisation and the solve only.
template <class T>
struct BlockRoom {
  Square<T> a;
  T *inverse, *diagonal, *panel;
  Columns<kPassColumns, T> x;
  SIMT_DEVICE BlockRoom(simt::Shared& shared, int64_t size) {
    const int n = static_cast<int>(size);
    a = {nullptr, n, shared_pitch<T>(n)};
    a.p = shared.take<T>(n * a.pitch);
    inverse = shared.take<T>(whole_strips(n));
    diagonal = shared.take<T>(n);
  }
  // Elements of the panel and x. They reuse memory whose contents are no longer needed when the factorisation starts.
  static constexpr int working(int n) { return kPanelRoom + whole_strips(n) * kPassColumns; }
  SIMT_DEVICE void place_work(T* room) {
    panel = room;
    x = {room + kPanelRoom, kPassColumns};
  }
};
// The 64 bytes are padding: each array begins at a multiple of 16.
template <class T>
int room_bytes(int64_t size, int64_t working) {
  const int n = static_cast<int>(size);
  return static_cast<int>((n * shared_pitch<T>(n) + whole_strips(n) + n + working) * static_cast<int64_t>(sizeof(T))) +
         64;
}
template <class T>
int block_bytes(int64_t n) {
  return room_bytes<T>(n, BlockRoom<T>::working(static_cast<int>(n)));
}

// The largest order, at most 256, whose `bytes(n)` of shared memory fit one block of the current device, and at least
// `least`. Cached per function `bytes`, since the search costs a few microseconds.
template <class Bytes>
int64_t largest_order(int64_t least, Bytes bytes) {
  static thread_local int64_t n = 0;
  static thread_local int known = -1;
  const int room = simt::shared_limit() - 256;  // for static arrays
  if (room == known) return n;
  known = room;
  n = 256;
  while (n > least && bytes(n) > room) --n;
  return n;
}

SIMT_DEVICE int least(int64_t x, int64_t y) { return static_cast<int>(x < y ? x : y); }

// Starts asynchronous copies of the lower triangle of a [n, n] to shared memory: 16 bytes per copy if `vectors` (up to
// 3 elements beyond the diagonal are copied too), else one element per copy.
template <int Threads, class T>
SIMT_DEVICE void load_lower(View<const T> a, bool vectors, const Square<T>& to) {
  const int wide = vectors ? kVector<T> : 1;
#pragma unroll 1
  for (int i = simt::warp(); i < to.n; i += Threads / 32)
#pragma unroll 1
    for (int first = 0; first <= i; first += 32 * wide) {
      const int j = first + simt::lane() * wide;
      const bool part = j <= i;
      T* const there = to.at(i, j);
      const T* const from = a.p + i * a.rs + j * a.cs;
      if (vectors)
        simt::copy_async_if<16>(part, there, from, least(to.n - j, wide) * static_cast<int>(sizeof(T)));
      else
        simt::copy_async_if<sizeof(T)>(part, there, from, static_cast<int>(sizeof(T)));
    }
  simt::copy_commit();
}
template <class T>
bool rows_are_aligned(const T* p, int64_t batch_stride, int64_t row_stride, int64_t column_stride) {
  return column_stride == 1 && row_stride % kVector<T> == 0 && batch_stride % kVector<T> == 0 &&
         reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Loads columns c0 .. c0 + Width of y into shared memory, zero beyond the last row and the last column. Each thread
// loads one column.
template <int Threads, int Width, class T>
SIMT_DEVICE void load_columns(View<const T> y, int n, int64_t c0, int64_t columns, const Columns<Width, T>& x) {
  constexpr int kStep = Threads / Width, kAtOnce = sizeof(T) == 4 ? 4 : 2;
  const int rows = whole_strips(n), first = Team<Threads>::rank() / Width, c = Team<Threads>::rank() % Width;
  const bool exists = c0 + c < columns;
  const T* from = y.p + first * y.rs + (c0 + c) * y.cs;
#pragma unroll kAtOnce
  for (int i = first; i < rows; i += kStep, from += kStep * y.rs)
    simt::put(x.at(i, c), simt::load_if(exists && i < n, from, T(0)));
}
template <int Threads, int Width, class T>
SIMT_DEVICE void store_columns(const Columns<Width, T>& x, int n, int64_t c0, int64_t columns, bool failed, T* out) {
  constexpr int kStep = Threads / Width;
  const int first = Team<Threads>::rank() / Width, c = Team<Threads>::rank() % Width;
  const bool exists = c0 + c < columns;
  T* to = out + first * columns + c0 + c;
#pragma unroll 1
  for (int i = first; i < whole_strips(n); i += kStep, to += kStep * columns)
    simt::store_if(exists && i < n, to, failed ? simt::nan<T>() : simt::get(x.at(i, c)));
}

// Solves x = A^-1 y with L in shared memory, kPassColumns at a time. x is NaN if the problem failed.
template <int Threads, class T>
SIMT_DEVICE void solve_columns(const Square<T>& l, const T* inverse, const Columns<kPassColumns, T>& x, View<const T> y,
                               int64_t columns, bool failed, T* out) {
#pragma unroll 1
  for (int64_t c0 = 0; c0 < columns; c0 += kPassColumns) {
    load_columns<Threads>(y, l.n, c0, columns, x);
    Team<Threads>::barrier();
    if (!failed) substitute_twice<Threads>(l, inverse, x);  // the same for the whole team
    store_columns<Threads>(x, l.n, c0, columns, failed, out);
    Team<Threads>::barrier();
  }
}

// The ridge and jitter for the diagonal, in shared memory. One thread computes them, so that the divisions cost the
// other threads no registers.
struct Shift {
  double trace, lambda, jitter;
};

// Computes trace and ridge of the matrix in shared memory, and keeps its diagonal for retries. One warp.
template <class T>
SIMT_DEVICE void keep_diagonal(const Factor<T>& f, const T* scalars, const BlockRoom<T>& room, Shift* shift) {
  double sum = 0;
#pragma unroll 1
  for (int i = simt::lane(); i < room.a.n; i += 32) {
    const T d = simt::get(room.a.at(i, i));
    simt::put(room.diagonal + i, d);
    sum += static_cast<double>(d);
  }
#pragma unroll 1
  for (int mask = 16; mask > 0; mask /= 2) sum += simt::shuffle_xor(sum, mask);
  if (simt::lane() != 0) return;
  shift->trace = sum;
  shift->lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, sum, f.order);
}

// Factors the matrix A that form(attempt) writes to shared memory (the lower triangle; from the second attempt on the
// diagonal may hold anything), with ridge and retries. Returns the status and reports it.
template <class T, class Form>
SIMT_DEVICE int factor_with_retries(const Factor<T>& f, int64_t b, const BlockRoom<T>& room, const Form& form) {
  SIMT_SHARED(int, failed, 1);
  SIMT_SHARED(Shift, shift, 1);
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  int status = kBadParameter;
  if (simt::thread() == 0) *shift = {0, 0, 0};
#pragma unroll 1
  for (int attempt = 0; valid && attempt < attempts && status != 0; ++attempt) {
    form(attempt);
    simt::barrier();
    // Add ridge and jitter to the diagonal.
    if (Team<kBlockThreads>::warp() == 0) {
      if (attempt == 0) keep_diagonal(f, scalars, room, shift);
      if (simt::lane() == 0) {
        *failed = 0;
        shift->jitter = jitter_of<T>(attempt, shift->trace, room.a.n);
      }
    }
    simt::barrier();
#pragma unroll 1
    for (int i = simt::thread(); i < room.a.n; i += kBlockThreads)
      simt::put(room.a.at(i, i),
                static_cast<T>(static_cast<double>(simt::get(room.diagonal + i)) + shift->lambda + shift->jitter));
    simt::barrier();
    factor_shared<kBlockThreads>(room.a, room.inverse, room.panel, failed);
    status = *failed;
    simt::barrier();  // before it is written again
  }
  if (simt::thread() == 0) report(f, b, status, shift->trace, shift->lambda, shift->jitter);
  return status;
}

// Writes L, or NaN if the problem failed, and x if there are few columns.
template <class T>
SIMT_DEVICE void write_factor(const Factor<T>& f, int64_t b, const BlockRoom<T>& room, int status) {
  const int n = room.a.n;
  T* out = f.factor + b * f.n * f.n;
#pragma unroll 1
  for (int i = simt::warp(); i < n; i += kBlockThreads / 32)
#pragma unroll 1
    for (int j = simt::lane(); j < n + 31 - (n + 31) % 32; j += 32) {
      const bool lower = j <= i, wanted = lower || (j < n && f.zero_upper);
      const T v = simt::get_if(lower, room.a.at(i, lower ? j : 0), T(0));
      simt::store_if(wanted, out + i * n + j, lower && status ? simt::nan<T>() : v);
    }
  if (!f.x || f.c > kPassLimit) return;
  solve_columns<kBlockThreads>(room.a, room.inverse, room.x, f.y[b], f.c, status != 0, f.x + b * f.n * f.c);
}

}  // namespace ssdd::cuda

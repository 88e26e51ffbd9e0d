// What the one-block factorisations share: A's lower triangle in shared memory, ridge and retries, what is written.
#pragma once
#include "factor.cuh"
#include "triangle.cuh"

namespace ssdd::cuda {

// The shared memory of one problem.
template <class T>
struct BlockRoom {
  T *a, *inverse, *diagonal;
  int n, pitch;
  SIMT_DEVICE BlockRoom(simt::Shared& shared, int64_t size) : n(static_cast<int>(size)), pitch(shared_pitch(n)) {
    a = shared.take<T>(n * pitch);
    inverse = shared.take<T>(n);
    diagonal = shared.take<T>(n);
  }
};
template <class T>
int block_bytes(int64_t n) {
  return static_cast<int>((n * shared_pitch(static_cast<int>(n)) + 2 * n + 12) * static_cast<int64_t>(sizeof(T)));
}

// The largest order, of at most 256, whose `bytes(n)` of shared memory one block of the current device has; never below `least`.
// Remembered for each rung (the type of `bytes`): the search costs a few microseconds.
template <class Bytes>
int64_t largest_order(int64_t least, Bytes bytes) {
  static thread_local int64_t n = 0;
  static thread_local int known = -1;
  const int room = simt::shared_limit() - 64;
  if (room == known) return n;
  known = room, n = 256;
  while (n > least && bytes(n) > room) --n;
  return n;
}

template <class T>
SIMT_DEVICE void load_lower(View<const T> a, int n, T* shared, int pitch) {
  for (int i = simt::warp(); i < n; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < i + 32 - i % 32; j += 32)
      simt::put_if(j <= i, shared + i * pitch + j, simt::load_if(j <= i, a.p + i * a.rs + j * a.cs, T(0)));
}

template <class T>
SIMT_DEVICE void copy_columns(View<const T> y, int n, const Columns<T>& x, T add) {
  for (int e = simt::thread(); e < n * x.count; e += kBlockThreads) {
    const int i = e / x.count, c = e % x.count;
    x(i, c) = y(i, c) + add;
  }
}

// The trace of what stands in shared memory, to all threads; its diagonal is kept for the retries.
template <class T>
SIMT_DEVICE double keep_diagonal(const BlockRoom<T>& room) {
  SIMT_SHARED(double, trace_of, 1);
  if (simt::warp() == 0) {
    double sum = 0;
    for (int i = simt::lane(); i < room.n; i += 32) {
      const T d = simt::get(room.a + i * room.pitch + i);
      simt::put(room.diagonal + i, d);
      sum += static_cast<double>(d);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += simt::shuffle_xor(sum, mask);
    if (simt::lane() == 0) *trace_of = sum;
  }
  simt::barrier();
  return *trace_of;
}

// Factors A = what form(attempt) puts into shared memory (its lower triangle; from the second attempt on its diagonal may be
// anything), with ridge and retries. Returns the status and reports it.
template <class T, class Form>
SIMT_DEVICE int factor_with_retries(const Factor<T>& f, int64_t b, const BlockRoom<T>& room, const Form& form) {
  SIMT_SHARED(int, failed, 1);
  const T* scalars = f.scalars + b * kScalars;
  const bool valid = scalars[kValid] != T(0);
  const int attempts = f.on_failure == OnFailure::jitter ? kAttempts : 1;
  double trace = 0, lambda = 0, jitter = 0;
  int status = kBadParameter;
  for (int attempt = 0; valid && attempt < attempts && status != 0; ++attempt) {
    form(attempt);
    if (simt::thread() == 0) *failed = 0;
    simt::barrier();
    if (attempt == 0) {
      trace = keep_diagonal(room);
      lambda = static_cast<double>(scalars[kRidge]) * ridge_slope(f.ridge, trace, f.order);
    }
    jitter = jitter_of<T>(attempt, absolute(trace) / room.n);
    for (int i = simt::thread(); i < room.n; i += kBlockThreads)
      simt::put(room.a + i * room.pitch + i, static_cast<T>(static_cast<double>(simt::get(room.diagonal + i)) + lambda + jitter));
    simt::barrier();
    factor_shared(room.a, room.pitch, room.n, room.inverse, failed);
    status = *failed;
    simt::barrier();  // before thread 0 writes it again
  }
  if (simt::thread() == 0) report(f, b, status, trace, lambda, jitter);
  return status;
}

// L, or NaN, and with few columns x.
template <class T>
SIMT_DEVICE void write_factor(const Factor<T>& f, int64_t b, const BlockRoom<T>& room, int status) {
  const int n = room.n, pitch = room.pitch;
  const T bad = status ? simt::nan<T>() : T(0);
  T* out = f.factor + b * f.n * f.n;
  for (int i = simt::warp(); i < n; i += kBlockThreads / 32)
    for (int j = simt::lane(); j < n + 31 - (n + 31) % 32; j += 32)
      simt::store_if(j <= i || (j < n && f.zero_upper), out + i * n + j, j > i ? T(0) : status ? bad : room.a[i * pitch + j]);
  if (!f.x || f.c > kColumns) return;
  const Columns<T> x{f.x + b * f.n * f.c, f.c, 1, static_cast<int>(f.c)};
  copy_columns(f.y[b], n, x, bad);
  if (status) return;  // the same for the whole block
  simt::barrier();
  substitute<false>(room.a, pitch, n, room.inverse, x);
  substitute<true>(room.a, pitch, n, room.inverse, x);
}

}  // namespace ssdd::cuda

// Cholesky of a batch with ridge, jitter retry and status, and the solve with the factor: a ladder by size.
//
//   n <= 32                         one warp per problem                                    factor_small.cu
//   n <= block_limit<T>()           one block per problem, in shared memory                 factor_small.cu
//   n <= fused_limit<T>()           the same, and the Gram matrix formed there too          factor_fused.cu
//   larger                          all blocks on each problem, tiles of kPanel             factor_large.cu
//   and, if asked for, n <= 512     one cluster of blocks per problem, in shared memory     factor_cluster.cu
//
// There is no host synchronisation: the device decides about a retry.
#pragma once
#include "../cholesky.h"
#include "after_solve.cuh"

namespace ssdd::cuda {

template <class T>
struct Factor {
  int64_t batch, n, order;  // order: S of the mean trace
  // The lower triangle is read. It may be the factor itself; the upper triangle then holds A too and is not written.
  Batch<const T> source;
  T* factor;         // [batch, n, n]
  bool zero_upper;   // else the upper triangle is not written
  Batch<const T> y;  // with x: solved too
  T* x;              // [batch, n, c] or nullptr
  int64_t c;
  const T* scalars;  // kRidge, kValid
  RidgeKind ridge;
  OnFailure on_failure;
  int32_t* status;
  T *jitter, *aux;
  T* work;               // factor_room(batch, n, c) elements
  bool cluster = false;  // take factor_cluster.cu where it can run and n > block_limit
};

// The points whose Gram matrix factorise_points() factors.
template <class T>
struct Points {
  Source<T> x;  // [batch, n, d]
  int64_t d;
  KernelKind kernel;
};

int64_t factor_room(int64_t batch, int64_t n, int64_t c);
template <class T>
void factorise(const Factor<T>& f, simt::Stream stream);

// s.u <- A^-1 s.u from the factor, then after_solve. work: factor_room(batch, rows, columns) elements.
template <class T>
void solve_factored(const AfterSolve<T>& s, const T* factor, T* work, simt::Stream stream);

// --- the rungs ----------------------------------------------------------------------------------------------

constexpr int kPassLimit = 32;  // up to so many columns a one-block factorisation also solves
constexpr int kWarpLimit = 32, kPanel = 64;
template <class T>
int64_t block_limit();
template <class T>
int64_t fused_limit();
// Gram matrix, ridge, factor, retries and solve in one launch, for n <= fused_limit (the solve in a second launch if c
// > kPassLimit). The strict upper triangle of the factor then holds K.
template <class T>
void factorise_points(const Factor<T>& f, const Points<T>& points, simt::Stream stream);
template <class T>
void factorise_small(const Factor<T>& f, simt::Stream stream);
template <class T>
void solve_small(int64_t batch, int64_t n, const T* factor, int64_t c, const Batch<const T>& y, T* x,
                 const int32_t* status, simt::Stream stream, const AfterSolve<T>& after = {});
template <class T>
void factorise_large(const Factor<T>& f, simt::Stream stream);
template <class T>
void solve_large(int64_t batch, int64_t n, const T* factor, int64_t c, T* x, T* work, simt::Stream stream);

// Computes f.x from a finished factor by the tiles of solve_large.
template <class T>
void solve_tiled(const Factor<T>& f, simt::Stream stream);

constexpr int64_t kClusterBatch = 16;  // clusters of 8 blocks that an H100 runs at the same time
bool takes_cluster(const Factor<float>& f);
inline bool takes_cluster(const Factor<double>&) { return false; }
void factorise_cluster(const Factor<float>& f, simt::Stream stream);
inline void factorise_cluster(const Factor<double>&, simt::Stream) {}

// --- shared by the rungs --------------------------------------------------------------------------------------

constexpr int kAttempts = 6;  // the first and five with a growing multiple of the mean diagonal

SIMT_DEVICE double absolute(double x) { return x < 0 ? -x : x; }
template <class T>
SIMT_DEVICE double jitter_of(int attempt, double trace, int64_t n) {
  if (attempt == 0) return 0;
  double step = sizeof(T) == 4 ? 1e-6 : 1e-12;
#pragma unroll 1
  for (int i = 1; i < attempt; ++i) step *= sizeof(T) == 4 ? 10.0 : 100.0;
  return step * absolute(trace) * simt::reciprocal(static_cast<double>(n));
}

template <class T>
SIMT_DEVICE void report(const Factor<T>& f, int64_t b, int32_t status, double trace, double lambda, double jitter) {
  const bool bad = status == kBadParameter;
  f.status[b] = status;
  f.jitter[b] = bad ? T(0) : static_cast<T>(jitter);
  f.aux[3 * b] = bad ? simt::nan<T>() : static_cast<T>(trace);
  f.aux[3 * b + 1] = status ? simt::nan<T>() : static_cast<T>(lambda);
  f.aux[3 * b + 2] = bad ? simt::nan<T>() : static_cast<T>(jitter);
}

}  // namespace ssdd::cuda

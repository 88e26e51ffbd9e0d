// The hardware interface of the kernels, for nvcc: short inline functions and inline PTX. tests/simt/simt.cuh has the
// same names for a C++ compiler. The include path chooses, so that no kernel contains an #ifdef. Blocks are
// one-dimensional.
// Global memory (load, store) and shared memory (get, put) have separate accessors, because the host twin counts
// sectors of the one and bank conflicts of the other. Here both are plain accesses.
#pragma once
#include <nv/target>

#include <cmath>
#include <cstdint>

#include "launch.cuh"

#define SIMT_KERNEL(threads) __global__ __launch_bounds__(threads)
#define SIMT_KERNEL_MIN(threads, blocks) __global__ __launch_bounds__(threads, blocks)
#define SIMT_DEVICE __device__ __forceinline__
// T name[count] in static shared memory.
#define SIMT_SHARED(T, name, count) __shared__ alignas(16) T name[count]

namespace simt {

SIMT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
SIMT_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31); }
SIMT_DEVICE int warp() { return static_cast<int>(threadIdx.x >> 5); }
SIMT_DEVICE int threads() { return static_cast<int>(blockDim.x); }
SIMT_DEVICE Grid block() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
SIMT_DEVICE Grid grid() { return {gridDim.x, gridDim.y, gridDim.z}; }
// The index of this block in its cluster, and the number of blocks of a cluster. Only kernels of launch_clusters have
// clusters. The instructions for them exist from sm_90 on; below it these names and those that follow do nothing, and
// such a kernel is not launched.
SIMT_DEVICE int cluster_rank() {
  int rank = 0;
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));))
  return rank;
}
SIMT_DEVICE int cluster_size() {
  int size = 1;
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));))
  return size;
}

// The same number, of which the compiler does not know that it is: what follows from it is computed anew, and not kept in
// registers since its first use.
SIMT_DEVICE int unknown(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
SIMT_DEVICE int64_t unknown(int64_t v) {
  asm volatile("" : "+l"(v));
  return v;
}

// --- memory -----------------------------------------------------------------------------------------------

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
};

template <class T>
SIMT_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
SIMT_DEVICE void store(T* p, T v) {
  *p = v;
}
// Predicated accesses. The warp stays together, and the twin counts one request.
template <class T>
SIMT_DEVICE T load_if(bool part, const T* p, T otherwise) {
  return part ? *p : otherwise;
}
template <class T>
SIMT_DEVICE void store_if(bool part, T* p, T v) {
  if (part) *p = v;
}
template <class T>
SIMT_DEVICE T get(const T* p) {
  return *p;
}
template <class T>
SIMT_DEVICE void put(T* p, T v) {
  *p = v;
}
template <class T>
SIMT_DEVICE T get_if(bool part, const T* p, T otherwise) {
  return part ? *p : otherwise;
}
template <class T>
SIMT_DEVICE void put_if(bool part, T* p, T v) {
  if (part) *p = v;
}
template <int N, class T>
SIMT_DEVICE Vector<T, N> get_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <int N, class T>
SIMT_DEVICE void put_vector(T* p, Vector<T, N> v) {
  *reinterpret_cast<Vector<T, N>*>(p) = v;
}
template <int N, class T>
SIMT_DEVICE Vector<T, N> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <int N, class T>
SIMT_DEVICE void store_vector(T* p, Vector<T, N> v) {
  *reinterpret_cast<Vector<T, N>*>(p) = v;
}
template <int N, class T>
SIMT_DEVICE Vector<T, N> get_vector_if(bool part, const T* p) {
  return part ? get_vector<N>(p) : Vector<T, N>{};
}
template <int N, class T>
SIMT_DEVICE void put_vector_if(bool part, T* p, Vector<T, N> v) {
  if (part) put_vector<N>(p, v);
}
// Returns zeros if `part` is false.
template <int N, class T>
SIMT_DEVICE Vector<T, N> load_vector_if(bool part, const T* p) {
  return part ? load_vector<N>(p) : Vector<T, N>{};
}
template <int N, class T>
SIMT_DEVICE void store_vector_if(bool part, T* p, Vector<T, N> v) {
  if (part) store_vector<N>(p, v);
}

// Allocates arrays in dynamic shared memory, each aligned to 16 bytes.
class Shared {
 public:
  SIMT_DEVICE Shared() {
    extern __shared__ __align__(16) unsigned char simt_dynamic[];
    next = simt_dynamic;
  }
  template <class T>
  SIMT_DEVICE T* take(int count) {
    T* p = reinterpret_cast<T*>(next);
    next += (count * static_cast<int>(sizeof(T)) + 15) & ~15;
    return p;
  }

 private:
  unsigned char* next;
};

// Starts an asynchronous copy of 4, 8 or 16 bytes to shared memory. From `bytes` on the copy writes zeros and does not
// read the source. The copying thread sees it after copy_wait, other threads after a barrier behind that.
template <int Bytes>
SIMT_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes), "r"(bytes)
                 : "memory");
}
// Starts an asynchronous copy of 16 bytes, all of which exist.
SIMT_DEVICE void copy_async_whole(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
template <int Bytes>
SIMT_DEVICE void copy_async_if(bool part, void* shared, const void* global, int bytes) {
  if (part) copy_async<Bytes>(shared, global, bytes);
}
SIMT_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's latest groups are in flight.
template <int Pending>
SIMT_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- launch order -----------------------------------------------------------------------------------------

// The first statement of every kernel: permits the next kernel of the stream to be put on the chip, and waits until all
// kernels before this one have ended and what they wrote is visible. Without a dependent launch (Stream) it returns at
// once. Below sm_90 it is nothing, and there are no such launches. Why nothing else is needed:
// - The blocks of the next kernel start only after every block of this one has started or ended. So blocks that wait for
//   one another (wait_while, arrive) never wait for room that blocks of the next kernel hold.
// - The wait is for the end of the kernel before. Each of its threads has waited for the end of the one before that, and
//   so on: all earlier kernels of the stream have ended. That is why a kernel that needs no result of others, and a
//   thread that does nothing, wait too.
// - No global memory is touched before the wait. So it does not matter which buffers launches share, and a workspace
//   that torch's allocator hands on within the stream is free by then.
// - A kernel of others before ours gives no permission, or gives it early; our wait is for its end in both cases. A
//   kernel of others behind ours is an ordinary launch, which starts when all of our work has ended; if it is a dependent
//   one, it has to wait by itself as ours do.
// - Only an edge between two kernels of one stream, eager or captured in a graph, can be a dependent one (of a graph:
//   CUDA 12.3). Copies, fills, events, other streams and other devices order a kernel as always.
SIMT_DEVICE void wait_for_earlier_launches() {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" :: : "memory");))
}

// --- collectives ------------------------------------------------------------------------------------------

SIMT_DEVICE void barrier() { __syncthreads(); }
SIMT_DEVICE void warp_barrier() { __syncwarp(); }
template <class T>
SIMT_DEVICE T shuffle(T v, int from) {
  return __shfl_sync(0xffffffffu, v, from);
}
template <class T>
SIMT_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
// v, which must be the same in all lanes. The compiler does not know that of a number that follows from the index of the
// warp or from memory. It knows it of this one: what hangs on it needs no code for lanes that part, and may be computed
// once per warp.
template <class T>
SIMT_DEVICE T uniform(T v) {
  return shuffle(v, 0);
}
SIMT_DEVICE unsigned ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
SIMT_DEVICE int count_bits(unsigned bits) { return __popc(bits); }
// The 1-based position of the lowest bit that is set, or 0.
SIMT_DEVICE int first_set(unsigned bits) { return __ffs(static_cast<int>(bits)); }

// A barrier of all threads of a cluster, in two halves. What a thread wrote before its arrival is visible to every
// thread of the cluster behind the wait.
SIMT_DEVICE void cluster_arrive() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("barrier.cluster.arrive.release.aligned;" :: : "memory");))
}
SIMT_DEVICE void cluster_wait() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("barrier.cluster.wait.acquire.aligned;" :: : "memory");))
}
// Read the shared memory of block `rank` of the cluster at the place that p has in this block's. It is there until its
// block returns, which must wait for a cluster barrier behind the last read.
SIMT_DEVICE unsigned place_in(int rank, const void* p) {
  unsigned there = static_cast<unsigned>(__cvta_generic_to_shared(p));
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(there), "r"(rank));))
  return there;
}
SIMT_DEVICE int get_from(int rank, const int* p) {
  int v = 0;
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(place_in(rank, p)) : "memory");))
  return v;
}
SIMT_DEVICE double get_from(int rank, const double* p) {
  double v = 0;
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(v) : "r"(place_in(rank, p)) : "memory");))
  return v;
}
template <int N>
SIMT_DEVICE Vector<float, N> get_vector_from(int rank, const float* p) {
  static_assert(N == 4, "16 bytes");
  Vector<float, N> v{};
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.v[0]), "=f"(v.v[1]),
                             "=f"(v.v[2]), "=f"(v.v[3]) : "r"(place_in(rank, p)) : "memory");))
  return v;
}

// Atomic minimum of integers. The order of arrival does not change the result.
SIMT_DEVICE int atomic_min(int* p, int v) { return atomicMin(p, v); }

// Returns 0, 1, 2, ...: one index per call. What a block wrote before a barrier and a store_release is visible to a
// block after its thread has read that value with load_acquire, behind a barrier of its own.
SIMT_DEVICE int next_index(int* p) { return static_cast<int>(atomicInc(reinterpret_cast<unsigned*>(p), 0xffffffffu)); }
SIMT_DEVICE int load_acquire(const int* p) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
SIMT_DEVICE void store_release(int* p, int v) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Waits until *p differs from `value`, and returns it as load_acquire does. Polls do not order memory, since each
// acquire would empty the multiprocessor's L1 cache; one fence after them does.
SIMT_DEVICE int wait_while(const int* p, int value) {
  int seen;
  for (;;) {
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(p) : "memory");
    if (seen != value) break;
    __nanosleep(20);
  }
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  return seen;
}
// Returns the number of earlier arrivals. What each of those wrote before a barrier and its arrival is visible behind
// this arrival and a barrier.
SIMT_DEVICE int arrive(int* p) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
  return before;
}

// --- arithmetic -------------------------------------------------------------------------------------------

SIMT_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
SIMT_DEVICE uint32_t to_bits(float x) { return __float_as_uint(x); }
// Rounds to the nearest TF32, ties away from zero; the result has the bits of a float. It is two integer instructions:
// cvt.rna.tf32.f32 compiles to about six on sm_90, which has no such instruction. Numbers within 2^-12 of the largest
// float become infinite, and a NaN may become any number. Subtracting the result from x gives NaN in either case, and
// for an infinite x.
SIMT_DEVICE uint32_t to_tf32(float x) { return (to_bits(x) + 0x1000u) & 0xffffe000u; }
// Widens a 16-bit float, half (else bfloat16), exactly.
SIMT_DEVICE float widen(uint16_t bits, bool half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return half ? x : __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
// Rounds two floats to halves, in one register with `low` in its low half.
SIMT_DEVICE uint32_t to_halves(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

// d += A B for A [16, 8], B [8, 8]. With g = lane / 4, t = lane % 4: a = A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t
// + 4); b = B(t, g), B(t + 4, g); d = D(g, 2t), D(g, 2t + 1), D(g + 8, 2t), D(g + 8, 2t + 1). The unit ignores the low
// 13 bits of an operand.
SIMT_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += A B for A [16, 16], B [16, 8] of 16-bit floats, two per register, with the smaller k in the low half. With g and
// t as above: a = A(g, 2t..), A(g + 8, 2t..), A(g, 2t + 8..), A(g + 8, 2t + 8..); b = B(2t.., g), B(2t + 8.., g); d as
// above.
SIMT_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SIMT_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four matrices of 8 rows of 16 bytes each from shared memory. Lane 8 m + r passes the address of row r of matrix
// m. Register m of each lane is word t of row g of matrix m; transposed: the 16-bit elements at column g in rows 2t and
// 2t + 1.
SIMT_DEVICE void load_matrices(const void* row, uint32_t (&v)[4]) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(from)
               : "memory");
}
SIMT_DEVICE void load_matrices_transposed(const void* row, uint32_t (&v)[4]) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(from)
               : "memory");
}

SIMT_DEVICE float square_root(float x) { return sqrtf(x); }
SIMT_DEVICE double square_root(double x) { return sqrt(x); }
// 1 / sqrt(x), to about one unit in the last place: 0 gives infinity or NaN, less than 0 NaN.
SIMT_DEVICE float inverse_root(float x) {
  const float y = rsqrtf(x), root = x * y;
  return fmaf(fmaf(-root, y, 1.0f), 0.5f * y, y);
}
SIMT_DEVICE double inverse_root(double x) {
  double y;  // to 2^-20
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double error = ::fma(x * y, -y, 1.0);
  return ::fma(::fma(0.375, error, 0.5) * error, y, y);
}
// 1 / x, to about one unit in the last place, for x from 2^-100 to 2^100. 0 and what is not finite give infinity or NaN. A
// division is 1.5 to 2 KB of code, most of it for other numbers.
SIMT_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(fmaf(-x, y, 1.0f), y, y);
}
SIMT_DEVICE double reciprocal(double x) {
  double y;  // to 2^-20
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  y = ::fma(::fma(-x, y, 1.0), y, y);
  return ::fma(::fma(-x, y, 1.0), y, y);
}
SIMT_DEVICE float exponential(float x) { return expf(x); }
SIMT_DEVICE double exponential(double x) { return exp(x); }
SIMT_DEVICE float logarithm(float x) { return logf(x); }
SIMT_DEVICE double logarithm(double x) { return log(x); }
SIMT_DEVICE double arc_cosine(double x) { return acos(x); }
SIMT_DEVICE float absolute(float x) { return fabsf(x); }
SIMT_DEVICE double absolute(double x) { return fabs(x); }
// 1 with the sign of x, or 0 if x is 0. NaN counts as a number.
SIMT_DEVICE float sign(float x) { return copysignf(x != 0.0f ? 1.0f : 0.0f, x); }
SIMT_DEVICE double sign(double x) { return copysign(x != 0.0 ? 1.0 : 0.0, x); }
SIMT_DEVICE float fma(float x, float y, float z) { return fmaf(x, y, z); }
SIMT_DEVICE double fma(double x, double y, double z) { return ::fma(x, y, z); }
template <class T>
SIMT_DEVICE bool finite(T x) {
  return isfinite(x);
}
template <class T>
SIMT_DEVICE T nan() {
  return static_cast<T>(__int_as_float(0x7fc00000));
}

}  // namespace simt

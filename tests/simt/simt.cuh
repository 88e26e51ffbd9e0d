// The host twin of csrc/cuda/simt.cuh: the same names, for a C++ compiler. Each block runs as fibers on one thread.
// It is stricter than the chip. Shared memory starts as NaN. An async copy lands at its wait, and its target is NaN
// until then. Misaligned vectors and divergent or missing barriers stop the program and name the line. Only a
// warp_barrier (not a shuffle) orders memory within a warp. mma truncates its inputs and its sums. A thread that touches
// global memory before it has waited for earlier launches stops the program, and so does one that never waits.
#pragma once
#include <sched.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <typeinfo>
#include <utility>

#include "device.h"
#include "runtime.h"

#define SIMT_KERNEL(threads)
#define SIMT_KERNEL_MIN(threads, blocks)
#define SIMT_DEVICE inline
#define SIMT_SHARED(T, name, count)      \
  static const char simt_key_##name = 0; \
  T* const name =                        \
      static_cast<T*>(simt::runtime::shared_array(simt::Site::here(), &simt_key_##name, sizeof(T) * (count), nullptr))

namespace simt {

using Stream = ssdd::cuda::Stream;

inline int thread() { return runtime::place().thread; }
inline int lane() { return runtime::place().thread & 31; }
inline int warp() { return runtime::place().thread >> 5; }
inline int threads() { return runtime::place().threads; }
inline Grid block() { return runtime::place().block; }
inline Grid grid() { return runtime::place().grid; }
inline int cluster_rank() { return runtime::place().rank; }
inline int cluster_size() { return runtime::place().cluster; }

inline int unknown(int v) { return v; }
inline int64_t unknown(int64_t v) { return v; }

// --- memory -----------------------------------------------------------------------------------------------

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
};

template <class T>
inline T load(const T* p, Site site = Site::here()) {
  runtime::count(site, runtime::Space::global_load, p, sizeof(T));
  return *p;
}
template <class T>
inline void store(T* p, T v, Site site = Site::here()) {
  runtime::count(site, runtime::Space::global_store, p, sizeof(T));
  *p = v;
}
template <class T>
inline T load_if(bool part, const T* p, T otherwise, Site site = Site::here()) {
  runtime::count(site, runtime::Space::global_load, p, part ? sizeof(T) : 0);
  return part ? *p : otherwise;
}
template <class T>
inline void store_if(bool part, T* p, T v, Site site = Site::here()) {
  runtime::count(site, runtime::Space::global_store, p, part ? sizeof(T) : 0);
  if (part) *p = v;
}
template <class T>
inline T get(const T* p, Site site = Site::here()) {
  runtime::count(site, runtime::Space::shared, p, sizeof(T));
  return *p;
}
template <class T>
inline void put(T* p, T v, Site site = Site::here()) {
  runtime::count(site, runtime::Space::shared, p, sizeof(T));
  *p = v;
}
template <class T>
inline T get_if(bool part, const T* p, T otherwise, Site site = Site::here()) {
  runtime::count(site, runtime::Space::shared, p, part ? sizeof(T) : 0);
  return part ? *p : otherwise;
}
template <class T>
inline void put_if(bool part, T* p, T v, Site site = Site::here()) {
  runtime::count(site, runtime::Space::shared, p, part ? sizeof(T) : 0);
  if (part) *p = v;
}
template <int N, class T>
inline Vector<T, N> get_vector(const T* p, Site site = Site::here()) {
  runtime::check_aligned(site, p, sizeof(T) * N);
  runtime::count(site, runtime::Space::shared, p, sizeof(T) * N);
  Vector<T, N> v;
  for (int i = 0; i < N; ++i) v.v[i] = p[i];
  return v;
}
template <int N, class T>
inline void put_vector(T* p, Vector<T, N> v, Site site = Site::here()) {
  runtime::check_aligned(site, p, sizeof(T) * N);
  runtime::count(site, runtime::Space::shared, p, sizeof(T) * N);
  for (int i = 0; i < N; ++i) p[i] = v.v[i];
}
template <int N, class T>
inline Vector<T, N> get_vector_if(bool part, const T* p, Site site = Site::here()) {
  if (part) return get_vector<N>(p, site);
  runtime::count(site, runtime::Space::shared, p, 0);
  return {};
}
template <int N, class T>
inline void put_vector_if(bool part, T* p, Vector<T, N> v, Site site = Site::here()) {
  if (part) return put_vector<N>(p, v, site);
  runtime::count(site, runtime::Space::shared, p, 0);
}
template <int N, class T>
inline Vector<T, N> load_vector(const T* p, Site site = Site::here()) {
  runtime::check_aligned(site, p, sizeof(T) * N);
  runtime::count(site, runtime::Space::global_load, p, sizeof(T) * N);
  Vector<T, N> v;
  for (int i = 0; i < N; ++i) v.v[i] = p[i];
  return v;
}
template <int N, class T>
inline void store_vector(T* p, Vector<T, N> v, Site site = Site::here()) {
  runtime::check_aligned(site, p, sizeof(T) * N);
  runtime::count(site, runtime::Space::global_store, p, sizeof(T) * N);
  for (int i = 0; i < N; ++i) p[i] = v.v[i];
}

template <int N, class T>
inline Vector<T, N> load_vector_if(bool part, const T* p, Site site = Site::here()) {
  if (part) return load_vector<N>(p, site);
  runtime::count(site, runtime::Space::global_load, p, 0);
  return {};
}
template <int N, class T>
inline void store_vector_if(bool part, T* p, Vector<T, N> v, Site site = Site::here()) {
  if (part) return store_vector<N>(p, v, site);
  runtime::count(site, runtime::Space::global_store, p, 0);
}

class Shared {
 public:
  template <class T>
  T* take(int count, Site site = Site::here()) {
    return static_cast<T*>(runtime::shared_array(site, nullptr, sizeof(T) * static_cast<size_t>(count), &used));
  }

 private:
  int used = 0;
};

template <int Bytes>
inline void copy_async(void* shared, const void* global, int bytes, Site site = Site::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  runtime::check_aligned(site, shared, Bytes);
  runtime::count(site, runtime::Space::global_load, global, bytes);
  runtime::count(site, runtime::Space::shared, shared, Bytes);
  if (bytes > 0) {
    runtime::check_aligned(site, global, Bytes);
    // Access the source here, so that a sanitizer reports this line.
    for (int i = 0; i < bytes; ++i) static_cast<void>(static_cast<const volatile unsigned char*>(global)[i]);
  }
  // Plain stores, not memset: a sanitizer must see this line write there.
  typedef uint32_t __attribute__((may_alias)) Word;
  for (int i = 0; i < Bytes / 4; ++i) static_cast<Word*>(shared)[i] = ~uint32_t(0);
  runtime::copy_async({shared, global, Bytes, bytes});
}
inline void copy_async_whole(void* shared, const void* global, Site site = Site::here()) {
  copy_async<16>(shared, global, 16, site);
}
template <int Bytes>
inline void copy_async_if(bool part, void* shared, const void* global, int bytes, Site site = Site::here()) {
  if (part) return copy_async<Bytes>(shared, global, bytes, site);
  runtime::count(site, runtime::Space::global_load, global, 0);
  runtime::count(site, runtime::Space::shared, shared, 0);
}
inline void copy_commit() { runtime::copy_commit(); }
template <int Pending>
inline void copy_wait() {
  while (const runtime::Copy* copy = runtime::copy_landing(Pending)) {
    if (copy->bytes > 0) std::memcpy(copy->to, copy->from, static_cast<size_t>(copy->bytes));
    std::memset(static_cast<char*>(copy->to) + copy->bytes, 0, static_cast<size_t>(copy->width - copy->bytes));
  }
}

// --- launch order -----------------------------------------------------------------------------------------

inline void wait_for_earlier_launches() { runtime::wait_for_earlier_launches(); }

// --- collectives ------------------------------------------------------------------------------------------

inline void barrier(Site site = Site::here()) { runtime::barrier(site); }
inline void warp_barrier(Site site = Site::here()) { runtime::warp_barrier(site); }
inline void cluster_arrive(Site site = Site::here()) { runtime::cluster_arrive(site); }
inline void cluster_wait(Site site = Site::here()) { runtime::cluster_wait(site); }

// The other block must have arrived at a cluster barrier behind its writes, and must not return before another one.
template <class T>
inline T get_from(int rank, const T* p, Site site = Site::here()) {
  const T* const there = static_cast<const T*>(runtime::peer(site, p, sizeof(T), rank));
  runtime::count(site, runtime::Space::shared, there, sizeof(T));
  return *there;
}
template <int N, class T>
inline Vector<T, N> get_vector_from(int rank, const T* p, Site site = Site::here()) {
  runtime::check_aligned(site, p, sizeof(T) * N);
  const T* const there = static_cast<const T*>(runtime::peer(site, p, sizeof(T) * N, rank));
  runtime::count(site, runtime::Space::shared, there, sizeof(T) * N);
  Vector<T, N> v;
  for (int i = 0; i < N; ++i) v.v[i] = there[i];
  return v;
}

template <class T>
inline T shuffle(T v, int from, Site site = Site::here()) {
  struct {
    T value;
    int32_t from;
  } in{v, from & 31};
  T out;
  runtime::meet(site, runtime::shuffle_op(sizeof(T)), &in, sizeof(in), &out, sizeof(T));
  return out;
}
template <class T>
inline T shuffle_xor(T v, int mask, Site site = Site::here()) {
  return shuffle(v, lane() ^ mask, site);
}
template <class T>
inline T uniform(T v, Site site = Site::here()) {
  return shuffle(v, 0, site);
}
inline unsigned ballot(bool condition, Site site = Site::here()) {
  const uint32_t in = condition;
  uint32_t out;
  runtime::meet(site, runtime::ballot_op, &in, sizeof(in), &out, sizeof(out));
  return out;
}
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
inline int first_set(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

inline int atomic_min(int* p, int v, Site site = Site::here()) {
  runtime::check_order(site);
  int old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

inline int next_index(int* p, Site site = Site::here()) {
  runtime::check_order(site);
  return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED);
}
inline int load_acquire(const int* p, Site site = Site::here()) {
  runtime::check_order(site);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release(int* p, int v, Site site = Site::here()) {
  runtime::check_order(site);
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
// Waits for another block, which runs on another thread of the host, never on this one.
inline int wait_while(const int* p, int value, Site site = Site::here()) {
  for (;;) {
    const int seen = load_acquire(p, site);
    if (seen != value) return seen;
    sched_yield();
  }
}
inline int arrive(int* p, Site site = Site::here()) {
  runtime::check_order(site);
  return __atomic_fetch_add(p, 1, __ATOMIC_ACQ_REL);
}

// --- arithmetic -------------------------------------------------------------------------------------------

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float widen(uint16_t bits, bool half) {
  if (!half) return from_bits(static_cast<uint32_t>(bits) << 16);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u,
                 mantissa = bits & 1023u;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                   : from_bits((exponent + 112) << 23 | mantissa << 13);
  return sign ? -size : size;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}
// Rounds a float to a half, to nearest, ties to even.
inline uint32_t to_half(float x) {
  const uint32_t sign = to_bits(x) >> 16 & 0x8000u;
  const double size = std::fabs(static_cast<double>(x));
  if (!(size == size)) return sign | 0x7e00u;
  if (size >= 65520.0) return sign | 0x7c00u;
  int exponent = -13;
  if (size > 0) std::frexp(size, &exponent);
  const int last = (exponent < -13 ? -13 : exponent) - 11;  // of the half's last bit
  const double whole = std::nearbyint(std::ldexp(size, -last));
  // A whole of 2048 carries into the exponent, as it should.
  return sign | static_cast<uint32_t>(((last + 24) << 10) + static_cast<int>(whole));
}
inline uint32_t to_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }
inline uint32_t to_tf32(float x) { return (to_bits(x) + 0x1000u) & 0xffffe000u; }

namespace runtime {
inline void mma(Collective op, int k, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  count_flops(2 * 16 * 8 * k / 32);  // this lane's part
  struct {
    float d[4];
    uint32_t a[4], b[2];
  } in;
  std::memcpy(in.d, d, sizeof(d));
  std::memcpy(in.a, a, sizeof(a));
  std::memcpy(in.b, b, sizeof(b));
  meet(site, op, &in, sizeof(in), d, sizeof(d));
}
// Each lane reads the row at its address, so that a sanitizer reports this line.
inline void load_matrices(Collective op, const void* row, uint32_t (&v)[4], Site site) {
  check_aligned(site, row, 16);
  count(site, Space::shared, row, 16);
  typedef uint32_t __attribute__((may_alias)) Word;
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const Word*>(row)[i];
  meet(site, op, words, sizeof(words), v, sizeof(v));
}
}  // namespace runtime

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  runtime::mma(runtime::mma_tf32_op, 8, d, a, b, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  runtime::mma(runtime::mma_bf16_op, 16, d, a, b, site);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  runtime::mma(runtime::mma_f16_op, 16, d, a, b, site);
}
inline void load_matrices(const void* row, uint32_t (&v)[4], Site site = Site::here()) {
  runtime::load_matrices(runtime::load_matrices_op, row, v, site);
}
inline void load_matrices_transposed(const void* row, uint32_t (&v)[4], Site site = Site::here()) {
  runtime::load_matrices(runtime::load_matrices_transposed_op, row, v, site);
}

inline float square_root(float x) { return std::sqrt(x); }
inline double square_root(double x) { return std::sqrt(x); }
// The chip's approximation has an error of up to 2^-22.9 of the root before its Newton step; this one too.
inline float inverse_root(float x) {
  const float y = 1 / std::sqrt(x) * (1 + 1.0f / (1 << 23)), root = x * y;
  return std::fma(std::fma(-root, y, 1.0f), 0.5f * y, y);
}
inline double inverse_root(double x) {
  const double y = 1 / std::sqrt(x) * (1 + 1.0 / (1 << 20)), error = std::fma(x * y, -y, 1.0);
  return std::fma(std::fma(0.375, error, 0.5) * error, y, y);
}
inline float reciprocal(float x) {
  const float y = 1 / x * (1 + 1.0f / (1 << 23));
  return std::fma(std::fma(-x, y, 1.0f), y, y);
}
inline double reciprocal(double x) {
  double y = 1 / x * (1 + 1.0 / (1 << 20));
  for (int step = 0; step < 2; ++step) y = std::fma(std::fma(-x, y, 1.0), y, y);
  return y;
}
inline float exponential(float x) { return std::exp(x); }
inline double exponential(double x) { return std::exp(x); }
inline float logarithm(float x) { return std::log(x); }
inline double logarithm(double x) { return std::log(x); }
inline double arc_cosine(double x) { return std::acos(x); }
inline float absolute(float x) { return std::fabs(x); }
inline double absolute(double x) { return std::fabs(x); }
inline float sign(float x) { return std::copysign(x != 0 ? 1.0f : 0.0f, x); }
inline double sign(double x) { return std::copysign(x != 0 ? 1.0 : 0.0, x); }
inline float fma(float x, float y, float z) {
  runtime::count_flops(2);
  return std::fma(x, y, z);
}
inline double fma(double x, double y, double z) {
  runtime::count_flops(2);
  return std::fma(x, y, z);
}
template <class T>
inline bool finite(T x) {
  return std::isfinite(x);
}
template <class T>
inline T nan() {
  return std::numeric_limits<T>::quiet_NaN();
}

// --- launch -----------------------------------------------------------------------------------------------

inline void check_loads(void (*)()) {}
inline int current_device() { return 0; }
inline void set_device(int) {}
inline void restore_device(int) {}
int shared_limit();
bool has_clusters();
template <class... Parameters>
bool has_clusters(void (*)(Parameters...)) {
  return has_clusters();
}

template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), Grid grid, int cluster, int threads, int shared_bytes,
                     Stream stream, const Arguments&... arguments) {
  if (stream.dependent_launch) runtime::count_dependent_launch();
  using Values = std::tuple<std::decay_t<Parameters>...>;
  struct Call {
    void (*kernel)(Parameters...);
    Values values;
  } call{kernel, Values(static_cast<Parameters>(arguments)...)};
  const void* const address = reinterpret_cast<const void*>(kernel);
  if (runtime::recording != Recording::off) {
    const auto argument = [](const auto& value) {
      const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(&value);
      return Argument{typeid(value).name(), {bytes, bytes + sizeof(value)}};
    };
    runtime::record({address, grid, threads, shared_bytes, {argument(static_cast<Parameters>(arguments))...}});
    if (runtime::recording == Recording::instead_of_run) return;
  }
  runtime::run(
      address, grid, cluster, threads, shared_bytes,
      [](void* context) {
        const auto& c = *static_cast<const Call*>(context);
        std::apply([&](const auto&... values) { c.kernel(values...); }, c.values);
      },
      &call);
}
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, int threads, int shared_bytes, Stream stream,
            const Arguments&... arguments) {
  launch_clusters(kernel, grid, 1, threads, shared_bytes, stream, arguments...);
}

}  // namespace simt

// One kernel written twice: with the names of simt.cuh, and in plain CUDA. test_sass.py compiles both and compares
// their machine code. It uses every part of the layer: indices, static and dynamic shared memory, async copies,
// barriers, shuffles and votes, vectors, the matrix instruction, the atomic, clusters, the wait for earlier launches.
#include <simt.cuh>

#define GLOBAL extern "C" __global__ void __launch_bounds__(128)

extern "C" SIMT_KERNEL(128) void layer_kernel(const float* in, float* out, int* least, int count) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  float* const tile = shared.take<float>(2048);
  float* const sums = shared.take<float>(128);
  SIMT_SHARED(float, warps, 4);
  const int t = simt::thread(), lane = simt::lane(), first = static_cast<int>(simt::block().x) * 2048;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int e = (r * 128 + t) * 4, left = count - first - e;
    simt::copy_async<16>(tile + e, in + first + e, left <= 0 ? 0 : left >= 4 ? 16 : left * 4);
  }
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::barrier();
  float d[4] = {};
#pragma unroll
  for (int k = 0; k < 64; k += 8) {
    uint32_t a[4], b[2];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      a[e] = simt::to_tf32(simt::get(tile + (lane / 4 + e % 2 * 8) * 64 + k + lane % 4 + e / 2 * 4));
#pragma unroll
    for (int e = 0; e < 2; ++e) b[e] = simt::to_tf32(simt::get(tile + (16 + lane / 4) * 64 + k + lane % 4 + e * 4));
    simt::mma_tf32(d, a, b);
  }
  uint32_t rows[4], columns[4];
  simt::load_matrices(tile + lane * 4, rows);
  simt::load_matrices_transposed(tile + 128 + lane * 4, columns);
  const uint32_t half[2] = {columns[0], columns[1]}, other_half[2] = {columns[2], columns[3]};
  simt::mma_bf16(d, rows, half);
  simt::mma_f16(d, rows, other_half);
  float sum = d[0] + d[1] + d[2] + d[3];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += simt::shuffle_xor(sum, mask);
  if (lane == 0) simt::put(warps + simt::warp(), sum);
  simt::put(sums + t, simt::shuffle(d[0], lane / 2));
  simt::warp_barrier();
  if (simt::ballot(sum > 0.0f) == 0xffffffffu && lane == 0) simt::atomic_min(least, simt::warp());
  simt::barrier();
  const simt::Vector<float, 4> v = simt::get_vector<4>(sums + t / 4 * 4);
  simt::store_vector<4>(out + first + t * 4, v);
  simt::cluster_arrive();
  simt::cluster_wait();
  const simt::Vector<float, 4> other =
      simt::get_vector_from<4>(simt::cluster_size() - 1 - simt::cluster_rank(), sums + t / 4 * 4);
  if (t >= 4) return;
  simt::store(out + first + 1024 + t, simt::square_root(simt::get(warps + t)) + other.v[0]);
}

struct alignas(16) Four {
  float v[4];
};

GLOBAL plain_kernel(const float* in, float* out, int* least, int count) {
  asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
  extern __shared__ __align__(16) unsigned char dynamic[];
  float* const tile = reinterpret_cast<float*>(dynamic);
  float* const sums = reinterpret_cast<float*>(dynamic + 8192);
  __shared__ __align__(16) float warps[4];
  const int t = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  const int first = static_cast<int>(blockIdx.x) * 2048;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int e = (r * 128 + t) * 4, left = count - first - e;
    const float* from = in + first + e;
    const int bytes = left <= 0 ? 0 : left >= 4 ? 16 : left * 4;
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(tile + e));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  float d[4] = {};
#pragma unroll
  for (int k = 0; k < 64; k += 8) {
    uint32_t a[4], b[2];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x = tile[(lane / 4 + e % 2 * 8) * 64 + k + lane % 4 + e / 2 * 4];
      a[e] = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float x = tile[(16 + lane / 4) * 64 + k + lane % 4 + e * 4];
      b[e] = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    }
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  uint32_t rows[4], columns[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(rows[0]), "=r"(rows[1]), "=r"(rows[2]), "=r"(rows[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(tile + lane * 4)))
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(columns[0]), "=r"(columns[1]), "=r"(columns[2]), "=r"(columns[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(tile + 128 + lane * 4)))
               : "memory");
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[0]), "r"(columns[1]));
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[2]), "r"(columns[3]));
  float sum = d[0] + d[1] + d[2] + d[3];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane == 0) *(warps + static_cast<int>(threadIdx.x >> 5)) = sum;
  *(sums + t) = __shfl_sync(0xffffffffu, d[0], lane / 2);
  __syncwarp();
  if (__ballot_sync(0xffffffffu, sum > 0.0f) == 0xffffffffu && lane == 0)
    atomicMin(least, static_cast<int>(threadIdx.x >> 5));
  __syncthreads();
  const Four v = *reinterpret_cast<const Four*>(sums + t / 4 * 4);
  *reinterpret_cast<Four*>(out + first + t * 4) = v;
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  int size, rank;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  unsigned there = static_cast<unsigned>(__cvta_generic_to_shared(sums + t / 4 * 4));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(there), "r"(size - 1 - rank));
  Four other;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(other.v[0]), "=f"(other.v[1]), "=f"(other.v[2]), "=f"(other.v[3])
               : "r"(there)
               : "memory");
  if (t >= 4) return;
  float* const last = out + first + 1024 + t;
  *last = sqrtf(*(warps + t)) + other.v[0];
}

// The same without one barrier: the comparison must find a difference.
GLOBAL other_kernel(const float* in, float* out, int* least, int count) {
  __shared__ float values[128];
  values[threadIdx.x] = in[threadIdx.x];
  if (count > 0) __syncthreads();
  out[threadIdx.x] = values[threadIdx.x ^ 1] + static_cast<float>(*least);
}

// Gram matrices on the GPU: one product with the kernel function applied in registers. The symmetric case computes one
// triangle of tiles and writes each element to both places. The linear kernel uses the tensor cores for float
// (product_tensor.cu); squared distances have no cancellation (product_plain.cu, or distances.cu). Two launches; the
// first computes the scalars. One or three more for a kernel function (kernel_functions.cu, angles.cu), three for
// distances.cu.
//
// Mapping: one block per tile of 64 x 64. Traffic: (S + Q) D elements read once from memory (S Q D / 32 from L2), S Q
// written.
// FLOPs: 2 S Q D, or 3 S Q D for distances; half in the symmetric case. Floor on an H100: 2 S Q D / 104 TF/s for float
// through mma.sync, 3 S Q D / 67 TF/s for distances, or (S D + Q D + S Q) 4 bytes / 3.35 TB/s if that is more (D below
// about 100).
// Other path: product_plain.cu, on the ordinary units, for double, distances and D < 48.
#include "../gram.h"

#include "angles.cuh"
#include "distances.cuh"
#include "kernel_functions.cuh"
#include "product.cuh"
#include "scalars.cuh"

namespace ssdd::cuda {

int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int64_t d, bool products) {
  const int64_t own = batch * (kScalars + 2 * (s + q)) + kCounters + split_room(batch, s, q, d);
  return products ? (own + 15) / 16 * 16 + distance_room(batch, s, q, d) : own;
}

template <class T>
void gram(const GramArgs<T>& a, Stream stream) {
  if (a.batch == 0 || a.s == 0 || a.q == 0) return;
  T* const split = a.work + a.batch * kScalars;
  int* const counters = reinterpret_cast<int*>(split + split_room(a.batch, a.s, a.q, a.d));
  ScalarArgs<T> scalars{};
  scalars.batch = a.batch;
  scalars.hyper = a.hyper;
  scalars.kernel = a.kernel;
  scalars.parameters = parameter_count(a.kernel);
  scalars.out = a.work;
  scalars.counters = counters;
  scalars.counter_count = kCounters;
  set_scalars(scalars, stream);

  const bool symmetric = a.z.p == nullptr;
  Product<T> p{};
  p.batch = a.batch;
  p.m = a.s;
  p.n = a.q;
  p.k = a.d;
  p.a = Source<T>(a.x, a.x_element);
  p.b = (symmetric ? p.a : Source<T>(a.z, a.z_element)).t();
  p.c = a.k;
  p.c_bs = a.s * a.q;
  p.ld = a.q;
  p.triangle = symmetric ? Triangle::both : Triangle::full;
  p.split = split;
  p.split_elements = split_room(a.batch, a.s, a.q, a.d);
  p.counters = counters;
  T* const norms = reinterpret_cast<T*>(counters) + kCounters;
  if (a.halves) p.scales = reinterpret_cast<float*>(norms + a.batch * (a.s + a.q));
  apply_kernel(p, a.kernel, a.work);
  if (a.products && can_multiply(a.kernel, a.d))
    distance_product(p, a.work + (gram_workspace(a.batch, a.s, a.q, a.d) + 15) / 16 * 16, stream);
  else
    product(p, stream);
  if constexpr (sizeof(T) == 8) {
    if (of_norms(a.kernel)) {
      T *const x = norms, *const z = symmetric ? x : x + a.batch * a.s;
      squared_lengths(a.batch, a.s, a.d, p.a, x, a.s, stream);
      if (!symmetric) squared_lengths(a.batch, a.q, a.d, p.b.t(), z, a.q, stream);
      return map_angles({a.batch, a.s, a.q, a.d, a.kernel, a.order, a.work, a.k, p.c_bs, x, a.s, z, a.q, symmetric},
                        a.k, p.c_bs, stream);
    }
  }
  if (keeps_argument(a.kernel))
    map_arguments<T>({a.batch, a.s * a.q, a.kernel, a.order, a.work, a.k, p.c_bs, a.k, p.c_bs}, stream);
}

template void gram(const GramArgs<float>&, Stream);
template void gram(const GramArgs<double>&, Stream);

}  // namespace ssdd::cuda

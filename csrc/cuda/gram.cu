// Gram matrices on the GPU: one product with the kernel function applied in registers; the symmetric case makes one
// triangle of tiles and writes each element to both places. Linear on the tensor cores for float (product_tensor.cu),
// squared distances without cancellation (product_plain.cu). Two launches, the first of the scalars.
//
// Mapping: a block a tile of 64 x 64. Traffic: (S + Q) D elements read once from memory (S Q D / 32 asked of L2), S Q written.
// FLOPs: 2 S Q D, 3 S Q D for distances; the symmetric case half. Floor on an H100: 2 S Q D / 104 TF/s for float through
// mma.sync, 3 S Q D / 67 TF/s for distances, or (S D + Q D + S Q) 4 bytes / 3.35 TB/s where that is more (D below some 100).
// Other path: for double, distances and D < 48 the ordinary units; product_plain.cu.
#include "../gram.h"

#include "product.cuh"
#include "scalars.cuh"

namespace ssdd::cuda {

int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int64_t d) {
  return batch * kScalars + kTickets + split_room(batch, s, q, d);
}

template <class T>
void gram(const GramArgs<T>& a, void* stream) {
  if (a.batch == 0 || a.s == 0 || a.q == 0) return;
  T* const split = a.work + a.batch * kScalars;
  int* const tickets = reinterpret_cast<int*>(split + split_room(a.batch, a.s, a.q, a.d));
  set_scalars<T>({a.batch, a.hyper, a.kernel, parameter_count(a.kernel), {}, 0, a.work, tickets, kTickets}, stream);
  const bool symmetric = a.z.p == nullptr;
  Product<T> p{};
  p.batch = a.batch, p.m = a.s, p.n = a.q, p.k = a.d;
  p.a = Source<T>(a.x, a.x_element);
  p.b = (symmetric ? p.a : Source<T>(a.z, a.z_element)).t();
  p.c = a.k, p.c_bs = a.s * a.q, p.ld = a.q;
  p.triangle = symmetric ? Triangle::both : Triangle::full;
  p.split = split, p.split_elements = split_room(a.batch, a.s, a.q, a.d), p.tickets = tickets;
  apply_kernel(p, a.kernel, a.work);
  product(p, stream);
}

template void gram(const GramArgs<float>&, void*);
template void gram(const GramArgs<double>&, void*);

}  // namespace ssdd::cuda

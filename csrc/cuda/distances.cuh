// Squared distances from products of the points about an origin; distances.cu has the method and its error.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

// True if a product of so many terms can give them: any number of features, if there is one.
inline bool can_multiply(KernelKind kind, int64_t features) {
  return of_distance(kind) && !of_one_norm(kind) && features > 0;
}

// Elements of memory that distance_product needs for results [m, n] of points with k features.
int64_t distance_room(int64_t batch, int64_t m, int64_t n, int64_t k);

// Computes p, a product with Inner::distance. The points are the rows of a and the columns of b; those of b are those of
// a if p.triangle says so.
template <class T>
void distance_product(const Product<T>& p, T* memory, simt::Stream stream);

}  // namespace ssdd::cuda

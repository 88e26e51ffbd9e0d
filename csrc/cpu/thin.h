// Products with few rows or few columns, without packing. Part of product(); nothing else calls it.
#pragma once
#include "product.h"

namespace ssdd::cpu {

// True if product() should call thin_product() for p; its shape and strides alone decide.
template <class T>
bool is_thin(const Product<T>& p);

// Elements of memory per rank.
int64_t thin_elements();

// Like product(), without the barrier at the end. `own` is this rank's memory.
template <class T>
void thin_product(const Team& team, T* own, const Product<T>& p);

}  // namespace ssdd::cpu

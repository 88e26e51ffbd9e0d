// Products with few rows or few columns, without packing. Part of product(); nothing else calls it.
#pragma once
#include "product.h"

namespace ssdd::cpu {

// Whether thin_product() is the road for p: decided by its shape and strides alone.
template <class T>
bool is_thin(const Product<T>& p);

// Elements of own memory that a rank needs for it.
int64_t thin_elements();

// As product(), without the barrier at the end; `own` is this rank's memory.
template <class T>
void thin_product(const Team& team, T* own, const Product<T>& p);

}  // namespace ssdd::cpu

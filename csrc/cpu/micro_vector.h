// Vectors of one width, by the compiler's extension. In an unnamed namespace, like everything in micro_tile.h.
#pragma once
#include "micro.h"

namespace ssdd::cpu {
namespace {

template <class T, int Bytes>
struct VectorOf;
template <int Bytes>
struct VectorOf<float, Bytes> {
  typedef float type __attribute__((vector_size(Bytes)));
  typedef float loose __attribute__((vector_size(Bytes), aligned(4), may_alias));
};
template <int Bytes>
struct VectorOf<double, Bytes> {
  typedef double type __attribute__((vector_size(Bytes)));
  typedef double loose __attribute__((vector_size(Bytes), aligned(8), may_alias));
};

}  // namespace
}  // namespace ssdd::cpu

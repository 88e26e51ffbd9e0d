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
  typedef int32_t bits __attribute__((vector_size(Bytes)));
};
template <int Bytes>
struct VectorOf<double, Bytes> {
  typedef double type __attribute__((vector_size(Bytes)));
  typedef double loose __attribute__((vector_size(Bytes), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(Bytes)));
};

// Returns x from a register. GCC may load an operand of several multiply-adds again for each of them, and the loads then
// take longer than the arithmetic.
template <class V>
inline V in_register(V x) {
#ifdef __x86_64__
  __asm__("" : "+v"(x));
#endif
  return x;
}

// All bits of the lanes from `first` on.
template <class T, int Bytes>
inline typename VectorOf<T, Bytes>::bits mask_from(int first) {
  typename VectorOf<T, Bytes>::bits lane;
  for (int l = 0; l < int(Bytes / sizeof(T)); ++l) lane[l] = l;
  return lane >= first;
}

// x, with zeros in the lanes whose mask is zero.
template <class T, int Bytes>
inline typename VectorOf<T, Bytes>::type masked(typename VectorOf<T, Bytes>::type x,
                                                typename VectorOf<T, Bytes>::bits mask) {
  using Bits = typename VectorOf<T, Bytes>::bits;
  return reinterpret_cast<typename VectorOf<T, Bytes>::type>(reinterpret_cast<Bits>(x) & mask);
}

// The sign bit of every lane.
template <class T, int Bytes>
inline typename VectorOf<T, Bytes>::bits sign_bit() {
  return reinterpret_cast<typename VectorOf<T, Bytes>::bits>(-typename VectorOf<T, Bytes>::type{});
}

// |x|
template <class T, int Bytes>
inline typename VectorOf<T, Bytes>::type absolute_of(typename VectorOf<T, Bytes>::type x) {
  return masked<T, Bytes>(x, ~sign_bit<T, Bytes>());
}

// s sign(x), and 0 at x = 0; NaN if s is NaN and x is not 0.
template <class T, int Bytes>
inline typename VectorOf<T, Bytes>::type times_sign(T s, typename VectorOf<T, Bytes>::type x) {
  using V = typename VectorOf<T, Bytes>::type;
  using Bits = typename VectorOf<T, Bytes>::bits;
  const V all = V{} + s;
  const Bits bits = reinterpret_cast<Bits>(all) ^ (reinterpret_cast<Bits>(x) & sign_bit<T, Bytes>());
  return masked<T, Bytes>(reinterpret_cast<V>(bits), x != T(0));
}

}  // namespace
}  // namespace ssdd::cpu

// Gram matrices K = k(x, z).
//
//   linear: k = scale * x.z + bias                    parameters (scale, bias)
//   rbf:    k = exp(-|x - z|^2 / (2 lengthscale^2))   parameters (lengthscale)
//
// x [B, S, D] and z [B, Q, D] have any strides and may alias; k [B, S, Q] is dense and row-major and aliases neither.
// z.p == nullptr: k(x, x), one triangle computed and mirrored, the rbf diagonal exactly 1.
// Workspace: gram_workspace(...) elements, uninitialised. Work: 2 S Q D flops (half of it if z is x); traffic at
// least (S + Q) D + S Q elements. Same inputs and threads, same bits.
#pragma once
#include "tensor.h"

namespace ssdd {

template <class T>
struct GramArgs {
  int64_t batch, s, q, d;
  Batch<const T> x, z;
  T* k;
  Hyper<T> hyper;
  KernelKind kernel;
  T* work;
  int threads;
  Element x_element = Element::own, z_element = Element::own;
};

namespace cpu {
int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int threads);
template <class T> void gram(const GramArgs<T>& args);
}  // namespace cpu
namespace cuda {
int64_t gram_workspace(int64_t batch, int64_t s, int64_t q, int64_t d);
template <class T> void gram(const GramArgs<T>& args, void* stream);
}  // namespace cuda

}  // namespace ssdd

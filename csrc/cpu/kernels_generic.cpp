// The kernel functions for 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#include "kernel_functions.h"

namespace ssdd::cpu {
template <> const KernelRows<float>* kernels_generic<float>() { return make_kernels<float, 16>(); }
template <> const KernelRows<double>* kernels_generic<double>() { return make_kernels<double, 16>(); }
}  // namespace ssdd::cpu

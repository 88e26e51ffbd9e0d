// The kernel functions for AVX2 (compiled with its flags; called only if the CPU has it).
#include "kernel_functions.h"

namespace ssdd::cpu {
template <> const KernelRows<float>* kernels_avx2<float>() { return make_kernels<float, 32>(); }
template <> const KernelRows<double>* kernels_avx2<double>() { return make_kernels<double, 32>(); }
}  // namespace ssdd::cpu

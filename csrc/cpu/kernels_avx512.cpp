// The kernel functions for AVX-512 (compiled with its flags; called only if the CPU has it).
#include "kernel_functions.h"

namespace ssdd::cpu {
template <> const KernelRows<float>* kernels_avx512<float>() { return make_kernels<float, 64>(); }
template <> const KernelRows<double>* kernels_avx512<double>() { return make_kernels<double, 64>(); }
}  // namespace ssdd::cpu

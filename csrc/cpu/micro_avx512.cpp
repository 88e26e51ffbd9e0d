// The product tiles for AVX512 (compiled with its flags; called only if the CPU has it).
#include "micro_tile.h"

namespace ssdd::cpu {
template <> const Micro<float>* micro_avx512<float>() { return make<float, 64, 8>("avx512"); }
template <> const Micro<double>* micro_avx512<double>() { return make<double, 64, 8>("avx512"); }
}  // namespace ssdd::cpu

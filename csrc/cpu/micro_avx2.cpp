// The product tiles for AVX2 (compiled with its flags; called only if the CPU has it).
#include "micro_tile.h"

namespace ssdd::cpu {
template <> const Micro<float>* micro_avx2<float>() { return make<float, 32, 4>("avx2"); }
template <> const Micro<double>* micro_avx2<double>() { return make<double, 32, 4>("avx2"); }
}  // namespace ssdd::cpu

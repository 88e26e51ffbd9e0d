// Lanes of 512-bit vectors (avx512; compiled with its flags and called only if the CPU has it).
#include "lanes_tile.h"

namespace ssdd::cpu {
template <> const Lanes<float>* lanes_avx512<float>() { return make_lanes<float, 64>(); }
template <> const Lanes<double>* lanes_avx512<double>() { return make_lanes<double, 64>(); }
}  // namespace ssdd::cpu

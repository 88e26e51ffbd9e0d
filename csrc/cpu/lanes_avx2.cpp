// Lanes of 256-bit vectors (avx2; compiled with its flags and called only if the CPU has it).
#include "lanes_tile.h"

namespace ssdd::cpu {
template <> const Lanes<float>* lanes_avx2<float>() { return make_lanes<float, 32>(); }
template <> const Lanes<double>* lanes_avx2<double>() { return make_lanes<double, 32>(); }
}  // namespace ssdd::cpu

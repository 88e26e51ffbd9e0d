// Lanes of 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#include "lanes_tile.h"

namespace ssdd::cpu {
template <> const Lanes<float>* lanes_generic<float>() { return make_lanes<float, 16>(); }
template <> const Lanes<double>* lanes_generic<double>() { return make_lanes<double, 16>(); }
}  // namespace ssdd::cpu

// The product tiles for 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#include "micro_tile.h"

namespace ssdd::cpu {
template <> const Micro<float>* micro_generic<float>() { return make<float, 16, 4>("generic"); }
template <> const Micro<double>* micro_generic<double>() { return make<double, 16, 4>("generic"); }
}  // namespace ssdd::cpu

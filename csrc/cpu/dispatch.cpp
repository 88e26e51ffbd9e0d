// Chooses the product tiles: the best instruction set that this build holds, that this CPU has, and that has been
// tested on a real machine (README lists them).
#include <stdexcept>

#include "kernel_rows.h"
#include "lanes.h"
#include "micro.h"

namespace ssdd::cpu {
namespace {

Isa best() {
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (isa_available(isa)) return isa;
  return Isa::generic;
}

Isa& in_force() {
  static Isa isa = best();
  return isa;
}

}  // namespace

bool isa_available(Isa isa) {
  switch (isa) {
    case Isa::automatic:
    case Isa::generic:
      return true;
#ifdef SSDD_HAVE_AVX2
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef SSDD_HAVE_AVX512
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#endif
    default:
      return false;
  }
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return "generic";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "automatic";
  }
}

Isa isa_in_force() { return in_force(); }

void force_isa(Isa isa) {
  if (!isa_available(isa)) throw std::invalid_argument("this build or this CPU does not have that instruction set");
  in_force() = isa == Isa::automatic ? best() : isa;
}

template <class T>
const Micro<T>& micro() {
  switch (in_force()) {
#ifdef SSDD_HAVE_AVX2
    case Isa::avx2:
      return *micro_avx2<T>();
#endif
#ifdef SSDD_HAVE_AVX512
    case Isa::avx512:
      return *micro_avx512<T>();
#endif
    default:
      return *micro_generic<T>();
  }
}
template const Micro<float>& micro<float>();
template const Micro<double>& micro<double>();

template <class T>
const Lanes<T>& lanes() {
  switch (in_force()) {
#ifdef SSDD_HAVE_AVX2
    case Isa::avx2:
      return *lanes_avx2<T>();
#endif
#ifdef SSDD_HAVE_AVX512
    case Isa::avx512:
      return *lanes_avx512<T>();
#endif
    default:
      return *lanes_generic<T>();
  }
}
template const Lanes<float>& lanes<float>();
template const Lanes<double>& lanes<double>();

template <class T>
const KernelRows<T>& kernel_rows() {
  switch (in_force()) {
#ifdef SSDD_HAVE_AVX2
    case Isa::avx2:
      return *kernels_avx2<T>();
#endif
#ifdef SSDD_HAVE_AVX512
    case Isa::avx512:
      return *kernels_avx512<T>();
#endif
    default:
      return *kernels_generic<T>();
  }
}
template const KernelRows<float>& kernel_rows<float>();
template const KernelRows<double>& kernel_rows<double>();

}  // namespace ssdd::cpu

// Checks of a kernel function and of its hyper-parameters.
#pragma once
#include "../cpu/kernel_rows.h"
#include "capsules.h"

namespace ssdd {

inline KernelKind kernel_kind(int code, int order) {
  require(code >= 0 && code < kKernelKinds, "kernel: unknown code");
  const auto kind = static_cast<KernelKind>(code);
  const bool network = kind == KernelKind::nngp || kind == KernelKind::ntk;
  require(order >= (kind == KernelKind::polynomial ? 1 : 0), "order: too small");
  require(!network || order <= cpu::kMostLayers, "order: more layers than the core has");
  return kind;
}

inline void require_values(KernelKind kind, int count, int ridge, size_t size) {
  require(count == parameter_count(kind) + ridge, "hyper: wrong number of values");
  require(!of_norms(kind) || size == 8, "kernel: functions of an angle run in double");
}

}  // namespace ssdd

// Host side only: the current device, and what was built.
#include "../device.h"

#include <simt.cuh>

namespace ssdd::cuda {
namespace {

// Represents all kernels: each was built for the same architectures.
SIMT_KERNEL(32) void probe_kernel() { simt::wait_for_earlier_launches(); }

}  // namespace

bool built() { return true; }
std::string architectures() { return SSDD_CUDA_ARCHITECTURES; }

std::string problem(int device) {
  try {
    const DeviceGuard guard(device);
    simt::check_loads(&probe_kernel);
    return "";
  } catch (const std::exception& failure) {
    return failure.what();
  }
}

DeviceGuard::DeviceGuard(int device) {
  const int current = simt::current_device();
  if (current == device) return;
  simt::set_device(device);
  before = current;
}

DeviceGuard::~DeviceGuard() {
  if (before >= 0) simt::restore_device(before);
}

}  // namespace ssdd::cuda

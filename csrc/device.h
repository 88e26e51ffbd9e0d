// The GPU that a call runs on, and the GPU code in this build.
#pragma once
#include <string>

namespace ssdd::cuda {

bool built();
std::string architectures();      // architectures with code in this build, "" without CUDA
std::string problem(int device);  // why kernels cannot run on it, "" if they can

// Makes `device` the current one, and restores the previous one when it is destroyed. Throws std::runtime_error that
// says what is missing.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before = -1;  // -1: nothing to restore
};

}  // namespace ssdd::cuda

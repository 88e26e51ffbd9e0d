// The GPU that a call runs on, and what this build has for GPUs.
#pragma once
#include <string>

namespace ssdd::cuda {

bool built();
std::string architectures();      // that this build holds code for, "" without CUDA
std::string problem(int device);  // why kernels cannot run there, "" where they can

// Makes `device` the current one, and the one before it again at the end. Throws std::runtime_error, saying what is missing.
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

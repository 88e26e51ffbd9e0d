// The GPU and the stream that a call runs on, and the GPU code in this build.
#pragma once
#include <string>

namespace ssdd::cuda {

bool built();
std::string architectures();      // architectures with code in this build, "" without CUDA
std::string problem(int device);  // why kernels cannot run on it, "" if they can

// Where the kernels of a call run, and how they are launched.
struct Stream {
  // Implicit, so that a call without a choice of launches hands over its cudaStream_t (nullptr: the default stream).
  Stream(void* handle = nullptr, bool dependent_launch = false) : handle(handle), dependent_launch(dependent_launch) {}

  void* handle;
  // Programmatic dependent launch, on GPUs that have it: the blocks of a kernel may be put on the chip while the kernel
  // before it still runs. They wait there for its end, so results are the same.
  bool dependent_launch;
};

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

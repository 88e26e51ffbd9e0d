// The host's side of simt.cuh: errors, what a device can do, and launches.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../device.h"

namespace simt {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};
using Stream = ssdd::cuda::Stream;

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // clears the error, so that the next launch does not report it
  std::string text = std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice)
    text += "; these kernels need an NVIDIA GPU and a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
            std::to_string(CUDART_VERSION % 1000 / 10) + " or newer; use backend='torch' or CPU tensors";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
    text +=
        "; this build holds no code for this GPU: rebuild with CMAKE_CUDA_ARCHITECTURES naming it, or use "
        "backend='torch'";
  throw std::runtime_error(text);
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "finding the current device");
  return device;
}
inline void set_device(int device) { check(cudaSetDevice(device), "choosing the inputs' device"); }
// For destructors: does not throw, and leaves no error for the next launch.
inline void restore_device(int device) {
  if (cudaSetDevice(device) != cudaSuccess) static_cast<void>(cudaGetLastError());
}

// The largest dynamic shared memory per block on the current device.
inline int shared_limit() {
  const int device = current_device();
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for its shared memory");
  return bytes;
}

// Throws if this build holds no code for the current device.
inline void check_loads(void (*kernel)()) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "loading the kernels");
}

// What the current device and this build's code for it can do. That code is of an older architecture if the build has
// none for the device: it knows neither clusters nor waits for earlier launches. The driver is asked once per device,
// about the kernel that is launched first, since all are built for the same architectures. Threads that ask at the same
// time get the same answer.
struct Abilities {
  bool clusters, dependent_launch;
};
inline Abilities abilities(const void* kernel) {
  constexpr int kDevices = 64, kAsked = 1, kClusters = 2, kDependent = 4;
  static std::atomic<int> known[kDevices];  // 0: not asked
  const int device = current_device();
  int found = device < kDevices ? known[device].load() : 0;
  if (found == 0) {
    int clusters = 0;
    check(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device), "asking for clusters");
    cudaFuncAttributes code;
    check(cudaFuncGetAttributes(&code, kernel), "loading a kernel");
    // The code has the instructions of its PTX, and runs on devices of its own architecture.
    const bool sm_90 = code.ptxVersion >= 90 && code.binaryVersion >= 90;
    found = kAsked | (sm_90 && clusters ? kClusters : 0) | (sm_90 ? kDependent : 0);
    if (device < kDevices) known[device] = found;
  }
  return {(found & kClusters) != 0, (found & kDependent) != 0};
}
template <class... Parameters>
bool has_clusters(void (*kernel)(Parameters...)) {
  return abilities(reinterpret_cast<const void*>(kernel)).clusters;
}

// As launch, with clusters of so many blocks along x, at most 8.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), Grid grid, int cluster, int threads, int shared_bytes,
                     Stream stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "raising a kernel's shared memory");
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  if (cluster > 1) {
    cudaLaunchAttribute& blocks = attributes[config.numAttrs++];
    blocks.id = cudaLaunchAttributeClusterDimension;
    blocks.val.clusterDim.x = static_cast<unsigned>(cluster);
    blocks.val.clusterDim.y = blocks.val.clusterDim.z = 1;
  }
  if (stream.dependent_launch && abilities(reinterpret_cast<const void*>(kernel)).dependent_launch) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, int threads, int shared_bytes, Stream stream,
            const Arguments&... arguments) {
  launch_clusters(kernel, grid, 1, threads, shared_bytes, stream, arguments...);
}

}  // namespace simt

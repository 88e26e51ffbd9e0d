// What every binding needs: DLPack capsules to tensors, checks of sizes and codes, the GIL, and the choice of cpu:: or
// cuda::. Only csrc/bindings.cpp and the files of csrc/bindings/ know Python.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../device.h"
#include "../krr.h"
#include "../reader.h"

namespace ssdd {

namespace py = pybind11;

using Capsule = py::object;

inline const dlpack::Tensor* tensor_of(const Capsule& capsule) {
  if (capsule.is_none()) return nullptr;
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  return &managed->tensor;
}

inline bool is_double(const Capsule& capsule) {
  const dlpack::Tensor* tensor = tensor_of(capsule);
  require(tensor != nullptr, "expected a tensor, got None");
  return tensor->dtype.bits == 64;
}

// Products of sizes up to here fit 64 bits, also times the bytes of an element and the arrays of a workspace.
constexpr double kMostElements = double(int64_t(1) << 52);
constexpr int64_t kMostChunk = int64_t(1) << 40;
constexpr int kMostThreads = 1 << 14;

inline void require_fits(int64_t batch, int64_t rows, int64_t columns) {
  require(batch >= 0 && rows >= 0 && columns >= 0, "shape: sizes must not be negative");
  require((double(batch) + 1) * (double(rows) + 1) * (double(columns) + 1) <= kMostElements,
          "shape: more elements than can be addressed");
}

inline void require_threads(int threads) {
  require(threads >= 1 && threads <= kMostThreads, "threads: expected 1 to 16384");
}

inline RidgeKind ridge_of(int code) {
  require(code >= 0 && code <= int(RidgeKind::mean_trace), "ridge: expected 0 to 2");
  return static_cast<RidgeKind>(code);
}

inline OnFailure on_failure_of(int code) {
  require(code == int(OnFailure::nan) || code == int(OnFailure::jitter), "on_failure: expected 0 or 1");
  return static_cast<OnFailure>(code);
}

inline Plan plan_of(int code) {
  require(code >= 0 && code <= int(Plan::primal), "plan: expected 0 to 3");
  return static_cast<Plan>(code);
}

// The core takes a null pointer for "absent", and these are always there.
template <class... Pointers>
inline void require_all(const char* names, const Pointers*... pointers) {
  require((... && (pointers != nullptr)), std::string(names) + ": expected a tensor each, got None");
}

// As ssdd_ext/ops/native.py hands it over: the cudaStream_t as a number, and if launches are dependent ones.
using StreamCode = std::pair<uintptr_t, bool>;

inline cuda::Stream stream_of(const StreamCode& code) { return {reinterpret_cast<void*>(code.first), code.second}; }

// Calls one half of the core without the GIL; on a GPU with the tensors' device as the current one.
template <class T, class Cuda, class Cpu>
inline void run_on(const Reader<T>& r, Cuda on_cuda, Cpu on_cpu) {
  py::gil_scoped_release release;
  if (!r.cuda()) return on_cpu();
  const cuda::DeviceGuard guard(r.device_index());
  on_cuda();
}

inline bool is_cuda(const Capsule& first) { return tensor_of(first)->device.type == dlpack::kCUDA; }

template <class F32, class F64>
inline void by_type(const Capsule& first, F32 f32, F64 f64) {
  is_double(first) ? f64() : f32();
}

// Each adds its functions to the module.
void bind_gram(py::module_& m);
void bind_cholesky(py::module_& m);
void bind_krr(py::module_& m);
void bind_krr_eager(py::module_& m);
void bind_krr_from_gram(py::module_& m);
void bind_tridiagonal(py::module_& m);

}  // namespace ssdd

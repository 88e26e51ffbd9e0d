// DLPack tensors to views, with the checks that memory safety needs.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "dlpack.h"
#include "tensor.h"

namespace ssdd {

// Reads every tensor of one call: all on one device, of one floating type, of the shapes in the contract.
template <class T>
class Reader {
 public:
  Batch<const T> batch(const char* name, const dlpack::Tensor* tensor, int64_t b, int64_t rows, int64_t columns) {
    return view(name, checked(name, tensor, sizeof(T) * 8, dlpack::kFloat), b, rows, columns);
  }

  // Like batch(), and on a GPU also 16-bit floats when the other inputs are float; the view's pointer then points to
  // these.
  Batch<const T> features(const char* name, const dlpack::Tensor* t, int64_t b, int64_t rows, int64_t columns,
                          Element& element) {
    element = Element::own;
    if (!t || t->dtype.bits != 16 || sizeof(T) != 4) return batch(name, t, b, rows, columns);
    if (t->device.type != dlpack::kCUDA)
      refuse(name, "expected 32- or 64-bit features on the CPU, got 16-bit features; convert them with .float()");
    element = t->dtype.code == dlpack::kBfloat ? Element::bf16 : Element::f16;
    return view(name, checked(name, t, 16, element == Element::bf16 ? dlpack::kBfloat : dlpack::kFloat), b, rows,
                columns);
  }

  // A dense output or saved array of at least `elements`.
  template <class U>
  U* array(const char* name, const dlpack::Tensor* tensor, int64_t elements, uint8_t code = dlpack::kFloat) {
    const dlpack::Tensor* t = checked(name, tensor, sizeof(U) * 8, code);
    if (!t) return nullptr;
    const int64_t count = count_of(name, t);
    if (count < elements) {
      refuse(name, "expected at least " + std::to_string(elements) + " elements, got " + std::to_string(count));
    }
    if (count == 0) return data<U>(t);
    int64_t dense = 1;
    for (int i = t->ndim - 1; i >= 0; --i) {
      if (t->strides && t->shape[i] > 1 && t->strides[i] != dense) {
        refuse(name, "expected a dense array, got stride " + std::to_string(t->strides[i]) + " in dimension " +
                         std::to_string(i) + "; call .contiguous()");
      }
      dense *= t->shape[i];
    }
    if (!t->data) refuse(name, kNoMemory);
    return data<U>(t);
  }

  Hyper<T> hyper(const dlpack::Tensor* tensor, const std::vector<double>& values, int64_t b) {
    require(values.size() <= 4, "hyper: at most 4 values");
    Hyper<T> h;
    h.count = static_cast<int>(values.size());
    for (int i = 0; i < h.count; ++i) h.values[i] = values[i];
    if (tensor) {
      const Batch<const T> view = batch("hyper", tensor, b, 1, h.count);
      require(view.cs == 1 || h.count <= 1, "hyper: expected dense rows");
      h.tensor = view.p;
      h.bs = view.bs;
    }
    return h;
  }

  bool cuda() const { return device == dlpack::kCUDA; }

  int device_index() const { return index; }

 private:
  // PyTorch's lazy zero tensors, functional tensors, and tensors whose storage was resized to nothing.
  static constexpr const char* kNoMemory =
      "expected a tensor with memory, got one whose elements have none; call .clone()";

  [[noreturn]] static void refuse(const char* name, const std::string& message) {
    throw std::invalid_argument(std::string(name) + ": " + message);
  }

  static std::string text(int64_t b, int64_t rows, int64_t columns) {
    return "[" + std::to_string(b) + ", " + std::to_string(rows) + ", " + std::to_string(columns) + "]";
  }

  // The number of elements. A tensor of PyTorch always has one, but the header of a capsule can say anything.
  static int64_t count_of(const char* name, const dlpack::Tensor* t) {
    if (t->ndim < 0) refuse(name, "expected a tensor, got " + std::to_string(t->ndim) + " dimensions");
    int64_t count = 1;
    for (int i = 0; i < t->ndim; ++i) {
      const int64_t size = t->shape[i];
      if (size < 0 || (size > 0 && count > (int64_t(1) << 62) / size))
        refuse(name, "expected sizes of a tensor, got " + std::to_string(size) + " in dimension " + std::to_string(i));
      count *= size;
    }
    return count;
  }

  static Batch<const T> view(const char* name, const dlpack::Tensor* t, int64_t b, int64_t rows, int64_t columns) {
    if (!t) return {};
    if (t->ndim != 2 && t->ndim != 3) {
      refuse(name, "expected 2 or 3 dimensions, got " + std::to_string(t->ndim));
    }
    const int k = t->ndim - 2;
    const int64_t problems = k == 0 ? 1 : t->shape[0];
    if (problems != b || t->shape[k] != rows || t->shape[k + 1] != columns) {
      refuse(name,
             "expected shape " + text(b, rows, columns) + ", got " + text(problems, t->shape[k], t->shape[k + 1]));
    }
    int64_t strides[3];
    int64_t dense = 1;
    for (int i = t->ndim - 1; i >= 0; --i) {
      strides[i] = t->strides ? t->strides[i] : dense;
      dense *= t->shape[i];
    }
    if (!t->data && dense != 0) refuse(name, kNoMemory);
    return {data<T>(t), k == 0 ? 0 : strides[0], strides[k], strides[k + 1]};
  }

  const dlpack::Tensor* checked(const char* name, const dlpack::Tensor* t, int bits, uint8_t code) {
    if (!t) return nullptr;
    if (t->dtype.code != code || t->dtype.bits != bits || t->dtype.lanes != 1) {
      refuse(name, "expected DLPack type " + std::to_string(code) + " of " + std::to_string(bits) + " bits, got type " +
                       std::to_string(t->dtype.code) + " of " + std::to_string(t->dtype.bits) + " bits");
    }
    if (t->device.type != dlpack::kCPU && t->device.type != dlpack::kCUDA) {
      refuse(name, "expected a tensor on the CPU or a CUDA GPU, got DLPack device " + std::to_string(t->device.type));
    }
    if (device == 0) {
      device = t->device.type;
      index = t->device.id;
    }
    if (t->device.type != device || t->device.id != index) {
      refuse(name, "expected DLPack device " + std::to_string(device) + ":" + std::to_string(index) +
                       " like the other tensors, got " + std::to_string(t->device.type) + ":" +
                       std::to_string(t->device.id));
    }
    return t;
  }

  template <class U>
  static U* data(const dlpack::Tensor* t) {
    // Any non-null address works for an empty tensor; nullptr means "absent" to the core.
    static U empty{};
    return t->data ? reinterpret_cast<U*>(static_cast<char*>(t->data) + t->byte_offset) : &empty;
  }

  int32_t device = 0, index = 0;
};

}  // namespace ssdd

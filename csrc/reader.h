// DLPack tensors to views, with the checks that memory safety needs.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "dlpack.h"
#include "tensor.h"

namespace ssdd {

// Every tensor of one call: one device, one floating type, the shape the contract says.
template <class T>
class Reader {
 public:
  Batch<const T> batch(const char* name, const dlpack::Tensor* tensor, int64_t b, int64_t rows, int64_t columns) {
    return view(name, checked(name, tensor, sizeof(T) * 8, dlpack::kFloat), b, rows, columns);
  }

  // The same, or on a GPU 16-bit floats where the rest is float: then the view's pointer leads to those.
  Batch<const T> features(const char* name, const dlpack::Tensor* t, int64_t b, int64_t rows, int64_t columns,
                          Element& element) {
    element = Element::own;
    if (!t || t->dtype.bits != 16 || sizeof(T) != 4) return batch(name, t, b, rows, columns);
    require(t->device.type == dlpack::kCUDA, std::string(name) + ": 16-bit features are read on a GPU only");
    element = t->dtype.code == dlpack::kBfloat ? Element::bf16 : Element::f16;
    return view(name, checked(name, t, 16, element == Element::bf16 ? dlpack::kBfloat : dlpack::kFloat), b, rows,
                columns);
  }

  // A dense output or saved array of at least `elements`.
  template <class U>
  U* array(const char* name, const dlpack::Tensor* tensor, int64_t elements, uint8_t code = dlpack::kFloat) {
    const dlpack::Tensor* t = checked(name, tensor, sizeof(U) * 8, code);
    if (!t) return nullptr;
    int64_t count = 1;
    for (int i = 0; i < t->ndim; ++i) count *= t->shape[i];
    if (count == 0) {
      require(elements == 0, std::string(name) + ": too small");
      return data<U>(t);
    }
    count = 1;
    for (int i = t->ndim - 1; i >= 0; --i) {
      require(!t->strides || t->shape[i] <= 1 || t->strides[i] == count,
              std::string(name) + ": expected a dense array");
      count *= t->shape[i];
    }
    require(count >= elements, std::string(name) + ": too small");
    require(t->data, std::string(name) + kNoMemory);
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
  // A tensor of zeros that PyTorch has not made yet, a functional one, one whose storage was resized to nothing.
  static constexpr const char* kNoMemory = ": its elements have no memory";

  static Batch<const T> view(const char* name, const dlpack::Tensor* t, int64_t b, int64_t rows, int64_t columns) {
    if (!t) return {};
    require(t->ndim == 2 || t->ndim == 3, std::string(name) + ": expected 2 or 3 dimensions");
    const int k = t->ndim - 2;
    require((k == 0 ? b == 1 : t->shape[0] == b) && t->shape[k] == rows && t->shape[k + 1] == columns,
            std::string(name) + ": shape does not match the problem");
    int64_t strides[3];
    int64_t dense = 1;
    for (int i = t->ndim - 1; i >= 0; --i) {
      strides[i] = t->strides ? t->strides[i] : dense;
      dense *= t->shape[i];
    }
    require(t->data || dense == 0, std::string(name) + kNoMemory);
    return {data<T>(t), k == 0 ? 0 : strides[0], strides[k], strides[k + 1]};
  }

  const dlpack::Tensor* checked(const char* name, const dlpack::Tensor* t, int bits, uint8_t code) {
    if (!t) return nullptr;
    require(t->dtype.code == code && t->dtype.bits == bits && t->dtype.lanes == 1,
            std::string(name) + ": unexpected dtype");
    require(t->device.type == dlpack::kCPU || t->device.type == dlpack::kCUDA, std::string(name) + ": unknown device");
    if (device == 0) {
      device = t->device.type;
      index = t->device.id;
    }
    require(t->device.type == device && t->device.id == index, std::string(name) + ": on another device");
    return t;
  }

  template <class U>
  static U* data(const dlpack::Tensor* t) {
    // Any non-null address serves an empty tensor; nullptr means "absent" to the core.
    static U empty{};
    return t->data ? reinterpret_cast<U*>(static_cast<char*>(t->data) + t->byte_offset) : &empty;
  }

  int32_t device = 0, index = 0;
};

}  // namespace ssdd

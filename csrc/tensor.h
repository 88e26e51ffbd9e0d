// Plain views: pointers, sizes, strides. They own nothing and depend on nothing. constexpr, so that nvcc compiles them
// into kernels.
#pragma once
#include <cstdint>

namespace ssdd {

// A matrix whose element (i, j) is p[i * rs + j * cs]; strides in elements, any sign or 0.
template <class T>
struct View {
  T* p = nullptr;
  int64_t rs = 0, cs = 1;
  constexpr T& operator()(int64_t i, int64_t j) const { return p[i * rs + j * cs]; }
  constexpr View<T> t() const { return {p, cs, rs}; }
  constexpr View<T> from(int64_t i, int64_t j) const { return {p + i * rs + j * cs, rs, cs}; }
  constexpr operator View<const T>() const { return {p, rs, cs}; }
};

// A batch of such matrices: problem b starts at p + b * bs.
template <class T>
struct Batch {
  T* p = nullptr;
  int64_t bs = 0, rs = 0, cs = 1;
  constexpr View<T> operator[](int64_t b) const { return {p + b * bs, rs, cs}; }
  constexpr explicit operator bool() const { return p != nullptr; }
};

// The element type of an input: the type of the computation, or 16-bit floats, which the pointer then points to
// (strides still count elements). Only the GPU half of the core reads 16-bit floats; they are exact in float.
enum class Element { own = 0, bf16 = 1, f16 = 2 };

// The kernel functions; gram.h has their formulas.
enum class KernelKind {
  linear = 0,
  rbf = 1,
  matern_1 = 2,
  matern_3 = 3,
  matern_5 = 4,
  rational_quadratic = 5,
  polynomial = 6,
  arc_cosine_0 = 7,
  arc_cosine_1 = 8,
  nngp = 9,
  ntk = 10,
  laplace_1 = 11
};
constexpr int kKernelKinds = 12;
// How many hyper-parameters it has, before the ridge's.
constexpr int parameter_count(KernelKind kind) {
  switch (kind) {
    case KernelKind::linear:
    case KernelKind::rational_quadratic:
    case KernelKind::polynomial:
    case KernelKind::nngp:
    case KernelKind::ntk:
      return 2;
    case KernelKind::arc_cosine_0:
    case KernelKind::arc_cosine_1:
      return 0;
    default:
      return 1;
  }
}
// True if it is a function of the 1-norm |x - z|_1.
constexpr bool of_one_norm(KernelKind kind) { return kind == KernelKind::laplace_1; }
// True if it is a function of |x - z|^2 or |x - z|_1, else of x.z (and of |x|^2 and |z|^2 if of_norms).
constexpr bool of_distance(KernelKind kind) {
  return (kind >= KernelKind::rbf && kind <= KernelKind::rational_quadratic) || of_one_norm(kind);
}
// True if the square of a lengthscale, by which squared distances are divided, is far from the ends of the range of T.
template <class T>
constexpr bool square_in_range(T length) {
  const double square = static_cast<double>(length) * static_cast<double>(length);
  return sizeof(T) == 8 ? square >= 1e-300 && square <= 1e300 : square >= 1e-36 && square <= 1e36;
}
constexpr bool of_norms(KernelKind kind) { return kind >= KernelKind::arc_cosine_0 && kind <= KernelKind::ntk; }
// True if its slopes need the argument beside the value. Those of rbf follow from the value.
constexpr bool keeps_argument(KernelKind kind) { return kind > KernelKind::rbf; }
enum class RidgeKind { absolute = 0, trace = 1, mean_trace = 2 };
enum class OnFailure { nan = 0, jitter = 1 };

// Status of one problem: 0, the 1-based pivot that failed, or this.
constexpr int32_t kBadParameter = -1;

// Hyper-parameters of problem b: kernel parameters first, the ridge value last. Either numbers shared by all
// problems, or a tensor [B, count].
template <class T>
struct Hyper {
  const T* tensor = nullptr;
  int64_t bs = 0;
  double values[4] = {0, 0, 0, 0};
  int count = 0;
  constexpr T get(int64_t b, int i) const { return tensor ? tensor[b * bs + i] : static_cast<T>(values[i]); }
};

}  // namespace ssdd

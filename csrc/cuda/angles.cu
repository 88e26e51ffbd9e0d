// Kernel functions of an angle: arc-cosine kernels, and those of infinitely wide ReLU networks. ../angles.h has their
// formulas, which the CPU's half of the core shares.
//
// Mapping: one block of 128 threads per row of K, or per point whose squared length is computed. The backward keeps four
// numbers per hidden layer and thread in shared memory, 4 KB per layer: an array in registers would have to be in local
// memory, since its index is known at run time only. The angle is computed again from them.
// Traffic: angle_map_kernel reads and writes one double per element of K; angle_slope_kernel reads two and writes one,
// two if it is not square; both read the squared lengths once per row, from L2. lengths_kernel reads each point once.
// FLOPs: about 80 per element and layer in angle_map_kernel, three times as many in angle_slope_kernel.
// Floor on an H100: 16 to 32 bytes per element / 3.35 TB/s; for a network of two or more layers 80 FLOPs per element
// and layer / 34 TF/s. Other path: planned PyTorch, whose double products are faster on a GPU (plan/gpu.py).
#include "angles.cuh"

#include "kernel_functions.cuh"

#define SSDD_INLINE SIMT_DEVICE
#include "../angles.h"
#undef SSDD_INLINE

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 128, kNumbers = 4;

// One number, and its functions.
struct One {
  using T = double;
  using V = double;
  static constexpr double kOverPi = 0.318309886183790671538;
  static SIMT_DEVICE double all(double x) { return x; }
  static SIMT_DEVICE double root(double x) { return simt::square_root(x); }
  static SIMT_DEVICE double acos(double x) { return simt::arc_cosine(x); }
};

// What the function knows of a row, and of the element at hand: `same`. layers: this thread's first number in shared
// memory; numbers are kThreads apart.
struct Row {
  double x, c[6];
  int order;
  bool same;
  double* layers;

  SIMT_DEVICE Row(const Angles& a, int64_t b, int64_t i, double* shared)
      : x(a.x[b * a.x_bs + i]), order(a.order), same(false), layers(shared) {
    const double* const own = a.scalars + b * kScalars;
    const NetworkNumbers numbers(own[kLengthscale], own[kBias], a.features);
#pragma unroll
    for (int e = 0; e < 6; ++e) c[e] = numbers.c[e];
  }
};

class Layers {
 public:
  SIMT_DEVICE explicit Layers(const Row& row) : first(row.layers), same(row.same) {}
  SIMT_DEVICE void put(int l, const Layer<One>& layer) {
    simt::put(place(l, 0), layer.k);
    simt::put(place(l, 1), layer.k_x);
    simt::put(place(l, 2), layer.k_z);
    simt::put(place(l, 3), layer.t);
  }
  SIMT_DEVICE Layer<One> get(int l) const {
    const double k = simt::get(place(l, 0)), k_x = simt::get(place(l, 1)), k_z = simt::get(place(l, 2));
    return {k, k_x, k_z, simt::get(place(l, 3)), Angle<One>(k, k_x, k_z, same)};
  }

 private:
  SIMT_DEVICE double* place(int l, int number) const { return first + (l * kNumbers + number) * kThreads; }
  double* const first;
  const bool same;
};

struct ArcCosine0 {
  using Function = ArcCosine<One, Row, 0>;
};
struct ArcCosine1 {
  using Function = ArcCosine<One, Row, 1>;
};
struct Nngp {
  using Function = Network<One, Row, Layers, false>;
};
struct Ntk {
  using Function = Network<One, Row, Layers, true>;
};

// How many numbers a block keeps in shared memory.
template <class Kind>
constexpr int layer_numbers(int layers) {
  return std::is_same_v<Kind, Nngp> || std::is_same_v<Kind, Ntk> ? layers * kNumbers * kThreads : 0;
}

SIMT_KERNEL(kThreads)
void lengths_kernel(int64_t rows, int64_t features, Source<double> x, double* out, int64_t out_bs) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / rows, i = simt::block().x % rows;
  const Source<double> own = x[b];
  double sum = 0;
  for (int64_t j = simt::thread(); j < features; j += kThreads) {
    const double v = own(i, j);
    sum += v * v;
  }
  sum = block_sum<kThreads>(sum);
  if (simt::thread() == 0) simt::store(out + b * out_bs + i, sum);
}

template <class Kind>
SIMT_KERNEL(kThreads)
void angle_map_kernel(Angles a, double* k, int64_t k_bs) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / a.rows, i = simt::block().x % a.rows;
  Row row(a, b, i, nullptr);
  const double* const arguments = a.arguments + b * a.arguments_bs + i * a.columns;
  for (int64_t j = simt::thread(); j < a.columns; j += kThreads) {
    row.same = a.square && i == j;
    const double argument = simt::load(arguments + j), z = simt::load(a.z + b * a.z_bs + j);
    const typename Kind::Function function{{}, row};
    simt::store(k + b * k_bs + i * a.columns + j, function.value(row.same ? row.x : argument, z));
  }
}

template <class Kind>
SIMT_KERNEL(kThreads)
void angle_slope_kernel(AngleSlopes s) {
  simt::wait_for_earlier_launches();
  const Angles& a = s.of;
  simt::Shared shared;
  double* const layers = shared.take<double>(layer_numbers<Kind>(a.order));
  const int64_t b = simt::block().x / a.rows, i = simt::block().x % a.rows;
  Row row(a, b, i, layers + simt::thread());
  const double* const arguments = a.arguments + b * a.arguments_bs + i * a.columns;
  double* const k_bar = s.k_bar + b * s.bar_bs + i * a.columns;
  double* const z_bar = s.z_bar + b * s.z_bar_bs + i * a.columns;
  double sum = 0, first = 0, second = 0;
#pragma unroll 1
  for (int64_t j = simt::thread(); j < a.columns; j += kThreads) {
    row.same = a.square && i == j;
    const double argument = simt::load(arguments + j), z = simt::load(a.z + b * a.z_bs + j);
    const typename Kind::Function function{{}, row};
    const auto slopes = function.template slopes<true>(row.same ? row.x : argument, z);
    const double bar = simt::load(k_bar + j);
    // Kbar_ij and Kbar_ji are both in row i, but for the diagonal, which also has the trace's part.
    const double weight = !a.square ? bar : row.same ? bar / 2 + a.scalars[b * kScalars + kThroughTrace] : bar / 2;
    first += weight * slopes.first;
    second += weight * slopes.second;
    sum += row.same ? weight * (slopes.argument + slopes.x + slopes.z) : bar * slopes.x;
    simt::store(k_bar + j, row.same ? 0 : bar * slopes.argument);
    if (!a.square) simt::store(z_bar + j, bar * slopes.z);
  }
  sum_slopes<kThreads>(s, b, i, sum, first, second);
}

template <class Kind>
void launch_map(const Angles& a, double* k, int64_t k_bs, simt::Stream stream) {
  simt::launch(&angle_map_kernel<Kind>, {static_cast<unsigned>(a.batch * a.rows)}, kThreads, 0, stream, a, k, k_bs);
}
template <class Kind>
void launch_slopes(const AngleSlopes& s, simt::Stream stream) {
  const int bytes = layer_numbers<Kind>(s.of.order) * static_cast<int>(sizeof(double));
  simt::launch(&angle_slope_kernel<Kind>, {static_cast<unsigned>(s.batch * s.rows)}, kThreads, bytes, stream, s);
}

}  // namespace

void squared_lengths(int64_t batch, int64_t rows, int64_t features, const Source<double>& x, double* out,
                     int64_t out_bs, simt::Stream stream) {
  if (batch == 0 || rows == 0) return;
  simt::launch(&lengths_kernel, {static_cast<unsigned>(batch * rows)}, kThreads, 0, stream, rows, features, x, out,
               out_bs);
}

void map_angles(const Angles& a, double* k, int64_t k_bs, simt::Stream stream) {
  if (a.batch == 0 || a.rows == 0 || a.columns == 0) return;
  switch (a.kind) {
    case KernelKind::arc_cosine_0:
      return launch_map<ArcCosine0>(a, k, k_bs, stream);
    case KernelKind::arc_cosine_1:
      return launch_map<ArcCosine1>(a, k, k_bs, stream);
    case KernelKind::nngp:
      return launch_map<Nngp>(a, k, k_bs, stream);
    default:
      return launch_map<Ntk>(a, k, k_bs, stream);
  }
}

void slope_angles(const AngleSlopes& s, simt::Stream stream) {
  if (s.batch == 0 || s.rows == 0) return;
  switch (s.of.kind) {
    case KernelKind::arc_cosine_0:
      return launch_slopes<ArcCosine0>(s, stream);
    case KernelKind::arc_cosine_1:
      return launch_slopes<ArcCosine1>(s, stream);
    case KernelKind::nngp:
      return launch_slopes<Nngp>(s, stream);
    default:
      return launch_slopes<Ntk>(s, stream);
  }
}

}  // namespace ssdd::cuda

// Kernel functions of a matrix of arguments, and their slopes. The formulas are in gram.h.
//
// They are launches of their own, so that the code of the products does not grow: an instruction cache holds about three
// product kernels (benchmarks/results/sass.md), and reading and writing a matrix of 1000 x 1024 takes 3 us.
//
// Mapping: map_kernel: one block of 256 threads per 2048 elements of a problem. function_slope_kernel: one block per row.
// Traffic: map_kernel reads and writes one element per element of K; function_slope_kernel reads two and writes one, and
// two numbers per row. FLOPs: about 20 per element.
// Floor on an H100: 8 and 12 bytes per element / 3.35 TB/s in float. Other path: none.
#include "kernel_functions.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPart = 2048;

template <class T>
struct Slopes {
  T argument, first, second;
};

// The function of one problem, from its row of scalars.
template <class T>
struct Function {
  KernelKind kind;
  int order;
  T first, second, map;

  SIMT_DEVICE Function(KernelKind which, int degree, const T* scalars)
      : kind(which), order(degree), first(scalars[kLengthscale]), second(scalars[kBias]), map(scalars[kMap]) {}

  // log(1 + t) for t >= 0, whose error is relative to t.
  static SIMT_DEVICE T log1p(T t) {
    const T b = t + T(1), rounded = b - T(1);
    if (!(rounded > T(0))) return t;
    return simt::finite(b) ? simt::logarithm(b) * (t / rounded) : simt::logarithm(b);
  }
  SIMT_DEVICE T power(T u, int n) const {
    T result = 1;
#pragma unroll 1
    for (; n > 0; n /= 2) {
      if (n % 2) result *= u;
      u *= u;
    }
    return result;
  }

  SIMT_DEVICE T value(T a) const {
    if (kind == KernelKind::polynomial) return power(first * a + second, order);
    if (kind == KernelKind::rational_quadratic) return simt::exponential(-second * log1p(map * a));
    if (kind == KernelKind::laplace_1) return simt::exponential(map * a);
    const T u = map * a, s = simt::square_root(u), e = simt::exponential(-s);
    const T factor = kind == KernelKind::matern_1   ? T(1)
                     : kind == KernelKind::matern_3 ? s + T(1)
                                                    : s + T(1) + u * T(1.0 / 3);
    return e == T(0) ? e : factor * e;
  }

  SIMT_DEVICE Slopes<T> slopes(T a) const {
    if (kind == KernelKind::polynomial) {
      const T lower = power(first * a + second, order - 1) * static_cast<T>(order);
      return {lower * first, lower * a, lower};
    }
    if (kind == KernelKind::laplace_1) {
      const T slope = simt::exponential(map * a) * map;
      return {slope, slope == T(0) ? T(0) : slope * a * map, T(0)};
    }
    T argument, third = 0;
    if (kind == KernelKind::rational_quadratic) {
      const T t = map * a, b = t + T(1), log_b = log1p(t), k = simt::exponential(-second * log_b);
      argument = k / b * (-second * map);
      third = simt::finite(b) ? k * (t / b - log_b) : T(0);
    } else {
      const T u = map * a, s = simt::square_root(u), e = simt::exponential(-s);
      // At a = 0 the derivative of exp(-s), which has none, is 0.
      argument = kind == KernelKind::matern_1   ? (u > T(0) ? e / s : T(0)) * (T(-0.5) * map)
                 : kind == KernelKind::matern_3 ? e * (T(-0.5) * map)
                                                : (e == T(0) ? e : (s + T(1)) * e) * (T(-1.0 / 6) * map);
    }
    return {argument, argument == T(0) ? T(0) : argument * a * (T(-2) / first), third};
  }
};

template <class T>
SIMT_KERNEL(kThreads)
void map_kernel(KernelMap<T> m, int64_t parts) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / parts, begin = simt::block().x % parts * kPart;
  const int64_t end = begin + kPart < m.count ? begin + kPart : m.count;
  const Function<T> function(m.kind, m.order, m.scalars + b * kScalars);
  for (int64_t e = begin + simt::thread(); e < end; e += kThreads)
    simt::store(m.k + b * m.k_bs + e, function.value(simt::load(m.arguments + b * m.arguments_bs + e)));
}

template <class T>
SIMT_KERNEL(kThreads)
void function_slope_kernel(KernelSlopes<T> a) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / a.rows, i = simt::block().x % a.rows;
  const T* const scalars = a.scalars + b * kScalars;
  const T* const argument = a.arguments + b * a.arguments_bs + i * a.columns;
  T* const k_bar = a.k_bar + b * a.bar_bs + i * a.columns;
  const Function<T> function(a.kind, a.order, scalars);
  const bool distance = of_distance(a.kind);
  double sum = 0, first = 0, second = 0;
  for (int64_t j = simt::thread(); j < a.columns; j += kThreads) {
    if (a.square && j < i) continue;
    const bool own = a.square && j == i;
    if (own && distance) {
      simt::store(k_bar + j, T(0));
      continue;
    }
    const Slopes<T> slopes = function.slopes(simt::load(argument + j));
    // On the diagonal k(x, x) counts once, and d (x.x) = 2 x.dx.
    const T bar = simt::load(k_bar + j) + (own ? T(2) * scalars[kThroughTrace] : T(0)), weight = own ? bar / 2 : bar;
    first += static_cast<double>(weight) * static_cast<double>(slopes.first);
    second += static_cast<double>(weight) * static_cast<double>(slopes.second);
    const T g = bar * slopes.argument;
    sum += static_cast<double>(g);
    simt::store(k_bar + j, g);
  }
  sum_slopes<kThreads>(a, b, i, sum, first, second);
}

}  // namespace

template <class T>
void map_arguments(const KernelMap<T>& map, simt::Stream stream) {
  if (map.batch == 0 || map.count == 0) return;
  const int64_t parts = (map.count + kPart - 1) / kPart;
  simt::launch(&map_kernel<T>, {static_cast<unsigned>(map.batch * parts)}, kThreads, 0, stream, map, parts);
}

template <class T>
void slope_arguments(const KernelSlopes<T>& slopes, simt::Stream stream) {
  if (slopes.batch == 0 || slopes.rows == 0) return;
  simt::launch(&function_slope_kernel<T>, {static_cast<unsigned>(slopes.batch * slopes.rows)}, kThreads, 0, stream,
               slopes);
}

#define SSDD_INSTANTIATE(T)                                       \
  template void map_arguments(const KernelMap<T>&, simt::Stream); \
  template void slope_arguments(const KernelSlopes<T>&, simt::Stream);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

}  // namespace ssdd::cuda

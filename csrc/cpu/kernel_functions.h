// The kernel functions, one struct each: its value, and the slopes in the argument, in |x|^2 and |z|^2, and in the
// hyper-parameters. Included by kernels_*.cpp only, each of which instantiates it for one vector width; the rules of
// micro_tile.h hold.
//
// To add one: a struct, its numbers in kernel.h, and its row in `dispatch` below.
#pragma once
#include "kernel_rows.h"
#include "micro_math.h"

#define SSDD_INLINE inline
#include "../angles.h"
#undef SSDD_INLINE

namespace ssdd::cpu {
namespace {

// k = exp(c0 r), c0 = -1 / (2 l^2), c1 = 1 / l. Its slopes follow from k: r = log(k) / c0.
template <class T, int Bytes>
struct Rbf : Math<T, Bytes> {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  static constexpr bool norms = false;
  const KernelRow<T>& f;
  V value(V r, V) const { return M::exp(r * f.c[0]); }
  template <bool Parameters>
  Slopes<V> slopes(V k, V) const {
    Slopes<V> s;
    s.argument = k * f.c[0];
    if constexpr (Parameters) s.first = k > T(0) ? k * M::log(k > T(0) ? k : M::all(1)) * (T(-2) * f.c[1]) : V{};
    return s;
  }
};

// With u = c0 r and s = sqrt(u): exp(-s), (1 + s) exp(-s), (1 + s + u / 3) exp(-s); c0 = 2 nu / l^2, c1 = -2 / l.
template <class T, int Bytes, int Order>
struct Matern : Math<T, Bytes> {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  static constexpr bool norms = false;
  const KernelRow<T>& f;
  V value(V r, V) const {
    const V u = r * f.c[0], s = M::root(u), e = M::exp(-s);
    if constexpr (Order == 0) return e;
    const V factor = Order == 1 ? s + T(1) : s + T(1) + u * T(1.0 / 3);
    return e == T(0) ? e : factor * e;  // the factor may be infinite
  }
  template <bool Parameters>
  Slopes<V> slopes(V r, V) const {
    const V u = r * f.c[0], s = M::root(u), e = M::exp(-s);
    Slopes<V> out;
    // At r = 0 the derivative of exp(-s), which has none, is 0.
    if constexpr (Order == 0) out.argument = u > T(0) ? e / (u > T(0) ? s : M::all(1)) * (T(-0.5) * f.c[0]) : V{};
    if constexpr (Order == 1) out.argument = e * (T(-0.5) * f.c[0]);
    if constexpr (Order == 2) out.argument = (e == T(0) ? e : (s + T(1)) * e) * (T(-1.0 / 6) * f.c[0]);
    if constexpr (Parameters) out.first = e == T(0) ? e : out.argument * r * f.c[1];
    return out;
  }
};

// k = exp(c0 a) of a 1-norm a; c0 = -1 / l.
template <class T, int Bytes>
struct Laplace1 : Math<T, Bytes> {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  static constexpr bool norms = false;
  const KernelRow<T>& f;
  V value(V a, V) const { return M::exp(a * f.c[0]); }
  template <bool Parameters>
  Slopes<V> slopes(V a, V) const {
    Slopes<V> s;
    s.argument = M::exp(a * f.c[0]) * f.c[0];
    if constexpr (Parameters) s.first = s.argument == T(0) ? V{} : s.argument * a * f.c[0];
    return s;
  }
};

// k = b^-alpha, b = 1 + t, t = c0 r; c0 = 1 / (2 alpha l^2), c1 = -2 / l, c2 = alpha.
template <class T, int Bytes>
struct RationalQuadratic : Math<T, Bytes> {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  static constexpr bool norms = false;
  const KernelRow<T>& f;
  // log(1 + t), whose error is relative to t, so that small t lose nothing.
  static V log1p(V t) {
    const V b = t + T(1), rounded = b - T(1);
    const auto above = rounded > T(0), usable = above & (b < M::infinity());
    const V log_b = M::log(above ? b : M::all(1));  // not of NaN, nor of the negative numbers of a negative alpha
    return usable ? log_b * (t / (usable ? rounded : M::all(1))) : (above ? log_b : t);
  }
  V value(V r, V) const { return M::exp(log1p(r * f.c[0]) * -f.c[2]); }
  template <bool Parameters>
  Slopes<V> slopes(V r, V) const {
    const V t = r * f.c[0], b = t + T(1), log_b = log1p(t), k = M::exp(log_b * -f.c[2]);
    Slopes<V> s;
    s.argument = k / b * (-f.c[2] * f.c[0]);
    if constexpr (Parameters) {
      s.first = s.argument * r * f.c[1];
      s.second = b < M::infinity() ? k * (t / b - log_b) : V{};
    }
    return s;
  }
};

// k = (c0 x.z + c1)^order.
template <class T, int Bytes>
struct Polynomial : Math<T, Bytes> {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  static constexpr bool norms = false;
  const KernelRow<T>& f;
  static V power(V u, int n) {
    V result = M::all(1);
    for (; n; n >>= 1) {
      if (n & 1) result *= u;
      u *= u;
    }
    return result;
  }
  V value(V a, V) const { return power(a * f.c[0] + f.c[1], f.order); }
  template <bool Parameters>
  Slopes<V> slopes(V a, V) const {
    const V lower = power(a * f.c[0] + f.c[1], f.order - 1) * T(f.order);
    Slopes<V> s;
    s.argument = lower * f.c[0];
    if constexpr (Parameters) {
      s.first = lower * a;
      s.second = lower;
    }
    return s;
  }
};

// The layers of one element of a network, on the stack. angles.h has the networks.
template <class M>
struct Layers {
  Layer<M> all[kMostLayers];
  template <class Row>
  explicit Layers(const Row&) {}
  void put(int l, const Layer<M>& layer) { all[l] = layer; }
  const Layer<M>& get(int l) const { return all[l]; }
};

template <class F, class T, int Bytes>
void values_of(const KernelRow<T>& row, int64_t n, const T* argument, T* k) {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  using L = typename M::L;
  const F f{{}, row};
  int64_t j = 0;
  for (; j + M::lanes <= n; j += M::lanes) {
    const V z = F::norms ? V(*reinterpret_cast<const L*>(row.z + j)) : V{};
    *reinterpret_cast<L*>(k + j) = f.value(*reinterpret_cast<const L*>(argument + j), z);
  }
  if (j == n) return;
  V a{}, z = M::all(1);
  for (int64_t i = j; i < n; ++i) {
    a[i - j] = argument[i];
    if (F::norms) z[i - j] = row.z[i];
  }
  const V value = f.value(a, z);
  for (int64_t i = j; i < n; ++i) k[i] = value[i - j];
}

template <class F, bool Parameters, class T, int Bytes>
void slopes_of(const KernelRow<T>& row, int64_t n, const T* argument, T* bar, T* z_bar, double* sums) {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  using L = typename M::L;
  const F f{{}, row};
  typename M::Wide x_sum, first, second;
  const auto add = [&](V b, const Slopes<V>& s) {
    if constexpr (F::norms) x_sum.add(b * s.x);
    if constexpr (Parameters) {
      first.add(b * s.first);
      second.add(b * s.second);
    }
  };
  int64_t j = 0;
  for (; j + M::lanes <= n; j += M::lanes) {
    const V z = F::norms ? V(*reinterpret_cast<const L*>(row.z + j)) : V{}, b = *reinterpret_cast<L*>(bar + j);
    const Slopes<V> s = f.template slopes<Parameters>(*reinterpret_cast<const L*>(argument + j), z);
    *reinterpret_cast<L*>(bar + j) = b * s.argument;
    if constexpr (F::norms) *reinterpret_cast<L*>(z_bar + j) += b * s.z;
    add(b, s);
  }
  if (j < n) {
    V a{}, z = M::all(1), b{};
    for (int64_t i = j; i < n; ++i) {
      a[i - j] = argument[i];
      b[i - j] = bar[i];
      if (F::norms) z[i - j] = row.z[i];
    }
    const Slopes<V> s = f.template slopes<Parameters>(a, z);
    const V g = b * s.argument, h = b * s.z;
    for (int64_t i = j; i < n; ++i) {
      bar[i] = g[i - j];
      if (F::norms) z_bar[i] += h[i - j];
    }
    add(b, s);
  }
  sums[0] += x_sum.total();
  sums[1] += first.total();
  sums[2] += second.total();
}

// Calls use.template operator()<F>() with the struct of this kind.
template <class T, int Bytes, class Use>
void dispatch(KernelKind kind, const Use& use) {
  using M = Math<T, Bytes>;
  switch (kind) {
    case KernelKind::rbf:
      return use(Rbf<T, Bytes>{{}, use.row});
    case KernelKind::matern_1:
      return use(Matern<T, Bytes, 0>{{}, use.row});
    case KernelKind::matern_3:
      return use(Matern<T, Bytes, 1>{{}, use.row});
    case KernelKind::matern_5:
      return use(Matern<T, Bytes, 2>{{}, use.row});
    case KernelKind::laplace_1:
      return use(Laplace1<T, Bytes>{{}, use.row});
    case KernelKind::rational_quadratic:
      return use(RationalQuadratic<T, Bytes>{{}, use.row});
    case KernelKind::polynomial:
      return use(Polynomial<T, Bytes>{{}, use.row});
    default:
      break;
  }
  // Angles near 0 need the digits of double (gram.h).
  if constexpr (sizeof(T) == 8) switch (kind) {
      case KernelKind::arc_cosine_0:
        return use(ArcCosine<M, KernelRow<T>, 0>{{}, use.row});
      case KernelKind::arc_cosine_1:
        return use(ArcCosine<M, KernelRow<T>, 1>{{}, use.row});
      case KernelKind::nngp:
        return use(Network<M, KernelRow<T>, Layers<M>, false>{{}, use.row});
      case KernelKind::ntk:
        return use(Network<M, KernelRow<T>, Layers<M>, true>{{}, use.row});
      default:
        break;
    }
}

template <class T, int Bytes>
struct Values {
  const KernelRow<T>& row;
  int64_t n;
  const T* argument;
  T* k;
  template <class F>
  void operator()(const F&) const {
    values_of<F, T, Bytes>(row, n, argument, k);
  }
};
template <class T, int Bytes>
void values(const KernelRow<T>& row, int64_t n, const T* argument, T* k) {
  dispatch<T, Bytes>(row.kind, Values<T, Bytes>{row, n, argument, k});
}

template <class T, int Bytes>
struct SlopesOf {
  const KernelRow<T>& row;
  int64_t n;
  const T* argument;
  T *bar, *z_bar;
  bool parameters;
  double* sums;
  template <class F>
  void operator()(const F&) const {
    if (parameters)
      slopes_of<F, true, T, Bytes>(row, n, argument, bar, z_bar, sums);
    else
      slopes_of<F, false, T, Bytes>(row, n, argument, bar, z_bar, sums);
  }
};
template <class T, int Bytes>
void slopes(const KernelRow<T>& row, int64_t n, const T* argument, T* bar, T* z_bar, bool parameters, double* sums) {
  dispatch<T, Bytes>(row.kind, SlopesOf<T, Bytes>{row, n, argument, bar, z_bar, parameters, sums});
}

template <class T, int Bytes>
int squares(int64_t n, T x_square, const T* z_squares, T* c) {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  using L = typename M::L;
  typename VectorOf<T, Bytes>::bits far{};  // minus their number, per lane
  int64_t j = 0;
  for (; j + M::lanes <= n; j += M::lanes) {
    const V z = *reinterpret_cast<const L*>(z_squares + j), p = *reinterpret_cast<L*>(c + j);
    const V r = (z - p) + (x_square - p);
    far += r * T(kCancelled) >= z + x_square;
    *reinterpret_cast<L*>(c + j) = r;
  }
  int64_t close = j;
  for (int l = 0; l < M::lanes; ++l) close += far[l];
  for (; j < n; ++j) {
    const T r = (z_squares[j] - c[j]) + (x_square - c[j]);
    close += !(r * T(kCancelled) >= z_squares[j] + x_square);
    c[j] = r;
  }
  return static_cast<int>(close);
}

// The sum of squares of x - z, which is stored in `out` if that is given. One lane adds runs of 16 terms.
template <bool Store, class T, int Bytes>
T squared_difference(int64_t n, const T* x, const T* z, T* out) {
  using M = Math<T, Bytes>;
  using V = typename M::V;
  using L = typename M::L;
  constexpr int kSums = 4, kRun = 16, kStep = kSums * M::lanes;
  V total{};
  int64_t d = 0;
  while (d + kStep <= n) {
    V sums[kSums] = {};
    for (int run = 0; run < kRun && d + kStep <= n; ++run, d += kStep)
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) {
        const int64_t at = d + s * M::lanes;
        const V apart = *reinterpret_cast<const L*>(x + at) - *reinterpret_cast<const L*>(z + at);
        if constexpr (Store) *reinterpret_cast<L*>(out + at) = apart;
        sums[s] += apart * apart;
      }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  double sum = 0;
  for (int l = 0; l < M::lanes; ++l) sum += static_cast<double>(total[l]);
  for (; d < n; ++d) {
    const T apart = x[d] - z[d];
    if constexpr (Store) out[d] = apart;
    sum += static_cast<double>(apart) * static_cast<double>(apart);
  }
  return static_cast<T>(sum);
}
template <class T, int Bytes>
T distance(int64_t n, const T* x, const T* z) {
  return squared_difference<false, T, Bytes>(n, x, z, nullptr);
}
template <class T, int Bytes>
T shift(int64_t n, const T* x, const T* origin, T* out) {
  return squared_difference<true, T, Bytes>(n, x, origin, out);
}

template <class T, int Bytes>
const KernelRows<T>* make_kernels() {
  static const KernelRows<T> table = {&values<T, Bytes>, &slopes<T, Bytes>, &squares<T, Bytes>, &distance<T, Bytes>,
                                      &shift<T, Bytes>};
  return &table;
}

}  // namespace
}  // namespace ssdd::cpu

// The kernel functions of an angle, for the CPU and the GPU: values, and slopes in the argument x.z, in |x|^2 and |z|^2,
// and in the hyper-parameters. gram.h has their formulas.
//
// M: the numbers and their functions: V (a vector, or one number), V all(T), root(V), acos(V), and kOverPi = 1 / pi.
// Row: what a function knows of its row: x = |x|^2, c[6] and order (below), and same, true if z is x itself.
// The includer defines SSDD_INLINE: how a function is declared there.
#pragma once
#include "tensor.h"

namespace ssdd {

namespace {

template <class V>
struct Slopes {
  V argument = {}, x = {}, z = {}, first = {}, second = {};
};

// The angle t of two vectors with product a and squared lengths x, z; kappa_0 = 1 - t / pi and
// kappa_1 = cos t + (sin t - t cos t) / pi, whose derivative in cos t is kappa_0. The derivative of kappa_0 is infinite
// at t = 0 and pi; it is defined as 0 there, and at a point 0, which has no angle: c = 0 and no slope in the product a.
template <class M>
struct Angle {
  using V = typename M::V;
  using T = typename M::T;
  V norms, over, c, sine, kappa_0, kappa_1;
  Angle() = default;
  SSDD_INLINE Angle(V a, V x, V z, bool same) {
    norms = M::root(x * z);
    over = norms == T(0) ? V{} : T(1) / (norms == T(0) ? M::all(1) : norms);
    c = a * over;
    c = c > T(1) ? M::all(1) : c < T(-1) ? M::all(-1) : c;  // NaN compares false and stays
    if (same) c = norms > T(0) ? M::all(1) : c;
    const V square = (T(1) - c) * (T(1) + c), angle = M::acos(c);
    sine = M::root(square);
    kappa_0 = T(1) - angle * T(M::kOverPi);
    kappa_1 = c + (sine - angle * c) * T(M::kOverPi);
  }
  SSDD_INLINE V slope_of_kappa_0() const {
    return sine > T(0) ? T(M::kOverPi) / (sine > T(0) ? sine : M::all(1)) : V{};
  }
  static SSDD_INLINE V over_or_0(V number, V square) {
    return square > T(0) ? number / (square > T(0) ? square : M::all(1)) : V{};
  }
};

// Order 0: kappa_0; order 1: |x| |z| kappa_1.
template <class M, class Row, int Order>
struct ArcCosine : M {
  using V = typename M::V;
  using T = typename M::T;
  using A = Angle<M>;
  static constexpr bool norms = true;
  const Row& f;
  SSDD_INLINE V value(V a, V z) const {
    const A angle(a, M::all(f.x), z, f.same);
    return Order == 0 ? angle.kappa_0 : angle.norms * angle.kappa_1;
  }
  template <bool Parameters>
  SSDD_INLINE Slopes<V> slopes(V a, V z) const {
    const V x = M::all(f.x);
    const A angle(a, x, z, f.same);
    Slopes<V> s;
    if constexpr (Order == 0) {
      const V slope = angle.slope_of_kappa_0(), half = slope * angle.c * T(-0.5);
      s.argument = slope * angle.over;
      s.x = A::over_or_0(half, x);
      s.z = A::over_or_0(half, z);
    } else {
      const V half = angle.norms * angle.sine * T(0.5 * M::kOverPi);
      s.argument = angle.norms > T(0) ? angle.kappa_0 : V{};
      s.x = A::over_or_0(half, x);
      s.z = A::over_or_0(half, z);
    }
    return s;
  }
};

// One layer's covariances, and the angle that follows from them.
template <class M>
struct Layer {
  typename M::V k, k_x, k_z, t;
  Angle<M> angle;
};

// Covariance k and tangent kernel t of a ReLU network: k = c0 x.z + c1, t = k, and for each of `order` hidden layers
// t <- t h kappa_0 + k', k <- k' = h sqrt(k_x k_z) kappa_1 + b^2, k_x <- h k_x + b^2, with
// h = w^2 / 2; gram.h has the numbers c.
// Layers: keeps the layers of one element until its slopes are computed: put(l, layer), and get(l).
template <class M, class Row, class Layers, bool Tangent>
struct Network : M {
  using V = typename M::V;
  using T = typename M::T;
  using A = Angle<M>;
  static constexpr bool norms = true;
  const Row& f;
  template <class Keep>
  SSDD_INLINE V pass(V a, V z, const Keep& keep) const {
    V k = a * f.c[0] + f.c[1], k_x = M::all(f.x) * f.c[0] + f.c[1], k_z = z * f.c[0] + f.c[1], t = k;
    for (int l = 0; l < f.order; ++l) {
      const A angle(k, k_x, k_z, f.same);
      keep(l, Layer<M>{k, k_x, k_z, t, angle});
      k = angle.norms * f.c[2] * angle.kappa_1 + f.c[1];
      t = t * (angle.kappa_0 * f.c[2]) + k;
      k_x = k_x * f.c[2] + f.c[1];
      k_z = k_z * f.c[2] + f.c[1];
    }
    return Tangent ? t : k;
  }
  SSDD_INLINE V value(V a, V z) const {
    return pass(a, z, [](int, const Layer<M>&) {});
  }
  template <bool Parameters>
  SSDD_INLINE Slopes<V> slopes(V a, V z) const {
    Layers layers(f);
    pass(a, z, [&](int l, const Layer<M>& layer) { layers.put(l, layer); });
    // The slopes of the result in k, k_x, k_z, t of the layer, and in h and b^2.
    V k = Tangent ? V{} : M::all(1), k_x{}, k_z{}, t = Tangent ? M::all(1) : V{}, h{}, b{};
    for (int l = f.order - 1; l >= 0; --l) {
      const Layer<M> layer = layers.get(l);
      const A& angle = layer.angle;
      k += t;  // t = ... + k
      V c{};
      if constexpr (Tangent) {
        c = t * layer.t * f.c[2] * angle.slope_of_kappa_0();
        h += t * layer.t * angle.kappa_0;
        t = t * angle.kappa_0 * f.c[2];
      }
      b += k + k_x + k_z;
      h += k * angle.norms * angle.kappa_1 + k_x * layer.k_x + k_z * layer.k_z;
      c += k * f.c[2] * angle.norms * angle.kappa_0;
      const V norms = (k * f.c[2] * angle.kappa_1 - c * angle.c * angle.over) * angle.norms * T(0.5);
      k_x = k_x * f.c[2] + A::over_or_0(norms, layer.k_x);
      k_z = k_z * f.c[2] + A::over_or_0(norms, layer.k_z);
      k = c * angle.over;
    }
    k += t;
    Slopes<V> s;
    s.argument = k * f.c[0];
    s.x = k_x * f.c[0];
    s.z = k_z * f.c[0];
    if constexpr (Parameters) {
      const V square = h * T(0.5) + (k * a + k_x * f.x + k_z * z) * f.c[3];
      s.first = square * f.c[4];
      s.second = (b + k + k_x + k_z) * f.c[5];
    }
    return s;
  }
};

}  // namespace
}  // namespace ssdd

// Functions of one vector for the kernel functions: exp, log, square root, acos. In an unnamed namespace, like
// everything in micro_tile.h.
#pragma once
#include "micro_exp.h"

namespace ssdd::cpu {
namespace {

template <class Number, int Bytes>
struct Math {
  using T = Number;
  using V = typename VectorOf<T, Bytes>::type;
  using L = typename VectorOf<T, Bytes>::loose;
  static constexpr int lanes = Bytes / sizeof(T);
  // Sums in double, one per lane.
  struct Wide {
    double v[lanes] = {};
    void add(V x) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) v[i] += static_cast<double>(x[i]);
    }
    double total() const {
      double sum = 0;
      for (int i = 0; i < lanes; ++i) sum += v[i];
      return sum;
    }
  };
  static constexpr double kOverPi = 0.318309886183790671538;

  static V all(T x) { return V{} + x; }
  static V infinity() { return all(static_cast<T>(__builtin_inf())); }

  // e^x for x <= 0.
  static V exp(V x) { return exp_vector<T, Bytes>(x); }

  static V root(V x) {
    V out;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) out[i] = sizeof(T) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
    return out;
  }

  // log x of normal x > 0, within 2 units in the last place of the result or of 1e-16 x. x = 2^n m with m in
  // [sqrt(1/2), sqrt(2)); with s = (m - 1) / (m + 1), log m = 2 (s + s^3 / 3 + s^5 / 5 + ...), where s^2 < 0.0295.
  static V log(V x) {
    using E = Exp<T>;
    typedef typename E::integer I __attribute__((vector_size(Bytes)));
    constexpr int terms = sizeof(T) == 4 ? 5 : 11;
    const auto infinite = x >= infinity();
    const I bits = reinterpret_cast<I>(x), root_half = reinterpret_cast<I>(all(T(0.70710678118654752)));
    const I n = (bits - root_half) >> E::mantissa;
    const V m = reinterpret_cast<V>(bits - (n << E::mantissa)), f = m - T(1), s = f / (m + T(1)), z = s * s;
    V p = all(T(1.0 / (2 * terms + 1)));
#pragma GCC unroll 16
    for (int k = terms - 1; k >= 1; --k) p = p * z + T(1.0 / (2 * k + 1));
    const V count = __builtin_convertvector(n, V), tail = s * z * p * T(2) + s * T(2);
    const V sum = count * E::ln2_high + (count * E::ln2_low + tail);
    return infinite ? x : x == x ? sum : x;
  }

  // acos c of c in [-1, 1], within 2 units in the last place: asin y = y + y z R(z), z = y^2, for |y| <= 1/2 (the
  // coefficients are those of fdlibm), and acos c = 2 asin sqrt((1 - c) / 2) beyond.
  static V acos(V c) {
    const V size = c < T(0) ? -c : c;
    const auto small = size <= T(0.5);
    const V z = small ? c * c : (T(1) - size) * T(0.5), y = small ? c : root(z);
    V p = all(T(3.47933107596021167570e-05));
    p = p * z + T(7.91534994289814532176e-04);
    p = p * z - T(4.00555345006794114027e-02);
    p = p * z + T(2.01212532134862925881e-01);
    p = p * z - T(3.25565818622400915405e-01);
    p = p * z + T(1.66666666666666657415e-01);
    V q = all(T(7.70381505559019352791e-02));
    q = q * z - T(6.88283971605453293030e-01);
    q = q * z + T(2.02094576023350569471e+00);
    q = q * z - T(2.40339491173441421878e+00);
    q = q * z + T(1);
    const V asin = y + y * (z * p / q), twice = asin * T(2);
    constexpr double half_pi = 1.57079632679489661923, pi = 3.14159265358979323846;
    return small ? T(half_pi) - asin : c < T(0) ? T(pi) - twice : twice;
  }
};

}  // namespace
}  // namespace ssdd::cpu

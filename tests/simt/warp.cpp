// Warp collectives: shuffles, votes, and a matrix product rounded as a tensor core rounds.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace simt::runtime {
namespace {

template <class Bits>
void shuffle(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    int32_t from;
    std::memcpy(&from, in + lane * in_stride + sizeof(Bits), sizeof(from));
    std::memcpy(out + lane * out_stride, in + static_cast<unsigned>(from) * in_stride, sizeof(Bits));
  }
}

void ballot(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  uint32_t votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    uint32_t vote;
    std::memcpy(&vote, in + lane * in_stride, sizeof(vote));
    votes |= vote << lane;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) std::memcpy(out + lane * out_stride, &votes, sizeof(votes));
}

// The unit ignores the low 13 bits of its inputs.
double truncated(uint32_t bits) {
  bits &= 0xffffe000u;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return static_cast<double>(x);
}

// As many columns at a time as one register of doubles has.
#ifdef __AVX512F__
constexpr unsigned kWide = 8;
#else
constexpr unsigned kWide = 4;
#endif
typedef double Doubles __attribute__((vector_size(8 * kWide)));
typedef int64_t Longs __attribute__((vector_size(8 * kWide)));
typedef float Floats __attribute__((vector_size(4 * kWide)));
typedef int32_t Ints __attribute__((vector_size(4 * kWide)));

Doubles size_of(Doubles x) { return (Doubles)((Longs)x & 0x7fffffffffffffff); }

Floats toward_zero(Doubles x) {
  const Floats nearest = __builtin_convertvector(x, Floats);
  // -1 where it is larger: the next float toward zero.
  const Longs larger = size_of(__builtin_convertvector(nearest, Doubles)) > size_of(x);
  return (Floats)((Ints)nearest + __builtin_convertvector(larger, Ints));
}

struct Operands {
  float d[4];
  uint32_t a[4], b[2];
};

// The sums of five or nine addends of some columns as a chip computes them: each is truncated toward zero to a multiple of
// 2^-24 of the largest one's power of two (a V100 keeps no bit more than a float's, an A100 one, an H100 two), and their sum
// to a float.
template <unsigned N>
Floats sum_aligned(const Doubles (&x)[N]) {
  Doubles largest = size_of(x[0]), plain = x[0];
  for (unsigned k = 1; k < N; ++k) {
    const Doubles size = size_of(x[k]);
    largest = largest < size ? size : largest;
    plain += x[k];
  }
  // The exponent is that of an ordinary double, whatever the floats were, or of a zero.
  Longs exponent = (Longs)largest >> 52;
  exponent = exponent < 24 ? 24 : exponent;
  const Doubles unit = (Doubles)((exponent - 24) << 52), inverse = (Doubles)((2046 + 24 - exponent) << 52);
  const Longs finite = (Longs)size_of(plain) < 0x7ff0000000000000;
  Ints whole = {};  // a conversion cuts toward zero
  for (unsigned k = 0; k < N; ++k) whole += __builtin_convertvector((Doubles)((Longs)(x[k] * inverse) & finite), Ints);
  const Longs sums = (Longs) __builtin_convertvector(whole, Doubles);
  return __builtin_convertvector(finite, Ints) ? toward_zero((Doubles)sums * unit)
                                               : __builtin_convertvector(plain, Floats);
}

// d [16, 8] += a [16, K] b [K, 8], with Group products and the running sum at a time: 4 of TF32 or 8 of 16-bit floats
// on an A100. An H100 adds twice as many, which are truncated half as often.
template <unsigned Group, unsigned K>
void sum_products(const double (&a)[16][K], const double (&b)[K][8], float (&d)[16][8]) {
  for (unsigned j = 0; j < 8; j += kWide) {
    Doubles columns[K];
    for (unsigned k = 0; k < K; ++k) std::memcpy(&columns[k], &b[k][j], sizeof(Doubles));
    for (unsigned i = 0; i < 16; ++i) {
      Floats sums;
      std::memcpy(&sums, &d[i][j], sizeof(sums));
      for (unsigned k0 = 0; k0 < K; k0 += Group) {
        Doubles addends[Group + 1];
        for (unsigned k = 0; k < Group; ++k) addends[k] = a[i][k0 + k] * columns[k0 + k];
        addends[Group] = __builtin_convertvector(sums, Doubles);
        sums = sum_aligned(addends);
      }
      std::memcpy(&d[i][j], &sums, sizeof(sums));
    }
  }
}

// The layout of the sums is the same for all shapes [16, 8].
void take_sums(const Operands& o, unsigned lane, float (&d)[16][8]) {
  for (unsigned i = 0; i < 4; ++i) d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = o.d[i];
}
void give_sums(const float (&d)[16][8], unsigned char* out, size_t out_stride) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    const float mine[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
    std::memcpy(out + lane * out_stride, mine, sizeof(mine));
  }
}

// m16n8k8
void mma_tf32(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  double a[16][8], b[8][8];
  float d[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    Operands o;
    std::memcpy(&o, in + lane * in_stride, sizeof(o));
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = truncated(o.a[i]);
    for (unsigned i = 0; i < 2; ++i) b[t + 4 * i][g] = truncated(o.b[i]);
    take_sums(o, lane, d);
  }
  sum_products<4>(a, b, d);
  give_sums(d, out, out_stride);
}

double value_of(uint16_t bits, bool half) {
  if (!half) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof(x));
    return static_cast<double>(x);
  }
  const uint64_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const uint64_t wide = (exponent == 31 ? 2047 : exponent + 1023 - 15) << 52 | mantissa << 42;
  double size;
  std::memcpy(&size, &wide, sizeof(size));
  if (exponent == 0) size = static_cast<double>(mantissa) * 0x1p-24;
  return bits & 0x8000u ? -size : size;
}

// m16n8k16, two elements of neighbouring k in a register, the first in its low half
template <bool IsHalf>
void mma_16(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  double a[16][16], b[16][8];
  float d[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    Operands o;
    std::memcpy(&o, in + lane * in_stride, sizeof(o));
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned e = 0; e < 2; ++e) {
      for (unsigned i = 0; i < 4; ++i)
        a[g + 8 * (i % 2)][2 * t + e + 8 * (i / 2)] = value_of(static_cast<uint16_t>(o.a[i] >> 16 * e), IsHalf);
      for (unsigned i = 0; i < 2; ++i)
        b[2 * t + e + 8 * i][g] = value_of(static_cast<uint16_t>(o.b[i] >> 16 * e), IsHalf);
    }
    take_sums(o, lane, d);
  }
  sum_products<8>(a, b, d);
  give_sums(d, out, out_stride);
}

// Lane 8 m + r passes row r of matrix m.
void load_matrices(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  for (unsigned lane = 0; lane < kWarp; ++lane)
    for (unsigned m = 0; m < 4; ++m)
      std::memcpy(out + lane * out_stride + 4 * m, in + (8 * m + lane / 4) * in_stride + lane % 4 * 4, 4);
}
void load_matrices_transposed(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  for (unsigned lane = 0; lane < kWarp; ++lane)
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned e = 0; e < 2; ++e)
        std::memcpy(out + lane * out_stride + 4 * m + 2 * e, in + (8 * m + lane % 4 * 2 + e) * in_stride + lane / 4 * 2,
                    2);
}

}  // namespace

Collective shuffle_op(size_t size) { return size == 8 ? &shuffle<uint64_t> : &shuffle<uint32_t>; }
const Collective ballot_op = &ballot;
const Collective mma_tf32_op = &mma_tf32;
const Collective mma_bf16_op = &mma_16<false>;
const Collective mma_f16_op = &mma_16<true>;
const Collective load_matrices_op = &load_matrices;
const Collective load_matrices_transposed_op = &load_matrices_transposed;

}  // namespace simt::runtime

// What a warp computes when its lanes meet: shuffles, votes, and a matrix product rounded as a tensor core rounds.
#include <cfenv>
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

float toward_zero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) && std::isfinite(x) ? std::nextafter(nearest, 0.0f)
                                                                                    : nearest;
}

// m16n8k8; the sum is cut to a float toward zero after every four products, at least as often as on any chip.
void mma_tf32(const unsigned char* in, size_t in_stride, unsigned char* out, size_t out_stride) {
  struct Operands {
    float d[4];
    uint32_t a[4], b[2];
  };
  double a[16][8], b[8][8];
  float d[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    Operands o;
    std::memcpy(&o, in + lane * in_stride, sizeof(o));
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      a[g + 8 * (i % 2)][t + 4 * (i / 2)] = truncated(o.a[i]);
      d[g + 8 * (i / 2)][2 * t + i % 2] = o.d[i];
    }
    for (unsigned i = 0; i < 2; ++i) b[t + 4 * i][g] = truncated(o.b[i]);
  }
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 8; ++j)
      for (unsigned k0 = 0; k0 < 8; k0 += 4) {
        double sum = static_cast<double>(d[i][j]);
        for (unsigned k = k0; k < k0 + 4; ++k) sum += a[i][k] * b[k][j];
        d[i][j] = toward_zero(sum);
      }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    const float mine[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
    std::memcpy(out + lane * out_stride, mine, sizeof(mine));
  }
}

}  // namespace

Meeting shuffle_op(size_t size) {
  return size == 8 ? &shuffle<uint64_t> : &shuffle<uint32_t>;
}
const Meeting ballot_op = &ballot;
const Meeting mma_tf32_op = &mma_tf32;

}  // namespace simt::runtime

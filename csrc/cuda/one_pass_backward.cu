// The backward of the loss of a linear kernel in one launch, from the parts that the forward left (one_pass.cuh). The
// queries are not read.
//
//   abar = gamma sum of K_qs^T R   U = A^-1 abar   W = alpha^T X_s   N = gamma M - U^T X_s
//   Xbar_s = scale [alpha N - U W + 2 c lbar X_s]   Xbar_q = gamma scale R W
//
// Mapping: 256 threads per block, one block per strip of columns of X_s. Every block adds up its columns of M and all of
// K_qs^T R, in the order of the parts, and solves for U, two columns per warp: that takes less time than a launch of its
// own. Its columns of X_s, W and N stay in shared memory. 4 x 4 elements of a gradient per thread. The first strip also
// writes U and the gradients of the hyper-parameters.
// Traffic: X_s, M and R once, per strip L, alpha and the moments of all parts, each gradient written once.
// FLOPs: additions of all parts, 2 S^2 C per strip, 4 S D C for W and N, 4 S D C for Xbar_s, 2 Q D C for Xbar_q.
// Floor on an H100 for S=10 Q=1024 D=2048 C=10: 10.5 MB of parts from L2, about 2 us. Counted per block: 20 pivots of a
// solve of 60 cycles each, and four trips to L2.
// Other path: the products of krr_backward.cu, chosen by ssdd_ext/plan.
#include "one_pass.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kWarps = kBlockThreads / 32, kQueries = 64, kMostColumns = 256;

// Rows of so many columns. Four rows apart, columns lie in other banks.
constexpr int pitch_of(int columns) { return columns + 4; }

struct FinishRoom {
  int pitch, odd;          // the pitch of L
  float *l, *inverse;      // inverse: 1 / L(i, i)
  float *alpha, *minus_u;  // [S, targets]
  float* u;                // [S, targets], with an odd pitch
  float *moment, *r_sums;  // the sums of the parts, each in whole groups
  float *x, *w, *n;        // [S, columns], [targets, columns]
  float* r;                // [kQueries, targets]
  SIMT_DEVICE FinishRoom(simt::Shared& shared, const OnePass& of, int columns) {
    pitch = pitch_of(columns);
    odd = of.s | 1;
    l = shared.take<float>(of.s * odd);
    inverse = shared.take<float>(of.s);
    alpha = shared.take<float>((of.s + 3) / 4 * 4 * of.pitch);
    minus_u = shared.take<float>((of.s + 3) / 4 * 4 * of.pitch);
    u = shared.take<float>(of.s * (of.targets | 1));
    moment = shared.take<float>(static_cast<int>(of.sums - of.moment));
    r_sums = shared.take<float>(static_cast<int>(of.part - of.sums));
    x = shared.take<float>(of.s * pitch);
    w = shared.take<float>(of.targets * pitch);
    n = shared.take<float>(of.targets * pitch);
    r = shared.take<float>(kQueries * of.pitch);
  }
};

// Adds up the moments, the sums of R and columns `first`.. of M over the parts, times gamma. Each warp has one group of 32
// numbers at a time: 8 lanes along it, 4 parts side by side.
SIMT_DEVICE void add_parts(const OnePass& of, const float* parts, int first, int columns, float gamma,
                           const FinishRoom& room) {
  const int across = columns / kGroup, j = simt::lane() % 8 * 4;
  const int moments = static_cast<int>(of.sums - of.moment), sums = static_cast<int>(of.part - of.sums);
#pragma unroll 1
  for (int unit = simt::warp(); unit < (moments + sums) / kGroup + of.c * across; unit += kWarps) {
    const int in_m = unit - (moments + sums) / kGroup, at = unit * kGroup;
    const int group = in_m < 0 ? 0 : in_m, row = quotient(group, across), column = (group - row * across) * kGroup;
    const int64_t offset = in_m < 0 ? of.moment + at : row * of.width + first + column;
    float* const to = in_m >= 0      ? room.n + row * room.pitch + column
                      : at < moments ? room.moment + at
                                     : room.r_sums + at - moments;
    const float* from = parts + offset + simt::lane() / 8 * of.part + j;
    float total[4] = {};
#pragma unroll 4
    for (int p = simt::lane() / 8; p < (of.parts + 3) / 4 * 4; p += 4, from += 4 * of.part) {
      const auto v = simt::load_vector_if<4>(p < of.parts, from);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] += v.v[e];
    }
    simt::Vector<float, 4> v;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      total[e] += simt::shuffle_xor(total[e], 8);
      total[e] += simt::shuffle_xor(total[e], 16);
      v.v[e] = gamma * total[e];
    }
    simt::put_vector_if<4>(simt::lane() < 8, to + j, v);
  }
}

// Solves for U and leaves -U in shared memory; NaN if the problem failed.
SIMT_DEVICE void solve_for_u(const FinishArgs& a, int64_t b, bool bad, float* grad_y_s, const FinishRoom& room) {
  const OnePass& of = a.of;
  // `turn` 1: behind the solve.
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
#pragma unroll 1
    for (int i = simt::warp(); i < of.s; i += kWarps)
#pragma unroll 1
      for (int c = simt::lane(); c < of.targets; c += 32) {
        float* const u = room.u + i * (of.targets | 1) + c;
        if (turn == 0) {
          simt::put(u, simt::get_if(c < of.c, room.moment + i * of.c + c, 0.0f));
        } else {
          const float v = simt::get(u);
          simt::put(room.minus_u + i * of.pitch + c, -v);
          if (grad_y_s) simt::store_if(c < of.c, grad_y_s + (b * of.s + i) * of.c + c, v);
        }
      }
    simt::barrier();
    if (turn == 0) solve_targets<kOnePassSupport / 32>(of, room.l, room.inverse, bad, room.u);
    simt::barrier();
  }
}

// The gradients to (scale, bias, v), as hyper_kernel of krr_backward.cu.
SIMT_DEVICE void write_hyper(const FinishArgs& a, int64_t b, const HyperParameters<float>& hyper, double lambda_bar,
                             const FinishRoom& room) {
  const OnePass& of = a.of;
  double product = 0;
#pragma unroll 1
  for (int c = simt::thread(); c < of.c; c += kBlockThreads) {
    double alpha = 0, u = 0;
#pragma unroll 1
    for (int i = 0; i < of.s; ++i) {
      alpha += static_cast<double>(simt::get(room.alpha + i * of.pitch + c));
      u -= static_cast<double>(simt::get(room.minus_u + i * of.pitch + c));
    }
    product += (static_cast<double>(simt::get(room.r_sums + c)) - u) * alpha;
  }
  const double bias_bar = block_sum<kBlockThreads>(product);
  if (simt::thread() != 0) return;
  const double trace = a.aux[3 * b],
               lambda = static_cast<double>(a.aux[3 * b + 1]) + static_cast<double>(a.aux[3 * b + 2]);
  const double scale = hyper.first, bias = hyper.bias, order = of.s;
  const double through = ridge_trace_slope(a.ridge, a.detach, static_cast<double>(hyper.ridge), of.s) * lambda_bar;
  const double bad = failed(a.aux, b) ? simt::nan<double>() : 0;
  float* const out = a.grad_hyper + b * a.scalars.hyper.count;
  const double by_scale = -lambda * lambda_bar - bias * bias_bar + through * (trace - bias * order);
  out[0] = static_cast<float>(by_scale * simt::reciprocal(scale) + bad);
  out[1] = static_cast<float>(bias_bar + through * order + bad);
  out[a.scalars.hyper.count - 1] = static_cast<float>(lambda_bar * ridge_slope(a.ridge, trace, of.s) + bad);
}

// The rows of a gradient: factor [left N + right W + more x], or factor right W if there is no `left`. Rows of left and
// right are padded to whole units of 4.
struct Rows {
  int count;
  float factor;
  const float *left, *right;
  float more;
  float* out;
};

// Writes the columns of this strip. A thread has 4 rows and 4 columns, which are apart, so that neighbouring lanes write
// neighbouring columns.
SIMT_DEVICE void write_rows(const OnePass& of, const FinishRoom& room, int first, int columns, const Rows& rows) {
  const int across = columns / 4, units = across * ((rows.count + 3) / 4);
#pragma unroll 1
  for (int unit = simt::thread(); unit < units; unit += kBlockThreads) {
    const int line = quotient(unit, across), j = unit - line * across, i = line * 4;
    float sums[4][4] = {};
#pragma unroll 1
    for (int turn = rows.left ? 0 : 1; turn < 2; ++turn) {
      const float* y = (turn ? rows.right : rows.left) + i * of.pitch;
      const float* w = (turn ? room.w : room.n) + j;
#pragma unroll 1
      for (int c = 0; c < of.targets; c += 4, y += 4) {
        float y4[4][4];
#pragma unroll
        for (int r = 0; r < 4; ++r) get_row(y + r * of.pitch, y4[r]);
#pragma unroll
        for (int u = 0; u < 4; ++u, w += room.pitch)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float v = simt::get(w + e * across);
#pragma unroll
            for (int r = 0; r < 4; ++r) sums[r][e] = simt::fma(y4[r][u], v, sums[r][e]);
          }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const bool exists = i + r < rows.count, adds = rows.left && exists;
      const float* const x = room.x + (i + r) * room.pitch + j;
      float* const to = rows.out + static_cast<int64_t>(i + r) * of.d + first + j;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float v = sums[r][e] + rows.more * simt::get_if(adds, x + e * across, 0.0f);
        simt::store_if(exists && first + j + e * across < of.d, to + e * across, rows.factor * v);
      }
    }
  }
}

SIMT_KERNEL_MIN(kBlockThreads, 3) void finish_kernel(FinishArgs a) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  SIMT_SHARED(double, lambda_bars, 1);
  const OnePass& of = a.of;
  const int64_t b = simt::block().x / a.strips;
  const int strip = simt::block().x % a.strips, first = strip * a.columns;
  const int columns = of.width - first < a.columns ? of.width - first : a.columns;
  const FinishRoom room(shared, of, a.columns);
  ScalarArgs<float> of_linear = a.scalars;  // known to the compiler
  of_linear.kernel = KernelKind::linear;
  of_linear.parameters = 2;
  const HyperParameters<float> hyper(of_linear, b);
  const float scale = hyper.first + hyper.bad, gamma = hyper.gamma;
  const bool bad = failed(a.aux, b);

  // Load X_s of this strip, L and alpha; add up the parts.
  load_rows(a.x_s[b], a.vectors, of.s, of.s, first, columns, of.d, room.x, room.pitch);
  simt::copy_commit();
  const float* const factor = a.factor + b * of.s * of.s;
#pragma unroll 1
  for (int i = simt::warp(); i < of.s; i += kWarps)
#pragma unroll 1
    for (int j = simt::lane(); j < whole_groups(i + 1); j += 32)
      simt::put_if(j <= i, room.l + i * room.odd + j, simt::load_if(j <= i, factor + i * of.s + j, 0.0f));
  load_targets(of, {a.coef + b * of.s * of.c, of.c, 1}, of.s, (of.s + 3) / 4 * 4, room.alpha, of.pitch);
  const float* const parts = a.parts + b * of.parts * of.part;
  add_parts(of, parts, first, columns, gamma, room);
#pragma unroll 1
  for (int e = of.c * room.pitch + simt::thread(); e < of.targets * room.pitch; e += kBlockThreads)
    simt::put(room.n + e, 0.0f);
  simt::barrier();
#pragma unroll 1
  for (int i = simt::thread(); i < of.s; i += kBlockThreads)
    simt::put(room.inverse + i, simt::reciprocal(simt::get(room.l + i * (room.odd + 1))));
  simt::barrier();

  // U and lbar.
  simt::copy_wait<0>();
  solve_for_u(a, b, bad, strip == 0 ? a.grad_y_s : nullptr, room);
  if (!a.grad_x_s && !a.grad_x_q && !(a.grad_hyper && strip == 0)) return;  // the same for the whole block
  double product = 0;
#pragma unroll 1
  for (int i = simt::warp(); i < of.s; i += kWarps)
#pragma unroll 1
    for (int c = simt::lane(); c < of.c; c += 32)
      product += static_cast<double>(simt::get(room.minus_u + i * of.pitch + c)) *
                 static_cast<double>(simt::get(room.alpha + i * of.pitch + c));
  product = block_sum<kBlockThreads>(product);
  if (simt::thread() == 0) simt::put(lambda_bars, product);
  simt::barrier();
  const double lambda_bar = simt::get(lambda_bars);
  if (a.grad_hyper && strip == 0) write_hyper(a, b, hyper, lambda_bar, room);
  if (!a.grad_x_s && !a.grad_x_q) return;

  // W and N.
#pragma unroll 1
  for (int turn = 0; turn < (a.grad_x_s ? 2 : 1); ++turn)
    add_outer(of, turn ? room.minus_u : room.alpha, of.s, room.x, columns, room.pitch, turn == 0,
              turn ? room.n : room.w);
  simt::barrier();
  // The gradient to X_s, and then to tiles of queries. alpha and W of a failed problem are NaN.
  const double through = ridge_trace_slope(a.ridge, a.detach, static_cast<double>(hyper.ridge), of.s) * lambda_bar;
#pragma unroll 1
  for (int q = a.grad_x_s ? -kQueries : 0; q < (a.grad_x_q ? of.q : 0); q += kQueries) {
    Rows rows{of.s, scale, room.alpha, room.minus_u, static_cast<float>(2 * through), a.grad_x_s};
    if (q < 0) {
      rows.out += b * of.s * of.d;
    } else {
      const Batch<const float>& r = a.r;
      const int count = of.q - q < kQueries ? of.q - q : kQueries;
      simt::barrier();  // the rows before have been read
      load_targets(of, {r.p + b * r.bs + q * r.rs, r.rs, r.cs}, count, kQueries, room.r, of.pitch);
      simt::barrier();
      rows = {count, gamma * scale, nullptr, room.r, 0, a.grad_x_q + (b * of.q + q) * of.d};
    }
    write_rows(of, room, first, columns, rows);
  }
}

}  // namespace

int one_pass_backward_bytes(const OnePass& of, int columns) {
  const int rows = (of.s + 3) / 4 * 4;
  const int64_t sums = of.part - of.moment;
  const int64_t arrays = of.s * ((of.s | 1) + (of.targets | 1) + 1) + (2 * rows + kQueries) * of.pitch + sums +
                         (of.s + 2 * of.targets) * pitch_of(columns);
  return static_cast<int>(arrays) * 4 + 11 * 16;  // each array begins at a multiple of 16
}

void one_pass_backward(const KrrBackwardArgs<float>& a, const ScalarArgs<float>& scalars, simt::Stream stream) {
  FinishArgs args{};
  const OnePass of = args.of = one_pass_sizes(a.shape);
  args.x_s = {a.x_s, a.s_element};
  args.vectors = has_vectors(args.x_s);
  args.r = a.e;
  args.scalars = scalars;
  args.ridge = a.shape.ridge;
  args.detach = a.shape.detach;
  args.factor = a.factor;
  args.coef = a.coef;
  args.aux = a.aux;
  args.parts = a.parts;
  args.grad_x_s = a.grad_x_s;
  args.grad_y_s = a.grad_y_s;
  args.grad_x_q = a.grad_x_q;
  args.grad_hyper = a.grad_hyper;
  // As many strips as fill the chip: fewer if a block's solve takes long.
  const int64_t chip = of.s <= kOnePassFactors ? kChip : kProcessors;
  const int groups = of.width / kGroup;
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(groups, chip / std::max<int64_t>(1, a.shape.batch)));
  args.columns = std::min<int>(kMostColumns, static_cast<int>((groups + wanted - 1) / wanted) * kGroup);
  while (args.columns > kGroup && one_pass_backward_bytes(of, args.columns) > simt::shared_limit() - kStaticBytes)
    args.columns -= kGroup;
  args.strips = (of.width + args.columns - 1) / args.columns;
  simt::launch(&finish_kernel, {static_cast<unsigned>(a.shape.batch * args.strips)}, kBlockThreads,
               one_pass_backward_bytes(of, args.columns), stream, args);
}

}  // namespace ssdd::cuda

// KRR backward of every kernel but the linear one on the GPU: G = Kbar dk/da of the argument a, and from it the
// gradients to the points. krr.h has the formulas and the two forms of the last step. There is one plan, the dense one.
//
// Launches with the gradients to X_s and Y_s: 9 and 7 per chunk of K_qs, two more for X_q, one for the hyper-parameters,
// two for a factor larger than one block; kernels of an angle one more for each set of squared lengths, and no mirror.
// The two forms are a pair of launches, each of which skips the problems of the other form. Kernels of the 1-norm have
// one form, no shift and no sums: 6 and 4, one more for X_q.
// Mapping: as in product.cuh and factor.cuh. slope_kernel and shift_kernel: one block per row. rbf_hyper_kernel: one
// thread per problem.
// Traffic: as in krr_backward.cu with K_qs and Kbar_qs. slope_kernel reads two elements and writes one per element of K;
// shift_kernel reads and writes one per element, and one number per row.
// FLOPs: 2 Q S C twice, 2 S^2 C, 2 S^2 D, 2 Q S D; slope_kernel about 8 per element.
// Floor on an H100: that of the products; slope_kernel 12 bytes per element / 3.35 TB/s.
// Other path: none; planned PyTorch.
#include "backward_pass.cuh"
#include "join.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;

// One of a problem's two matrices, K_ss or a chunk of K_qs, and where its slopes and their sums go.
template <class T>
struct SlopeArgs {
  int64_t rows, columns;
  bool square;  // K_ss: only j > i of k is read, since K lies above the factor's diagonal; G is 0 on the diagonal
  const T* k;
  int64_t k_bs;
  T* k_bar;  // [batch, rows, columns], Kbar before, G after
  int64_t bar_bs;
  const T* scalars;
  T *row_sums, *row_parts;  // [batch, rows] each: sums of G, and parts of the total
  int* counters;            // [batch], all 0, before and after
  T* total;                 // [batch], sum_ij Kbar dk/dl
  bool add;                 // the sum is added to the value in `total`
};

// Turns one row of Kbar per block into G = Kbar dk/dr, and writes the sum of the row and the total of the problem.
// RBF: dk/dr = -k / (2 l^2), dk/dl = -2 k log k / l.
template <class T>
SIMT_KERNEL(kThreads)
void slope_kernel(SlopeArgs<T> a) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / a.rows, i = simt::block().x % a.rows;
  const T* const k = a.k + b * a.k_bs + i * a.columns;
  T* const k_bar = a.k_bar + b * a.bar_bs + i * a.columns;
  const T l = a.scalars[b * kScalars + kLengthscale], map = a.scalars[b * kScalars + kMap];
  double sum = 0, part = 0;
  for (int64_t j = simt::thread(); j < a.columns; j += kThreads) {
    if (a.square && j <= i) {
      if (j == i) simt::store(k_bar + j, T(0));
      continue;
    }
    const T value = simt::load(k + j), bar = simt::load(k_bar + j);
    const T log_slope = value > T(0) ? T(-2) * value * simt::logarithm(value) / l : T(0);
    part += static_cast<double>(bar) * static_cast<double>(log_slope);
    const T g = bar * value * map;
    sum += static_cast<double>(g);
    simt::store(k_bar + j, g);
  }
  sum = block_sum<kThreads>(sum);
  if (simt::thread() == 0) a.row_sums[simt::block().x] = static_cast<T>(sum);
  simt::barrier();  // the sums of the warps are read
  if (!sum_of_blocks<kThreads>(part, i, a.rows, a.row_parts + b * a.rows, a.counters + b) || simt::thread() != 0)
    return;
  a.total[b] = static_cast<T>(part + (a.add ? static_cast<double>(a.total[b]) : 0.0));
}

template <class T>
SIMT_KERNEL(kThreads)
void rbf_hyper_kernel(int64_t batch, int64_t s, RidgeKind ridge, const T* scalars, const T* aux, const T* parameter,
                      int count, T* out) {
  simt::wait_for_earlier_launches();
  const int64_t b = static_cast<int64_t>(simt::block().x) * kThreads + simt::thread();
  if (b >= batch) return;
  const T bad = failed(aux, b) ? simt::nan<T>() : T(0);
  for (int i = 0; i < count - 1; ++i) out[b * count + i] = parameter[i * batch + b] + bad;
  out[b * count + count - 1] = static_cast<T>(static_cast<double>(scalars[b * kScalars + kLambdaBar]) *
                                              ridge_slope(ridge, static_cast<double>(aux[3 * b]), s)) +
                               bad;
}

// Where the reach of a problem's points goes: of the support points, which is stored, or of these and some queries.
template <class T>
struct Reach {
  const T* scalars;
  T *support, *parts;  // [batch], [batch, rows]
  int* counters;
  int32_t *near, *far;
  bool queries, always_far;
};

// Shifts the points to a common origin, so that points far from 0 cancel before the products. One block per row. It
// also finds how far they reach from the origin; the last of a problem's blocks then chooses between the two forms of
// krr.h.
template <class T>
SIMT_KERNEL(kThreads)
void shift_kernel(int64_t rows, int64_t d, Source<T> x, Source<T> origin, T* out, Reach<T> reach) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x / rows, i = simt::block().x % rows;
  double most = 0;
  for (int64_t j = simt::thread(); j < d; j += kThreads) {
    const T v = x[b](i, j) - origin[b](0, j);
    const double size = static_cast<double>(v < T(0) ? -v : v);
    most = size > most ? size : most;
    simt::store(out + (b * rows + i) * d + j, v);
  }
  most = block_most<kThreads>(most);
  T* const parts = reach.parts + b * rows;
  if (simt::thread() == 0) simt::store(parts + i, static_cast<T>(most));
  if (!last_to_arrive(reach.counters + b, rows)) return;
  most = 0;
  for (int64_t e = simt::thread(); e < rows; e += kThreads) {
    const double part = static_cast<double>(simt::load(parts + e));
    most = part > most ? part : most;
  }
  most = block_most<kThreads>(most);
  if (simt::thread() != 0) return;
  if (reach.queries)
    most = static_cast<double>(reach.support[b]) > most ? static_cast<double>(reach.support[b]) : most;
  else
    reach.support[b] = static_cast<T>(most);
  const double length = static_cast<double>(reach.scalars[b * kScalars + kLengthscale]);
  const bool far = reach.always_far || most * simt::square_root(static_cast<double>(d)) > kReach * length;
  reach.far[b] = far ? 1 : 0;
  reach.near[b] = far ? 0 : 1;
}

template <class T>
class KernelsBackward : BackwardPass<T> {
  using Base = BackwardPass<T>;

 public:
  using Base::Base;

  void run_all() {
    set_scalars(this->scalars(), stream);
    lengths(x_s, s.s, true);
    alpha_bar_dense();
    solve(s.s, u, a.grad_x_s || a.grad_hyper ? w.pack : nullptr);
    const bool distance = of_distance(s.kernel);
    const Points support = shift(x_s, s.s, w.shifted_s, false);
    bool counted = false;
    if (a.grad_x_s || a.grad_hyper) {
      run(two_k_bar());
      const Batch<const T> arguments = support_arguments();
      slopes(s.s, arguments.p, arguments.bs, w.k_bar, s.s * s.s, true, counted);
      counted = true;
      if (!of_norms(s.kernel)) mirror(s.batch, s.s, w.k_bar, stream);
      if (a.grad_x_s && !distance) {
        write_products(make(s.s, s.d, s.s, dense(w.k_bar, s.s, s.s), x_s, a.grad_x_s, s.s * s.d), x_s, w.row_sums, s.s,
                       false);
      } else if (a.grad_x_s) {
        if (!of_one_norm(s.kernel)) sums(s.s, s.s, dense(w.k_bar, s.s, s.s), column_row(0), w.width);
        differences(s.s, s.s, dense(w.k_bar, s.s, s.s), support, column_row(0), w.width, support, a.grad_x_s, s.s * s.d,
                    false);
      }
    }
    const bool needs_queries = a.grad_x_s || a.grad_x_q || a.grad_hyper;
    for (int64_t q0 = 0; needs_queries && q0 < s.q; q0 += s.chunk) {
      const int64_t rows = std::min(s.chunk, s.q - q0);
      const Batch<const T> k = k_chunk(q0, rows);
      run(bar_chunk(q0, rows));
      Batch<const T> arguments = k;
      if (a.kept) lengths(from(x_q, q0), rows, false);
      if (keeps_argument(s.kernel)) arguments.p = a.kept ? a.kept + (s.q + q0) * s.s : w.arguments;
      slopes(rows, arguments.p, arguments.bs, w.chunk_bar, bar().bs, false, counted);
      counted = true;
      if (!a.grad_x_s && !a.grad_x_q) continue;
      if (!distance) {
        if (a.grad_x_s) {
          if (of_norms(s.kernel)) sums(rows, s.s, norm_bar(), column_row(0), w.width);
          write_products(make(s.s, s.d, rows, t(bar()), from(x_q, q0), a.grad_x_s, s.s * s.d), x_s, column_row(0),
                         w.width, true);
        }
        if (a.grad_x_q)
          write_products(make(rows, s.d, s.s, bar(), x_s, a.grad_x_q + q0 * s.d, s.q * s.d), from(x_q, q0), w.row_sums,
                         rows, false);
        continue;
      }
      const Points queries = shift(from(x_q, q0), rows, w.shifted_q, true);
      if (a.grad_x_s) {
        if (!of_one_norm(s.kernel)) sums(rows, s.s, bar(), column_row(0), w.width);
        differences(s.s, rows, t(bar()), queries, column_row(0), w.width, support, a.grad_x_s, s.s * s.d, true);
      }
      if (a.grad_x_q)
        differences(rows, s.s, bar(), support, w.row_sums, rows, queries, a.grad_x_q + q0 * s.d, s.q * s.d, false);
    }
    if (a.grad_hyper)
      simt::launch(&rbf_hyper_kernel<T>, {static_cast<unsigned>((s.batch + kThreads - 1) / kThreads)}, kThreads, 0,
                   stream, s.batch, s.s, s.ridge, w.scalars, a.aux, w.parameter, a.hyper.count, a.grad_hyper);
  }

 private:
  using Base::a;
  using Base::alpha_bar_dense;
  using Base::bar;
  using Base::bar_chunk;
  using Base::column_row;
  using Base::counters;
  using Base::dense;
  using Base::from;
  using Base::k_chunk;
  using Base::kept_bs;
  using Base::lengths;
  using Base::make;
  using Base::run;
  using Base::s;
  using Base::scalar;
  using Base::solve;
  using Base::stream;
  using Base::sums;
  using Base::t;
  using Base::two_k_bar;
  using Base::u;
  using Base::w;
  using Base::write;
  using Base::x_q;
  using Base::x_s;

  // The arguments of K_ss: kept by the forward, or formed again.
  Batch<const T> support_arguments() {
    if (s.kernel == KernelKind::rbf) return {a.factor, s.s * s.s, s.s, 1};
    if (a.kept) return {a.kept + 2 * s.q * s.s, kept_bs(), s.s, 1};
    Product<T> p = make(s.s, s.s, s.d, x_s, t(x_s), w.arguments_s, s.s * s.s);
    p.triangle = Triangle::both;
    apply_kernel(p, s.kernel, w.scalars);
    run(p);
    return {w.arguments_s, s.s * s.s, s.s, 1};
  }

  // Writes the gradient to the points x of a kernel of x.z. sums: the gradients to their squared lengths, if the kernel
  // is one of these too.
  void write_products(Product<T> p, const Source<T>& x, const T* sums, int64_t sums_bs, bool accumulate) {
    if (of_norms(s.kernel)) {
      p.add = x;
      p.add_factor = 2;
      p.add_row = sums;
      p.add_row_bs = sums_bs;
    }
    write(p, nullptr, accumulate);
  }
  // Kbar_qs df/d|z|^2 of a chunk. Its memory is that of K_qs, which the backward has read by then.
  Batch<const T> norm_bar() const { return {w.chunk, s.chunk * s.s, s.s, 1}; }

  // Points as passed in, and relative to the first support point.
  struct Points {
    Source<T> original, shifted;
  };
  Points shift(const Source<T>& x, int64_t rows, T* out, bool queries) {
    Reach<T> reach{};
    reach.scalars = w.scalars;
    reach.support = w.reach;
    reach.parts = w.row_parts;
    reach.counters = counters();
    reach.near = w.near;
    reach.far = w.far;
    reach.queries = queries;
    reach.always_far = s.kernel == KernelKind::matern_1;
    if (rows > 0 && of_distance(s.kernel) && !of_one_norm(s.kernel))
      simt::launch(&shift_kernel<T>, {static_cast<unsigned>(s.batch * rows)}, kThreads, 0, stream, rows, s.d, x, x_s,
                   out, reach);
    return {x, dense(out, rows, s.d)};
  }

  void slopes(int64_t rows, const T* k, int64_t k_bs, T* bar, int64_t bar_bs, bool square, bool add) {
    if constexpr (sizeof(T) == 8)
      if (of_norms(s.kernel))
        return slope_angles({this->angles(rows, square, k, k_bs), s.batch, rows, bar, bar_bs, w.chunk, s.chunk * s.s,
                             w.row_sums, w.row_parts, counters(), add, w.parameter},
                            stream);
    if (keeps_argument(s.kernel))
      return slope_arguments<T>({s.batch, rows, s.s, s.kernel, s.order, w.scalars, k, k_bs, bar, bar_bs, square,
                                 w.row_sums, w.row_parts, counters(), add, w.parameter},
                                stream);
    SlopeArgs<T> args{};
    args.rows = rows;
    args.columns = s.s;
    args.square = square;
    args.k = k;
    args.k_bs = k_bs;
    args.k_bar = bar;
    args.bar_bs = bar_bs;
    args.scalars = w.scalars;
    args.row_sums = w.row_sums;
    args.row_parts = w.row_parts;
    args.counters = counters();
    args.total = w.parameter;
    args.add = add;
    simt::launch(&slope_kernel<T>, {static_cast<unsigned>(s.batch * rows)}, kThreads, 0, stream, args);
  }

  // Computes c (+)= sum_j g_ij sign(x_i - z_j) for 1-norms, else 2 sum_j g_ij (x_i - z_j) in each problem's form: as
  // 2 (rowsum(G) x - G z), or one difference at a time. Both forms are launched, since the host does not know which
  // problems have which form; blocks of problems in the other form return at once.
  void differences(int64_t rows, int64_t inner, const Source<T>& g, const Points& z, const T* row_sum, int64_t sum_bs,
                   const Points& x, T* c, int64_t c_bs, bool accumulate) {
    if (of_one_norm(s.kernel)) {
      Product<T> p = make(rows, s.d, inner, g, z.original, c, c_bs);
      p.alpha = -1;
      p.inner = Inner::sign;
      p.from = x.original;
      p.accumulate = accumulate;
      p.lambda_of = a.aux + 1;
      return run(p);
    }
    Product<T> p = make(rows, s.d, inner, g, z.shifted, c, c_bs);
    p.alpha = -2;
    p.accumulate = accumulate;
    p.lambda_of = a.aux + 1;
    p.active = w.near;
    p.add = x.shifted;
    p.add_factor = 2;
    p.add_row = row_sum;
    p.add_row_bs = sum_bs;
    run(p);
    p = make(rows, s.d, inner, g, z.original, c, c_bs);
    p.alpha = -2;
    p.accumulate = accumulate;
    p.lambda_of = a.aux + 1;
    p.active = w.far;
    p.inner = Inner::difference;
    p.from = x.original;
    run(p);
  }
};

}  // namespace

template <class T>
void backward_of_kernels(const KrrBackwardArgs<T>& args, const KrrWork<T>& work, simt::Stream stream) {
  KernelsBackward<T>(args, work, stream).run_all();
}

template void backward_of_kernels(const KrrBackwardArgs<float>&, const KrrWork<float>&, simt::Stream);
template void backward_of_kernels(const KrrBackwardArgs<double>&, const KrrWork<double>&, simt::Stream);

}  // namespace ssdd::cuda

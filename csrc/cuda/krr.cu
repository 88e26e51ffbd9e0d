// KRR forward on the GPU, composed of products (product.cuh) and one factorisation (factor.cuh) for the whole batch on
// one stream. krr.h has the plans. There is no host synchronisation.
//
// Launches, one pass (one_pass.cu): 2 up to 32 support points, else 4. Others: dense 3 and 2 per chunk of queries (4 if K_qs is computed beside K_ss), low rank 6, primal 5 (8 with a
// border). One fewer if the Gram matrix is fused into the factorisation, three more per Gram matrix by distances.cu, one
// more if the solve has more than 32 columns
// (factor_small.cu), 4 more for a factor larger than one block. The loss is computed with the predictions. The outputs
// of a failed problem are written as NaN.
// Mapping: as in product.cuh and factor.cuh. border_kernel: one block per problem.
// Traffic: every input once, and K_ss, alpha, R once each; dense also K_qs.
// FLOPs (krr.h counts multiply-adds): S^2 D + S^3 / 3 + 2 S^2 C, and 2 (S + Q) D C in low rank, 2 Q S (D + C) in dense.
// Floor on an H100: benchmarks/results/sass.md has it for the sizes of the speed table. Small problems are limited by
// their launches, about 1.4 us each in a graph.
// Other path: the other plans, chosen by ssdd_ext/plan.
#include "../krr.h"

#include <cmath>

#include "krr_work.cuh"
#include "one_pass.cuh"

namespace ssdd::cuda {
namespace {

constexpr int kThreads = 256;

// Writes the primal's border: its column is a copy of its row, which sum_columns wrote, and its corner is bias * S. One
// block per problem.
template <class T>
SIMT_KERNEL(kThreads)
void border_kernel(int64_t n, double support, const T* scalars, T* factor) {
  simt::wait_for_earlier_launches();
  const int64_t b = simt::block().x;
  T *const whole = factor + b * n * n, *const row = whole + (n - 1) * n;
  // Every element of a column lies in a sector of its own. It is one column per problem, so it is not counted.
  for (int64_t i = simt::thread(); i < n - 1; i += kThreads) whole[i * n + n - 1] = row[i];
  if (simt::thread() == 0) row[n - 1] = static_cast<T>(static_cast<double>(scalars[b * kScalars + kBias]) * support);
}

template <class T>
class Forward : KrrPass<T> {
 public:
  Forward(const KrrForwardArgs<T>& args, const KrrWork<T>& work, simt::Stream stream)
      : KrrPass<T>{args.shape, work, stream}, a(args), x_s(args.x_s, args.s_element), x_q(args.x_q, args.q_element) {}

  void run_all() {
    set_scalars(this->scalar_args(a.hyper), stream);
    if (a.loss && takes_one_pass<T>(s)) return run_one_pass();
    const bool together = s.plan == Plan::dense && !fuses() && s.q <= s.chunk;  // K_qs beside K_ss
    if (s.plan == Plan::primal)
      solve_primal();
    else
      factorise_support(together);
    if (s.plan == Plan::dense)
      predict_dense(together);
    else
      predict_low_rank();
    if (a.loss && s.q * s.c == 0) fill(s.batch, std::nan(""), a.loss, stream);
  }

 private:
  using KrrPass<T>::s;
  using KrrPass<T>::w;
  using KrrPass<T>::stream;
  using KrrPass<T>::counters;
  using KrrPass<T>::scalar;
  using KrrPass<T>::dense;
  using KrrPass<T>::t;
  using KrrPass<T>::from;
  using KrrPass<T>::make;
  using KrrPass<T>::run;
  using KrrPass<T>::sums;
  using KrrPass<T>::lengths;
  using KrrPass<T>::map;
  using KrrPass<T>::kept_bs;
  using KrrPass<T>::place;

  // K stays above the factor's diagonal: the backward of other kernels reads it there.
  Factor<T> factor_here(const Batch<const T>& y) const {
    Factor<T> f{};
    f.batch = s.batch;
    f.n = s.n;
    f.order = s.s;
    f.source = dense(a.factor, s.n, s.n);
    f.factor = a.factor;
    f.zero_upper = false;
    f.y = y;
    f.x = a.coef;
    f.c = s.c;
    f.scalars = w.scalars;
    f.ridge = s.ridge;
    f.on_failure = a.on_failure;
    f.status = a.status;
    f.jitter = a.jitter;
    f.aux = a.aux;
    f.work = w.factor;
    f.cluster = s.cluster;
    return f;
  }

  bool fuses() const { return s.fused_gram && !keeps_argument(s.kernel) && s.s <= fused_limit<T>(); }
  void factorise_support(bool with_queries) {
    if (fuses())
      factorise_points<T>(factor_here(a.y_s), {x_s, s.d, s.kernel}, stream);
    else
      solve_dual(with_queries);
  }

  // Blocks of queries that read them once; few support points they factor themselves (one_pass.cu).
  void run_one_pass() {
    if (s.s > kOnePassFactors) factorise_support(false);
    one_pass_forward(a, factor_here(a.y_s), w.partial, counters(), stream);
  }

  void solve_dual(bool with_queries) {
    const bool kept = a.kept && keeps_argument(s.kernel);
    Product<T> gram =
        make(s.s, s.s, s.d, x_s, t(x_s), kept ? a.kept + 2 * s.q * s.s : a.factor, kept ? kept_bs() : s.s * s.s);
    gram.triangle = Triangle::both;
    apply_kernel(gram, s.kernel, w.scalars);
    if (w.distances) {
      form(gram);
      if (with_queries) form(query_gram(0));
    } else if (with_queries) {
      run(gram, query_gram(0));
    } else {
      run(gram);
    }
    lengths(x_s, s.s, true);
    map(s.s, true, gram.c, gram.c_bs, a.factor, s.s * s.s);
    factorise(factor_here(a.y_s), stream);
  }

  // Forms a Gram matrix, or its arguments.
  void form(const Product<T>& gram) const {
    if (w.distances)
      distance_product(gram, w.distances, stream);
    else
      run(gram);
  }

  // H = Phi^T Phi and w = H^-1 Phi^T Y with Phi = [sqrt(scale) X, sqrt(bias) 1].
  void solve_primal() {
    const int64_t whole = s.n * s.n;
    Product<T> gram = make(s.d, s.d, s.s, t(x_s), x_s, a.factor, whole, s.n);
    gram.triangle = Triangle::both;
    gram.alpha_of = scalar(kScale);
    run(gram);
    Product<T> moment = make(s.d, s.c, s.s, t(x_s), a.y_s, a.coef, s.n * s.c);
    moment.alpha_of = scalar(kRootScale);
    run(moment);
    if (s.bordered) {
      sums(s.s, s.d, x_s, a.factor + s.d * s.n, whole, scalar(kRootBoth));
      sums(s.s, s.c, a.y_s, a.coef + s.d * s.c, s.n * s.c, scalar(kRootBias));
      simt::launch(&border_kernel<T>, {static_cast<unsigned>(s.batch)}, kThreads, 0, stream, s.n,
                   static_cast<double>(s.s), w.scalars, a.factor);
    }
    factorise(factor_here(dense(a.coef, s.n, s.c)), stream);
  }

  // The epilogue of the predictions: subtract the target, and sum the squares for the loss.
  void predict(Product<T> p, int64_t q0 = 0) {
    p.lambda_of = a.aux + 1;
    if (a.y_q) {
      p.add = from(a.y_q, q0);
      p.add_factor = -1;
    }
    if (a.loss) {
      // Chunks of queries store their parts one after the other. The last chunk may be smaller.
      const auto parts = [&](int64_t rows) {
        Product<T> chunk = p;
        chunk.m = rows;
        return rows > 0 ? tiles_in(chunk) : 0;
      };
      const int64_t chunk = s.plan == Plan::dense ? s.chunk : std::max<int64_t>(1, s.q);
      p.squares.out = a.loss;
      p.squares.parts = w.partial;
      p.squares.counters = counters();
      p.squares.first = q0 / chunk * parts(chunk);
      p.squares.all = s.q / chunk * parts(chunk) + parts(s.q % chunk);
      p.squares.factor = 1.0 / (static_cast<double>(s.q) * static_cast<double>(s.c));
    }
    run(p);
  }

  // Computes P = scale X_q W^T + bias 1 (1^T alpha), or Phi_q w.
  void predict_low_rank() {
    const bool primal = s.plan == Plan::primal;
    Product<T> p = make(s.q, s.c, s.d, x_q, {}, a.out, s.q * s.c);
    p.row = w.columns;
    p.row_bs = s.c;
    if (primal) {
      p.b = {a.coef, s.n * s.c, s.c, 1};
      p.alpha_of = scalar(kRootScale);
      if (s.bordered)
        place(1, s.c, {a.coef + s.d * s.c, s.n * s.c, s.c, 1}, w.columns, s.c, s.c, 1, scalar(kRootBias));
      else
        p.row = nullptr;
    } else {
      run(make(s.c, s.d, s.s, t(dense(a.coef, s.s, s.c)), x_s, w.weights, s.c * s.d));
      sums(s.s, s.c, dense(a.coef, s.s, s.c), w.columns, s.c, scalar(kBias));
      p.b = {w.weights, s.c * s.d, 1, s.d};
      p.alpha_of = scalar(kScale);
    }
    predict(p);
  }

  // The product that forms K_qs of a chunk of queries, or its arguments.
  Product<T> query_gram(int64_t q0) const {
    T* const k = a.kept ? a.kept + (keeps_argument(s.kernel) ? s.q + q0 : q0) * s.s : w.chunk;
    Product<T> p =
        make(std::min(s.chunk, s.q - q0), s.s, s.d, from(x_q, q0), t(x_s), k, a.kept ? kept_bs() : s.chunk * s.s);
    apply_kernel(p, s.kernel, w.scalars);
    return p;
  }
  // there: K_qs of all queries is.
  void predict_dense(bool there) {
    for (int64_t q0 = 0; q0 < s.q; q0 += s.chunk) {
      const Product<T> gram = query_gram(q0);
      if (!there) form(gram);
      T* const k = a.kept ? a.kept + q0 * s.s : w.chunk;
      lengths(from(x_q, q0), gram.m, false);
      map(gram.m, false, gram.c, gram.c_bs, k, gram.c_bs);
      predict(make(gram.m, s.c, s.s, {k, gram.c_bs, s.s, 1}, dense(a.coef, s.s, s.c), a.out + q0 * s.c, s.q * s.c), q0);
    }
  }

  const KrrForwardArgs<T>& a;
  const Source<T> x_s, x_q;
};

}  // namespace

KrrShape with_chunk_for_batch(KrrShape s) {
  constexpr int64_t kMost = int64_t(1) << 26, kLeast = 64;
  s.chunk = std::max<int64_t>(1, std::min(s.chunk, std::max(kLeast, kMost / std::max<int64_t>(1, s.batch * s.s))));
  return s;
}

int64_t krr_workspace(const KrrShape& shape, bool backward) {
  return krr_layout<float>(with_chunk_for_batch(shape), backward, nullptr).total;
}

template <class T>
void krr_forward(const KrrForwardArgs<T>& args, Stream stream) {
  if (args.shape.batch == 0) return;
  KrrForwardArgs<T> a = args;
  a.shape = with_chunk_for_batch(a.shape);
  Forward<T>(a, krr_layout(a.shape, false, a.work), stream).run_all();
}

template void krr_forward(const KrrForwardArgs<float>&, Stream);
template void krr_forward(const KrrForwardArgs<double>&, Stream);

}  // namespace ssdd::cuda

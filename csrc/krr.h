// Kernel ridge regression, forward and backward, from one factorisation.
//
//   A = K_ss + lambda I = L L^T,  alpha = A^-1 Y_s,  P = K_qs alpha,  R = P - Y_q,  loss = mean(R^2)
//
// Backward with E = Pbar, or E = R and Pbar = gamma E, gamma = 2 gbar / (Q C), applied inside the products:
//
//   abar = K_qs^T Pbar   U = A^-1 abar   Ybar = U   lbar = -<U, alpha>
//   Kbar_qs = Pbar alpha^T   Kbar_ss = -1/2 (U alpha^T + alpha U^T) [+ c lbar I]
//
// Plans (ssdd_ext/plan chooses; s, b are scale and bias of the linear kernel):
//   dense     K_qs is formed, in chunks of queries if kept == nullptr; any kernel.
//   low_rank  linear: W = alpha^T X_s, M = Pbar^T X_q, V = U^T X_s; P = s X_q W^T + b 1 (1^T alpha);
//             Xbar_s = s [alpha (M - V) - U W + 2 c lbar X_s]; neither K_qs nor Kbar_ss is formed.
//   mixed     linear, backward: dense for Kbar_ss X_s, low rank for the queries.
//   primal    linear, D (+1 with a bias) < S: H = Phi^T Phi + lambda I, Phi = [sqrt(s) X, sqrt(b) 1],
//             w = H^-1 Phi^T Y, V = H^-1 Phi_q^T Pbar, U = Phi V,
//             Phibar_s = (Y - Phi w) V^T - U w^T: the residual form keeps the digits that (Y - Phi w)/lambda loses.
//             A bias of 0 whose gradient is wanted must also be bordered (`bordered`, n = D + 1): the backward reads
//             1^T alpha from the border. Without it the gradient to the bias is that of an alpha whose sum is zero.
//
// Kernels of x.z: Xbar = G Z + 2 n X with G = Kbar dk/d(x.z) and n_i = sum_j Kbar_ij dk/d|x_i|^2; a point with itself
// contributes to n only.
//
// Kernels of r = |x - z|^2: Xbar_i = 2 sum_j G_ij (x_i - z_j) with G = Kbar dk/dr. Two forms:
//   product      2 (rowsum(G) x - G z), from the first support point as origin, so that points far from 0 do not
//                cancel.
//                The terms that cancel are as large as the reach, the largest coordinate from that origin. The terms
//                that remain are of the order of l / sqrt(D): beyond that distance k is small.
//   differences  each term by itself, from the points as passed in, at half the rate of a product or less.
// Differences are used if reach sqrt(D) > kReach l, which holds for points in clusters far apart, and for matern_1, whose
// slope grows as 1 / |x - z| where points are close. Below that limit the
// product form loses at most two bits. Each problem has its own form (in chunks of queries: from the chunk and the
// support), which depends only on the inputs.
//
// laplace_1: Xbar_i = sum_j G_ij sign(x_i - z_j) with G = Kbar dk/d|x - z|_1, and 0 where coordinates coincide.
//
// n is the order of the factor: S, or D (+1 with a bias) in the primal. Every input has any strides; outputs are
// dense row-major and alias nothing. factor [B, n, n] (L below; above the diagonal K_ss, which the rbf backward
// needs), coef [B, n, C] (alpha or w), kept [B, Q, S] = K_qs or nullptr (if
// keeps_argument(kernel): [B, 2 Q + S, S], K_qs, then the arguments of K_qs and, below the diagonal, of K_ss), aux [B, 3] = tr(K_ss), lambda, jitter.
// A failed problem's outputs and gradients are NaN. Workspace: krr_workspace(...) elements, uninitialised.
// Work in multiply-adds, forward: dense S^2 D/2 + S^3/6 + S^2 C + Q S (D + C); low rank S^2 D/2 + S^3/6 + S^2 C +
// (S + Q) D C; primal S n^2/2 + n^3/6 + n^2 C + (S + Q) n C. Same inputs and threads, same bits.
#pragma once
#include "device.h"
#include "tensor.h"

namespace ssdd {

constexpr double kReach = 16;

enum class Plan { dense = 0, low_rank = 1, mixed = 2, primal = 3 };

struct KrrShape {
  int64_t batch, s, q, d, c, n;
  KernelKind kernel;
  RidgeKind ridge;
  bool detach;
  bool bordered;  // primal: the bias is one more row and column
  Plan plan;
  int64_t chunk;  // queries at a time in the dense plan
  int threads;
  // On a GPU, dual: the block that factors K_ss also forms it, if it fits. The numbers are the same but for rounding.
  bool fused_gram = false;
  // On the CPU: one problem per lane of a vector, where krr_lanes_fit. Forward: factor and coef may then be nullptr, unless
  // on_failure is jitter. Neither pass uses kept.
  bool lanes = false;
  int order = 0;  // of the kernel function (gram.h)
  // On a GPU: large products of floats take half-precision instructions, three per product, at fp32 accuracy.
  bool halves = false;
  // On a GPU: the factorisation of medium float problems takes one cluster of blocks per problem, on GPUs that have them.
  bool cluster = false;
  // On a GPU, forward: squared distances by products where that keeps their digits (cuda/distances.cu).
  bool products = false;
  // On a GPU, the loss of a linear float kernel, dual: blocks of queries per problem that read the queries once
  // (cuda/one_pass.cuh); 0: the products of the plan. The forward leaves `parts` if the backward is to follow.
  int64_t parts = 0;
};

// Elements that each of them leaves per problem.
constexpr int64_t one_pass_part(int64_t s, int64_t d, int64_t c) {
  return c * ((d + 31) / 32 * 32) + (s * c + 31) / 32 * 32 + (c + 31) / 32 * 32;
}

// Rows of S elements per problem in `kept`.
constexpr int64_t kept_rows(KernelKind kernel, int64_t s, int64_t q) { return keeps_argument(kernel) ? 2 * q + s : q; }

template <class T>
struct KrrForwardArgs {
  KrrShape shape;
  Batch<const T> x_s, y_s, x_q, y_q;  // y_q.p == nullptr: predictions only
  T *out, *loss;                      // [B, Q, C] P or R; [B] (nullptr without y_q)
  T *factor, *coef, *kept, *aux, *jitter;
  int32_t* status;
  Hyper<T> hyper;
  OnFailure on_failure;
  T* work;
  Element s_element = Element::own, q_element = Element::own;  // of x_s and x_q
  T* parts = nullptr;  // [B, shape.parts, one_pass_part(...)], aligned to 16 bytes, or nullptr if no backward follows
};

template <class T>
struct KrrBackwardArgs {
  KrrShape shape;
  Batch<const T> x_s, y_s, x_q;
  Batch<const T> e;  // Pbar, or R with gamma
  Batch<const T> g;  // [B, 1, 1] gbar of the loss; p == nullptr if e is Pbar itself
  const T *factor, *coef, *kept, *aux;
  Hyper<T> hyper;
  T *grad_x_s, *grad_y_s, *grad_x_q, *grad_hyper;  // nullptr: not computed
  T* work;
  Element s_element = Element::own, q_element = Element::own;
  // On the CPU, of a forward without queries: the gradient to coef [B, n, C] itself.
  Batch<const T> coef_bar = {};
  const T* parts = nullptr;  // of the forward; kept is then nullptr
};

// Loss [B] and its gradients for gbar = 1 in one pass, for small problems on the CPU: there a call, or the memory traffic
// between two passes, costs as much as the work. The loss and gradients of a problem that fails (status) are unspecified;
// by lanes there is no second attempt with jitter.
template <class T>
struct KrrFusedArgs {
  KrrShape shape;
  Batch<const T> x_s, y_s, x_q, y_q;  // unless by lanes, the columns of x_s and x_q lie side by side (cs = 1)
  T* loss;
  T *grad_x_s, *grad_y_s, *grad_x_q;  // each may be nullptr
  int32_t* status;
  Hyper<T> hyper;
  OnFailure on_failure;
  T* work;  // krr_fused_workspace(shape) elements
};

// The same from Gram matrices, on the CPU: alpha = (K_ss + lambda I)^-1 Y_s, P = K_qs alpha. Of k_ss the lower triangle is
// read. moment [B, S, C] = K_qs^T R, or nullptr if it is not wanted, is what the backward of the loss needs of K_qs
// and R; it is formed while a block of K_qs is in cache. The rest is as in KrrForwardArgs and SolveArgs.
template <class T>
struct FromGramArgs {
  int64_t batch, s, q, c;
  Batch<const T> k_ss, y_s, k_qs, y_q;
  T *out, *loss, *moment;
  T *factor, *alpha, *aux, *jitter;
  int32_t* status;
  Hyper<T> hyper;  // the ridge value alone
  RidgeKind ridge;
  OnFailure on_failure;
  T* work;
  int threads;
};

// Its gradients. The one to K_ss is symmetrised: -1/2 (U alpha^T + alpha U^T) [+ c lbar I].
template <class T>
struct FromGramBackwardArgs {
  int64_t batch, s, q, c;
  Batch<const T> k_qs, e, g;  // e and g as in KrrBackwardArgs
  const T* moment;            // nullptr: formed from k_qs and e
  const T *factor, *alpha, *aux;
  T *grad_k_ss, *grad_y_s, *grad_k_qs;  // each may be nullptr, except grad_y_s
  Hyper<T> hyper;
  RidgeKind ridge;
  bool detach;
  T* work;
  int threads;
};

namespace cpu {
int64_t krr_workspace(const KrrShape& shape, bool backward);
template <class T> void krr_forward(const KrrForwardArgs<T>& args);
template <class T> void krr_backward(const KrrBackwardArgs<T>& args);
bool krr_lanes_fit(const KrrShape& shape);             // linear, low rank, few support points and few features
bool krr_fuses(const KrrShape& shape, Plan backward);  // linear: dense in both passes, few support points; or by lanes
int64_t krr_fused_workspace(const KrrShape& shape);
template <class T> void krr_fused(const KrrFusedArgs<T>& args);
int64_t krr_from_gram_workspace(int64_t batch, int64_t s, int64_t c, int threads);  // of both passes
template <class T> void krr_from_gram(const FromGramArgs<T>& args);
template <class T> void krr_from_gram_backward(const FromGramBackwardArgs<T>& args);
}  // namespace cpu
namespace cuda {
int64_t krr_workspace(const KrrShape& shape, bool backward);
template <class T> void krr_forward(const KrrForwardArgs<T>& args, Stream stream);
template <class T> void krr_backward(const KrrBackwardArgs<T>& args, Stream stream);
}  // namespace cuda

}  // namespace ssdd

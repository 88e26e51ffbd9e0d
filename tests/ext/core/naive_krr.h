// One KRR problem and its gradients in fp64: dense Gram matrices, an explicit inverse, the chain rule entry by entry.
#pragma once
#include "naive.h"

namespace test {

struct NaiveKrr {
  Matrix x_s, y_s, x_q;
  Kernel kernel;
  ssdd::RidgeKind ridge;
  bool detach;
  double v;

  Matrix k_ss, k_qs, inverse_a, alpha, p;
  double lambda = 0;

  void forward() {
    k_ss = naive_gram(kernel, x_s, x_s);
    k_qs = naive_gram(kernel, x_q, x_s);
    lambda = v * ridge_slope(ridge, trace(k_ss), x_s.rows);
    inverse_a = inverse(add_to_diagonal(k_ss, lambda));
    alpha = inverse_a * y_s;
    p = k_qs * alpha;
  }

  // Phi^T of the points x.
  Matrix primal_features(const Matrix& x, bool bordered) const {
    Matrix phi(x.columns + bordered, x.rows);
    for (int64_t i = 0; i < phi.columns; ++i)
      for (int64_t j = 0; j < phi.rows; ++j)
        phi(j, i) = j < x.columns ? std::sqrt(kernel.first) * x(i, j) : std::sqrt(kernel.bias);
    return phi;
  }

  // w = (Phi^T Phi + lambda I)^-1 Phi^T Y = Phi^T alpha.
  Matrix primal_weights(bool bordered) const { return primal_features(x_s, bordered) * alpha; }

  // What cancels in v's gradient -<V, w>: with fewer points than features V = (Phi_q^T P_bar - Phi^T U) / lambda is large.
  double primal_v_size(const Matrix& p_bar, const Matrix& u, bool bordered) const {
    const Matrix w = primal_weights(bordered),
                 difference = primal_features(x_q, bordered) * p_bar - primal_features(x_s, bordered) * u;
    return std::sqrt(dot(difference, difference) * dot(w, w)) / lambda * ridge_slope(ridge, trace(k_ss), x_s.rows);
  }

  struct Gradients {
    Matrix x_s, y_s, x_q;
    double first, bias, v;
    double first_size, bias_size, v_size;  // of the terms that cancel in them
  };

  Gradients backward(const Matrix& p_bar) const {
    Gradients g;
    g.y_s = inverse_a * (transpose(k_qs) * p_bar);
    const double lambda_bar = -dot(g.y_s, alpha), tr = trace(k_ss);
    Matrix kss_bar = -0.5 * (g.y_s * transpose(alpha) + alpha * transpose(g.y_s));
    if (!detach) kss_bar = add_to_diagonal(kss_bar, trace_slope(ridge, v, x_s.rows) * lambda_bar);
    const Matrix kqs_bar = p_bar * transpose(alpha);
    g.x_s = Matrix(x_s.rows, x_s.columns);
    g.x_q = Matrix(x_q.rows, x_q.columns);
    g.first = g.bias = g.first_size = g.bias_size = 0;
    through(g, kss_bar, x_s, g.x_s);
    through(g, kqs_bar, x_q, g.x_q);
    g.v = lambda_bar * ridge_slope(ridge, tr, x_s.rows);
    g.v_size = std::sqrt(dot(g.y_s, g.y_s) * dot(alpha, alpha)) * ridge_slope(ridge, tr, x_s.rows);
    return g;
  }

 private:
  // k_bar of k(x, x_s) to x (into x_bar), x_s and the kernel's parameters. If x is x_s itself, x_bar is g.x_s.
  void through(Gradients& g, const Matrix& k_bar, const Matrix& x, Matrix& x_bar) const {
    for (int64_t i = 0; i < x.rows; ++i)
      for (int64_t j = 0; j < x_s.rows; ++j) {
        // Of the argument, the two squared lengths and the two hyper-parameters.
        double slope[5];
        const bool same = &x == &x_s && i == j;
        kernel.slopes(kernel.argument(x, i, x_s, j), Kernel::square(x, i), Kernel::square(x_s, j), x.columns, same,
                      slope);
        for (double& number : slope) number *= k_bar(i, j);
        for (int64_t d = 0; d < x.columns; ++d) {
          const double p = x(i, d), q = x_s(j, d);
          x_bar(i, d) += slope[0] * kernel.argument_slope(p, q) + 2 * slope[1] * p;
          g.x_s(j, d) += slope[0] * kernel.argument_slope(q, p) + 2 * slope[2] * q;
        }
        g.first += slope[3];
        g.first_size += std::fabs(slope[3]);
        g.bias += slope[4];
        g.bias_size += std::fabs(slope[4]);
      }
  }
};

}  // namespace test

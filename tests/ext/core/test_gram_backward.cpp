// gram_backward(): its gradients along random directions, by differences of the naive Gram matrix.
#include "gram.h"
#include "naive.h"

using namespace test;

namespace {

constexpr double kStep = 1e-5, kShortStep = 1e-8;

Matrix along(const Matrix& x, double step, const Matrix& direction) { return x + step * direction; }

void run(const Kernel& kernel, int64_t batch, int64_t s, int64_t q, bool symmetric, int64_t chunk, Layout layout) {
  if (!in_sample()) return;
  const int64_t d = 9;
  if (symmetric) q = s;
  std::vector<Matrix> x, z, bar, dx, dz;
  for (int64_t b = 0; b < batch; ++b) {
    x.push_back(random(s, d));
    z.push_back(random(q, d));
    bar.push_back(random(s, q));
    dx.push_back(random(s, d));
    dz.push_back(random(q, d));
  }
  const Input<double> x_in(x, layout), z_in(z, layout), bar_in(bar, layout);
  const std::vector<double> own = parameters(kernel);
  const Hypers<double> hypers(std::vector<std::vector<double>>(size_t(batch), own), false);
  for (int threads = 1; threads <= most_threads(3); ++threads) {
    auto grad_x = poisoned<double>(batch * s * d), grad_z = poisoned<double>(batch * q * d),
         grad_hyper = poisoned<double>(batch * int64_t(own.size()));
    ssdd::GramBackwardArgs<double> args{};
    args.batch = batch;
    args.s = s;
    args.q = q;
    args.d = d;
    args.chunk = chunk;
    args.x = x_in.view;
    if (!symmetric) args.z = z_in.view;
    args.grad = bar_in.view;
    args.grad_x = grad_x.data();
    args.grad_z = symmetric ? nullptr : grad_z.data();
    args.grad_hyper = own.empty() ? nullptr : grad_hyper.data();
    args.hyper = hypers.hyper;
    args.kernel = kernel.kind;
    args.order = kernel.order;
    args.threads = threads;
    args.work =
        workspace<double>(ssdd::cpu::gram_backward_workspace(kernel.kind, batch, s, q, d, chunk, symmetric, threads));
    ssdd::cpu::gram_backward(args);
    for (int64_t b = 0; b < batch; ++b) {
      const size_t at = size_t(b);
      const auto value = [&](double step, const Kernel& k) {
        const Matrix moved = along(x[at], step, dx[at]);
        return dot(bar[at], naive_gram(k, moved, symmetric ? moved : along(z[at], step, dz[at])));
      };
      double got = dot(problem(grad_x, b, s, d), dx[at]);
      if (!symmetric) got += dot(problem(grad_z, b, q, d), dz[at]);
      // A 1-norm has a kink where two coordinates coincide, which a short step rarely meets.
      const double step = ssdd::of_one_norm(kernel.kind) ? kShortStep : kStep;
      const double want = (value(step, kernel) - value(-step, kernel)) / (2 * step);
      const double scale = std::sqrt(double(s * q * d));
      CHECK(std::fabs(got - want) <= 1e-6 * scale,
            name(kernel.kind) << " S=" << s << " Q=" << q << " threads=" << threads << ": " << got << " for " << want);
      for (size_t i = 0; i < own.size(); ++i) {
        Kernel up = kernel, down = kernel;
        (i == 0 ? up.first : up.bias) += kStep;
        (i == 0 ? down.first : down.bias) -= kStep;
        const double slope = (value(0, up) - value(0, down)) / (2 * kStep);
        const double found = grad_hyper[at * own.size() + i];
        CHECK(std::fabs(found - slope) <= 1e-6 * scale, name(kernel.kind)
                                                            << " parameter " << i << ": " << found << " for " << slope);
      }
    }
  }
}

}  // namespace

TEST(gram_backward_is_the_slope) {
  std::vector<Kernel> kernels = kernel_functions(9);
  kernels.push_back({ssdd::KernelKind::rbf, 2.0, 0});
  for (const Kernel& kernel : kernels)
    for (bool symmetric : {false, true}) {
      run(kernel, 1, 1, 3, symmetric, 1, Layout::dense);
      run(kernel, 2, 7, 5, symmetric, 3, Layout::strided);
      run(kernel, 1, 30, 41, symmetric, 64, Layout::transposed);
    }
}

// The naive KRR gradients that other tests compare with, against central differences.
#include "naive_krr.h"

using namespace test;
using ssdd::KernelKind;
using ssdd::RidgeKind;

TEST(krr_naive_gradients_are_right) {
  std::vector<Kernel> kernels = kernel_functions(3);
  kernels.push_back({KernelKind::linear, 1.3, 0.4});
  kernels.push_back({KernelKind::rbf, 1.3, 0});
  for (const Kernel& kernel : kernels) {
    NaiveKrr n{random(4, 3), random(4, 2), random(3, 3), kernel, RidgeKind::mean_trace, false, 0.2, {}, {}, {}, {}, {}};
    n.forward();
    const Matrix p_bar = random(3, 2);
    const NaiveKrr::Gradients g = n.backward(p_bar);
    const auto check = [&](double& x, double gradient, const char* what) {
      const double h = 1e-5, at = x;
      double values[2];
      for (int side : {0, 1}) {
        x = side ? at + h : at - h;
        n.forward();
        values[side] = dot(n.p, p_bar);
      }
      x = at;
      const double slope = (values[1] - values[0]) / (2 * h);
      CHECK(std::fabs(slope - gradient) <= 1e-7, name(kernel.kind)
                                                     << " " << what << ": " << slope << " not " << gradient);
    };
    for (size_t i = 0; i < n.x_s.v.size(); ++i) check(n.x_s.v[i], g.x_s.v[i], "x_s");
    for (size_t i = 0; i < n.y_s.v.size(); ++i) check(n.y_s.v[i], g.y_s.v[i], "y_s");
    for (size_t i = 0; i < n.x_q.v.size(); ++i) check(n.x_q.v[i], g.x_q.v[i], "x_q");
    const int count = ssdd::parameter_count(kernel.kind);
    if (count > 0) check(n.kernel.first, g.first, "first parameter");
    if (count > 1) check(n.kernel.bias, g.bias, "second parameter");
    check(n.v, g.v, "v");
  }
}

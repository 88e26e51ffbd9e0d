// gram(): both kernels, the symmetric case, batches, layouts, hyper-parameters of each problem.
#include "gram.h"

#include "naive.h"

using namespace test;
using ssdd::KernelKind;

namespace {

struct Case {
  int64_t batch, s, q, d;
  KernelKind kernel;
  bool symmetric = false, tensor = false;
  Layout x = Layout::dense, z = Layout::dense;
  Kernel function = {KernelKind::linear, 0, 0};  // of a kernel other than linear and rbf
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << name(c.kernel) << " B=" << c.batch << " S=" << c.s << " Q=" << c.q << " D=" << c.d
             << (c.symmetric ? " symmetric " : " ") << name(c.x) << " " << name(c.z);
}

template <class T>
void run(Case c) {
  if (!in_sample()) return;
  if (c.symmetric) c.q = c.s;
  std::vector<Matrix> x, z;
  std::vector<std::vector<double>> hyper;
  for (int64_t b = 0; b < c.batch; ++b) {
    x.push_back(random(c.s, c.d));
    z.push_back(random(c.q, c.d));
    const double first = c.tensor ? 1 + 0.25 * double(b) : 1.25;
    if (ssdd::keeps_argument(c.kernel))
      hyper.push_back(parameters(c.function));
    else
      hyper.push_back(c.kernel == KernelKind::linear ? std::vector<double>{first, 0.5} : std::vector<double>{first});
  }
  const Input<T> x_in(x, c.x), z_in(z, c.z);
  const Hypers<T> hypers(hyper, c.tensor);
  for (int threads = 1; threads <= most_threads(2); ++threads) {
    std::vector<T> out = poisoned<T>(c.batch * c.s * c.q);
    ssdd::GramArgs<T> args{c.batch, c.s, c.q, c.d, x_in.view, {}, out.data(), hypers.hyper, c.kernel, nullptr, threads};
    if (!c.symmetric) args.z = z_in.view;
    args.order = c.function.order;
    args.work = workspace<T>(ssdd::cpu::gram_workspace(c.kernel, c.batch, c.s, c.q, c.d, threads));
    ssdd::cpu::gram(args);
    for (int64_t b = 0; b < c.batch; ++b) {
      const Matrix got = problem(out, b, c.s, c.q);
      const std::vector<double>& h = hyper[size_t(b)];
      const Kernel kernel =
          ssdd::keeps_argument(c.kernel) ? c.function : Kernel{c.kernel, h[0], h.size() > 1 ? h[1] : 0};
      const Matrix want = naive_gram(kernel, x[size_t(b)], c.symmetric ? x[size_t(b)] : z[size_t(b)]);
      const double off = error(got, want, std::sqrt(double(c.s * c.q)));
      CHECK(off <= tolerance<T>(8 + 2 * double(c.d)), type_name<T>()
                                                          << " " << c << ", " << threads << " threads: error " << off);
      for (int64_t i = 0; c.symmetric && i < c.s; ++i) {
        if (ssdd::of_distance(c.kernel)) CHECK(got(i, i) == 1, "diagonal of " << c << ": " << got(i, i));
        for (int64_t j = 0; j < i; ++j) CHECK(got(i, j) == got(j, i), c << " is not symmetric at " << i << "," << j);
      }
    }
  }
}

void everywhere(Case c) {
  for (KernelKind kernel : {KernelKind::linear, KernelKind::rbf})
    for (bool symmetric : {false, true}) {
      c.kernel = kernel;
      c.symmetric = symmetric;
      run<float>(c);
      run<double>(c);
    }
}

}  // namespace

TEST(gram_sizes) {
  for (int64_t s : {1, 7, 66})
    for (int64_t q : {1, 50})
      for (int64_t d : {1, 33, 260}) everywhere({1, s, q, d, {}});
  everywhere({1, 131, 97, 40, {}});   // large enough for a team of threads
  everywhere({1, 401, 70, 131, {}});  // distances by products, in two blocks of rows
}

TEST(gram_kernel_functions) {
  for (const Kernel& kernel : kernel_functions(33)) {
    for (bool symmetric : {false, true})
      for (int64_t s : {7, 66}) {
        Case c{2, s, 50, 33, kernel.kind, symmetric, symmetric};
        c.function = kernel;
        if (!ssdd::of_norms(kernel.kind)) run<float>(c);
        run<double>(c);
      }
  }
}

TEST(gram_empty) {
  everywhere({0, 3, 4, 5, {}});
  everywhere({2, 3, 0, 5, {}});
  everywhere({2, 0, 3, 5, {}});
}

TEST(gram_layouts) {
  for (Layout x : kLayouts)
    for (Layout z : kLayouts) {
      Case c{3, 13, 21, 17, {}};
      c.x = x;
      c.z = z;
      everywhere(c);
      if (x == z) everywhere({1, 66, 70, 129, {}, false, false, x, z});  // distances by products
    }
}

TEST(gram_batches) {
  for (int64_t batch : {2, 5, 33})
    for (bool tensor : {false, true}) {
      Case c{batch, 9, 14, 11, {}};
      c.tensor = tensor;
      everywhere(c);
      c.s = 50;
      c.d = 70;  // the batch over the threads
      everywhere(c);
    }
}

TEST(gram_bad_parameters_are_nan) {
  std::vector<Matrix> x{random(4, 3), random(4, 3), random(4, 3)};
  const Input<float> in(x, Layout::dense);
  const float bad[] = {-1.0f, std::numeric_limits<float>::quiet_NaN(), 0.0f};
  for (float value : bad) {
    const Hypers<float> hypers({{1.0, 0.0}, {value, 0.0}, {2.0, 0.5}}, true);
    std::vector<float> out = poisoned<float>(3 * 16);
    for (float& e : out) e = 7;
    ssdd::GramArgs<float> args{3, 4, 4, 3, in.view, {}, out.data(), hypers.hyper, KernelKind::linear, nullptr, 1};
    args.work = workspace<float>(ssdd::cpu::gram_workspace(KernelKind::linear, 3, 4, 4, 3, 1));
    ssdd::cpu::gram(args);
    for (int64_t b = 0; b < 3; ++b)
      for (double k : problem(out, b, 4, 4).v) CHECK(std::isnan(k) == (b == 1), "scale " << value << ", problem " << b);
  }
}

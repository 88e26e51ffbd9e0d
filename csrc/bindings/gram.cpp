// The binding of gram.h.
#include "../gram.h"

#include "capsules.h"
#include "kernels.h"

namespace ssdd {
namespace {

int64_t workspace_of(KernelKind kernel, int64_t b, int64_t s, int64_t q, int64_t d, int threads, bool on_cuda,
                     bool products) {
  require_fits(b, std::max(s, q), std::max(std::max(s, q), d));
  require(std::min(s, q) >= 0 && d >= 0, "shape: sizes must not be negative");
  require_threads(threads);
  return on_cuda ? cuda::gram_workspace(b, s, q, d, products) : cpu::gram_workspace(kernel, b, s, q, d, threads);
}

void gram(const Capsule& x, const Capsule& z, const Capsule& hyper, const std::vector<double>& values, int kernel,
          int order, const Capsule& k, const Capsule& work, int64_t b, int64_t s, int64_t q, int64_t d, int threads,
          const StreamCode& stream, bool halves, bool products) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    GramArgs<T> a{};
    const int64_t size = workspace_of(kernel_kind(kernel, order), b, s, q, d, threads, is_cuda(x), products);
    a.batch = b;
    a.s = s;
    a.q = q;
    a.d = d;
    a.threads = threads;
    a.halves = halves;
    a.products = products;
    a.x = r.features("x", tensor_of(x), b, s, d, a.x_element);
    a.z = r.features("z", tensor_of(z), b, q, d, a.z_element);
    a.k = r.template array<T>("k", tensor_of(k), b * s * q);
    a.hyper = r.hyper(tensor_of(hyper), values, b);
    a.kernel = kernel_kind(kernel, order);
    a.order = order;
    require_values(a.kernel, a.hyper.count, 0, sizeof(T));
    require_all("x and k", a.x.p, a.k);
    require(a.z.p || q == s, "z: expected a tensor, got None; without it the matrix is square");
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("work", a.work);
    run_on(r, [&] { cuda::gram(a, stream_of(stream)); }, [&] { cpu::gram(a); });
  };
  by_type(x, [&] { run(float()); }, [&] { run(double()); });
}

int64_t backward_workspace_of(KernelKind kernel, int64_t b, int64_t s, int64_t q, int64_t d, int64_t chunk,
                              bool symmetric, int threads) {
  require_fits(b, std::max(s, q), std::max(std::max(s, q), d));
  require(std::min(s, q) >= 1 && d >= 0 && chunk >= 1 && (!symmetric || s == q), "shape: sizes out of range");
  require_threads(threads);
  return cpu::gram_backward_workspace(kernel, b, s, q, d, chunk, symmetric, threads);
}

void gram_backward(const Capsule& x, const Capsule& z, const Capsule& grad, const Capsule& hyper,
                   const std::vector<double>& values, int kernel, int order, const Capsule& grad_x,
                   const Capsule& grad_z, const Capsule& grad_hyper, const Capsule& work, int64_t b, int64_t s,
                   int64_t q, int64_t d, int64_t chunk, int threads) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    GramBackwardArgs<T> a{};
    const int64_t size = backward_workspace_of(kernel_kind(kernel, order), b, s, q, d, chunk, z.is_none(), threads);
    a.batch = b;
    a.s = s;
    a.q = q;
    a.d = d;
    a.chunk = std::min(chunk, s);
    a.threads = threads;
    a.x = r.batch("x", tensor_of(x), b, s, d);
    a.z = r.batch("z", tensor_of(z), b, q, d);
    a.grad = r.batch("grad", tensor_of(grad), b, s, q);
    a.hyper = r.hyper(tensor_of(hyper), values, b);
    a.kernel = kernel_kind(kernel, order);
    a.order = order;
    require(a.kernel != KernelKind::linear, "gram_backward: the linear kernel has none");
    require_values(a.kernel, a.hyper.count, 0, sizeof(T));
    a.grad_x = r.template array<T>("grad_x", tensor_of(grad_x), b * s * d);
    a.grad_z = r.template array<T>("grad_z", tensor_of(grad_z), b * q * d);
    a.grad_hyper = r.template array<T>("grad_hyper", tensor_of(grad_hyper), b * a.hyper.count);
    a.work = r.template array<T>("work", tensor_of(work), size);
    require(!r.cuda() && (a.z || !a.grad_z), "gram_backward: on the CPU, a gradient to z only with z");
    require_all("x, grad and work", a.x.p, a.grad.p, a.work);
    py::gil_scoped_release release;
    cpu::gram_backward(a);
  };
  by_type(x, [&] { run(float()); }, [&] { run(double()); });
}

}  // namespace

void bind_gram(py::module_& m) {
  m.def("gram", &gram);
  m.def("gram_workspace",
        [](int kernel, int order, int64_t b, int64_t s, int64_t q, int64_t d, int threads, bool on_cuda,
           bool products) { return workspace_of(kernel_kind(kernel, order), b, s, q, d, threads, on_cuda, products); });
  m.def("gram_backward", &gram_backward);
  m.def("gram_backward_workspace", [](int kernel, int order, int64_t b, int64_t s, int64_t q, int64_t d, int64_t chunk,
                                      bool symmetric, int threads) {
    return backward_workspace_of(kernel_kind(kernel, order), b, s, q, d, chunk, symmetric, threads);
  });
}

}  // namespace ssdd

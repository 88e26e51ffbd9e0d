// The bindings of cholesky.h.
#include "../cholesky.h"

#include "capsules.h"

namespace ssdd {
namespace {

int64_t cholesky_workspace(int64_t b, int64_t s, int64_t c, int threads, bool on_cuda) {
  require_fits(b, s, std::max(s, c));
  require(c >= 0, "shape: sizes must not be negative");
  require_threads(threads);
  return on_cuda ? cuda::cholesky_workspace(b, s, c) : cpu::cholesky_workspace(b, s, c, threads);
}

void solve(const Capsule& a_in, const Capsule& y, const Capsule& hyper, const std::vector<double>& values, int ridge,
           int on_failure, const Capsule& factor, const Capsule& x, const Capsule& status, const Capsule& jitter,
           const Capsule& aux, const Capsule& work, int64_t b, int64_t s, int64_t c, int threads,
           const StreamCode& stream, bool cluster) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    SolveArgs<T> a{};
    const int64_t size = cholesky_workspace(b, s, c, threads, is_cuda(a_in));
    a.batch = b;
    a.s = s;
    a.c = c;
    a.threads = threads;
    a.cluster = cluster;
    a.a = r.batch("a", tensor_of(a_in), b, s, s);
    a.y = r.batch("y", tensor_of(y), b, s, c);
    a.factor = r.template array<T>("factor", tensor_of(factor), b * s * s);
    a.x = r.template array<T>("x", tensor_of(x), b * s * c);
    require((a.x == nullptr) == !a.y, "x and y: both or neither");
    a.status = r.template array<int32_t>("status", tensor_of(status), b, dlpack::kInt);
    a.jitter = r.template array<T>("jitter", tensor_of(jitter), b);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * b);
    a.hyper = r.hyper(tensor_of(hyper), values, b);
    a.ridge = ridge_of(ridge);
    require(a.hyper.count <= 1, "hyper: the ridge alone");
    require_all("a, factor, status, jitter and aux", a.a.p, a.factor, a.status, a.jitter, a.aux);
    a.on_failure = on_failure_of(on_failure);
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("work", a.work);
    run_on(r, [&] { cuda::solve(a, stream_of(stream)); }, [&] { cpu::solve(a); });
  };
  by_type(a_in, [&] { run(float()); }, [&] { run(double()); });
}

void solve_backward(const Capsule& grad, const Capsule& factor, const Capsule& x, const Capsule& aux,
                    const Capsule& hyper, const std::vector<double>& values, int ridge, bool detach,
                    const Capsule& grad_a, const Capsule& grad_y, const Capsule& grad_v, const Capsule& work, int64_t b,
                    int64_t s, int64_t c, int threads, const StreamCode& stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    SolveBackwardArgs<T> a{};
    const int64_t size = cholesky_workspace(b, s, c, threads, is_cuda(grad));
    a.batch = b;
    a.s = s;
    a.c = c;
    a.threads = threads;
    a.grad = r.batch("grad", tensor_of(grad), b, s, c);
    a.factor = r.template array<T>("factor", tensor_of(factor), b * s * s);
    a.x = r.template array<T>("x", tensor_of(x), b * s * c);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * b);
    a.grad_a = r.template array<T>("grad_a", tensor_of(grad_a), b * s * s);
    a.grad_y = r.template array<T>("grad_y", tensor_of(grad_y), b * s * c);
    a.grad_v = r.template array<T>("grad_v", tensor_of(grad_v), b);
    a.hyper = r.hyper(tensor_of(hyper), values, b);
    a.ridge = ridge_of(ridge);
    require(a.hyper.count <= 1, "hyper: the ridge alone");
    require_all("grad, factor, x, aux and grad_y", a.grad.p, a.factor, a.x, a.aux, a.grad_y);
    a.detach = detach;
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("work", a.work);
    run_on(r, [&] { cuda::solve_backward(a, stream_of(stream)); }, [&] { cpu::solve_backward(a); });
  };
  by_type(grad, [&] { run(float()); }, [&] { run(double()); });
}

}  // namespace

void bind_cholesky(py::module_& m) {
  m.def("solve", &solve);
  m.def("solve_backward", &solve_backward);
  m.def("cholesky_workspace", &cholesky_workspace);
}

}  // namespace ssdd

// The bindings of krr.h: both passes with their results in tensors of their own, on the CPU and on a GPU.
#include "krr_inputs.h"

namespace ssdd {
namespace {

int64_t krr_workspace(const KrrShape& shape, bool backward, bool on_cuda) {
  return on_cuda ? cuda::krr_workspace(shape, backward) : cpu::krr_workspace(shape, backward);
}

KrrShape shape_of(int64_t batch, int64_t s, int64_t q, int64_t d, int64_t c, int64_t n, int kernel, int ridge,
                  bool detach, bool bordered, int plan, int64_t chunk, int threads, bool fused_gram, bool lanes,
                  int order, bool halves, bool cluster, bool products, int64_t parts) {
  KrrShape shape{};
  shape.batch = batch;
  shape.s = s;
  shape.q = q;
  shape.d = d;
  shape.c = c;
  shape.n = n;
  shape.kernel = kernel_kind(kernel, order);
  shape.order = order;
  shape.ridge = ridge_of(ridge);
  shape.detach = detach;
  shape.bordered = bordered;
  shape.plan = plan_of(plan);
  shape.chunk = std::min(chunk, std::max<int64_t>(q, 1));  // workspaces hold a chunk
  shape.threads = threads;
  shape.fused_gram = fused_gram;
  shape.lanes = lanes;
  shape.halves = halves;
  shape.cluster = cluster;
  shape.products = products;
  shape.parts = parts;
  for (const int64_t size : {batch, s, q, d, c, n}) require(size >= 0, "shape: sizes must not be negative");
  require_fits(batch, std::max(s, std::max(q, n)), std::max(std::max(s, q), std::max(d, std::max(c, n))));
  require_fits(1, c, d);
  require(chunk >= 1 && chunk <= kMostChunk, "shape: chunk must be positive");
  require_threads(threads);
  const bool primal = shape.plan == Plan::primal, linear = shape.kernel == KernelKind::linear;
  require(linear || shape.plan == Plan::dense, "plan: kernels other than the linear one run dense");
  require(!lanes || cpu::krr_lanes_fit(shape), "lanes: the linear kernel, low rank, few support points and features");
  require(parts >= 0 && parts <= q / 8 + 1, "parts: more blocks than tiles of queries");
  require(n == (primal ? d + (bordered ? 1 : 0) : s), "shape: the factor's order does not match the plan");
  return shape;
}

// Reads what the forward keeps for its backward: the parts of its blocks of queries, or K_qs.
template <class Args, class T>
void read_kept(Reader<T>& r, const Capsule& kept, Args& a) {
  const KrrShape& s = a.shape;
  if (s.parts == 0) {
    a.kept = r.template array<T>("kept", tensor_of(kept), s.batch * kept_rows(s.kernel, s.s, s.q) * s.s);
    return;
  }
  require(r.cuda(), "parts: on a GPU only");
  a.parts = r.template array<T>("kept", tensor_of(kept), s.batch * s.parts * one_pass_part(s.s, s.d, s.c));
  require(reinterpret_cast<uintptr_t>(a.parts) % 16 == 0, "kept: parts are aligned to 16 bytes");
}

void krr_forward(const KrrShape& shape, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q, const Capsule& y_q,
                 const Capsule& hyper, const std::vector<double>& values, int on_failure, const Capsule& out,
                 const Capsule& loss, const Capsule& factor, const Capsule& coef, const Capsule& kept,
                 const Capsule& aux, const Capsule& jitter, const Capsule& status, const Capsule& work,
                 const StreamCode& stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    a.shape = shape;
    const KrrShape& s = a.shape;
    read_inputs(r, {x_s, y_s, x_q, hyper, values}, a);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    require(!s.lanes || !r.cuda(), "lanes: on the CPU only");
    a.out = r.template array<T>("out", tensor_of(out), s.batch * s.q * s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    a.factor = r.template array<T>("factor", tensor_of(factor), s.batch * s.n * s.n);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    read_kept(r, kept, a);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * s.batch);
    a.jitter = r.template array<T>("jitter", tensor_of(jitter), s.batch);
    a.status = r.template array<int32_t>("status", tensor_of(status), s.batch, dlpack::kInt);
    a.on_failure = on_failure_of(on_failure);
    a.work = r.template array<T>("work", tensor_of(work), krr_workspace(s, false, r.cuda()));
    require_all("out, aux, jitter, status and work", a.out, a.aux, a.jitter, a.status, a.work);
    require(!a.loss == !a.y_q, "y_q and loss: both or neither");
    require((a.factor && a.coef) || (s.lanes && a.on_failure != OnFailure::jitter) || s.batch * s.n == 0,
            "factor and coef: needed here");
    run_on(r, [&] { cuda::krr_forward(a, stream_of(stream)); }, [&] { cpu::krr_forward(a); });
  };
  by_type(y_s, [&] { run(float()); }, [&] { run(double()); });
}

void krr_backward(const KrrShape& shape, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q, const Capsule& e,
                  const Capsule& g, const Capsule& factor, const Capsule& coef, const Capsule& kept, const Capsule& aux,
                  const Capsule& hyper, const std::vector<double>& values, const Capsule& grad_x_s,
                  const Capsule& grad_y_s, const Capsule& grad_x_q, const Capsule& grad_hyper, const Capsule& work,
                  const StreamCode& stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrBackwardArgs<T> a{};
    a.shape = shape;
    const KrrShape& s = a.shape;
    read_inputs(r, {x_s, y_s, x_q, hyper, values}, a);
    a.e = r.batch("e", tensor_of(e), s.batch, s.q, s.c);
    a.g = r.batch("g", tensor_of(g), s.batch, 1, 1);
    a.factor = r.template array<T>("factor", tensor_of(factor), s.batch * s.n * s.n);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    read_kept(r, kept, a);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * s.batch);
    read_gradients(r, {grad_x_s, grad_y_s, grad_x_q, grad_hyper}, a);
    a.work = r.template array<T>("work", tensor_of(work), krr_workspace(s, true, r.cuda()));
    require_all("e, factor, coef, aux and work", a.e.p, a.factor, a.coef, a.aux, a.work);
    run_on(r, [&] { cuda::krr_backward(a, stream_of(stream)); }, [&] { cpu::krr_backward(a); });
  };
  by_type(y_s, [&] { run(float()); }, [&] { run(double()); });
}

}  // namespace

void bind_krr(py::module_& m) {
  // Immutable, so that a checked shape cannot change before a kernel uses it.
  py::class_<KrrShape>(m, "KrrShape")
      .def(py::init(&shape_of), py::kw_only(), py::arg("batch"), py::arg("s"), py::arg("q"), py::arg("d"), py::arg("c"),
           py::arg("n"), py::arg("kernel"), py::arg("ridge"), py::arg("detach"), py::arg("bordered"), py::arg("plan"),
           py::arg("chunk"), py::arg("threads"), py::arg("fused_gram") = false, py::arg("lanes") = false,
           py::arg("order") = 0, py::arg("halves") = false, py::arg("cluster") = false, py::arg("products") = false,
           py::arg("parts") = 0)
      .def_readonly("batch", &KrrShape::batch)
      .def_readonly("n", &KrrShape::n)
      .def_readonly("threads", &KrrShape::threads);
  m.def("krr_forward", &krr_forward);
  m.def("krr_backward", &krr_backward);
  m.def("krr_workspace", &krr_workspace);
}

}  // namespace ssdd

// The only file with Python: DLPack capsules to views, checks for memory safety, the GIL, and the choice of cpu:: or
// cuda::.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "arena.h"
#include "cholesky.h"
#include "cpu/blas.h"
#include "cpu/kernel_rows.h"
#include "cpu/micro.h"
#include "device.h"
#include "gram.h"
#include "krr.h"
#include "openblas.h"
#include "reader.h"

namespace py = pybind11;

namespace ssdd {
namespace {

using Capsule = py::object;

const dlpack::Tensor* tensor_of(const Capsule& capsule) {
  if (capsule.is_none()) return nullptr;
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  return &managed->tensor;
}

bool is_double(const Capsule& capsule) {
  const dlpack::Tensor* tensor = tensor_of(capsule);
  require(tensor != nullptr, "expected a tensor, got None");
  return tensor->dtype.bits == 64;
}

// Products of sizes up to here fit 64 bits, also times the bytes of an element and the arrays of a workspace.
constexpr double kMostElements = double(int64_t(1) << 52);
constexpr int64_t kMostChunk = int64_t(1) << 40;
constexpr int kMostThreads = 1 << 14;

void require_fits(int64_t batch, int64_t rows, int64_t columns) {
  require(batch >= 0 && rows >= 0 && columns >= 0, "shape: sizes must not be negative");
  require((double(batch) + 1) * (double(rows) + 1) * (double(columns) + 1) <= kMostElements,
          "shape: more elements than can be addressed");
}

void require_threads(int threads) { require(threads >= 1 && threads <= kMostThreads, "threads: expected 1 to 16384"); }

RidgeKind ridge_of(int code) {
  require(code >= 0 && code <= int(RidgeKind::mean_trace), "ridge: expected 0 to 2");
  return static_cast<RidgeKind>(code);
}

OnFailure on_failure_of(int code) {
  require(code == int(OnFailure::nan) || code == int(OnFailure::jitter), "on_failure: expected 0 or 1");
  return static_cast<OnFailure>(code);
}

Plan plan_of(int code) {
  require(code >= 0 && code <= int(Plan::primal), "plan: expected 0 to 3");
  return static_cast<Plan>(code);
}

// The core takes a null pointer for "absent", and these are always there.
template <class... Pointers>
void require_all(const char* names, const Pointers*... pointers) {
  require((... && (pointers != nullptr)), std::string(names) + ": expected a tensor each, got None");
}

// Calls one half of the core without the GIL; on a GPU with the tensors' device as the current one.
template <class T, class Cuda, class Cpu>
void run_on(const Reader<T>& r, Cuda on_cuda, Cpu on_cpu) {
  py::gil_scoped_release release;
  if (!r.cuda()) return on_cpu();
  const cuda::DeviceGuard guard(r.device_index());
  on_cuda();
}

int64_t gram_workspace(int64_t b, int64_t s, int64_t q, int64_t d, int threads, bool on_cuda) {
  require_fits(b, std::max(s, q), std::max(std::max(s, q), d));
  require(std::min(s, q) >= 0 && d >= 0, "shape: sizes must not be negative");
  require_threads(threads);
  return on_cuda ? cuda::gram_workspace(b, s, q, d) : cpu::gram_workspace(b, s, q, threads);
}
int64_t cholesky_workspace(int64_t b, int64_t s, int64_t c, int threads, bool on_cuda) {
  require_fits(b, s, std::max(s, c));
  require(c >= 0, "shape: sizes must not be negative");
  require_threads(threads);
  return on_cuda ? cuda::cholesky_workspace(b, s, c) : cpu::cholesky_workspace(b, s, c, threads);
}
int64_t krr_workspace(const KrrShape& shape, bool backward, bool on_cuda) {
  return on_cuda ? cuda::krr_workspace(shape, backward) : cpu::krr_workspace(shape, backward);
}

bool is_cuda(const Capsule& first) { return tensor_of(first)->device.type == dlpack::kCUDA; }

template <class F32, class F64>
void by_type(const Capsule& first, F32 f32, F64 f64) {
  is_double(first) ? f64() : f32();
}

KernelKind kernel_kind(int code, int order) {
  require(code >= 0 && code < kKernelKinds, "kernel: unknown code");
  const auto kind = static_cast<KernelKind>(code);
  const bool network = kind == KernelKind::nngp || kind == KernelKind::ntk;
  require(order >= (kind == KernelKind::polynomial ? 1 : 0), "order: too small");
  require(!network || order <= cpu::kMostLayers, "order: more layers than the core has");
  return kind;
}

void require_values(KernelKind kind, int count, int ridge, size_t size) {
  require(count == parameter_count(kind) + ridge, "hyper: wrong number of values");
  require(!of_norms(kind) || size == 8, "kernel: functions of an angle run in double");
}

void gram(const Capsule& x, const Capsule& z, const Capsule& hyper, const std::vector<double>& values, int kernel,
          int order, const Capsule& k, const Capsule& work, int64_t b, int64_t s, int64_t q, int64_t d, int threads,
          uintptr_t stream, bool halves) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    GramArgs<T> a{};
    const int64_t size = gram_workspace(b, s, q, d, threads, is_cuda(x));
    a.batch = b;
    a.s = s;
    a.q = q;
    a.d = d;
    a.threads = threads;
    a.halves = halves;
    a.x = r.features("x", tensor_of(x), b, s, d, a.x_element);
    a.z = r.features("z", tensor_of(z), b, q, d, a.z_element);
    a.k = r.template array<T>("k", tensor_of(k), b * s * q);
    a.hyper = r.hyper(tensor_of(hyper), values, b);
    a.kernel = kernel_kind(kernel, order);
    a.order = order;
    require_values(a.kernel, a.hyper.count, 0, sizeof(T));
    require_all("x and k", a.x.p, a.k);
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("work", a.work);
    run_on(r, [&] { cuda::gram(a, reinterpret_cast<void*>(stream)); }, [&] { cpu::gram(a); });
  };
  by_type(x, [&] { run(float()); }, [&] { run(double()); });
}

void solve(const Capsule& a_in, const Capsule& y, const Capsule& hyper, const std::vector<double>& values, int ridge,
           int on_failure, const Capsule& factor, const Capsule& x, const Capsule& status, const Capsule& jitter,
           const Capsule& aux, const Capsule& work, int64_t b, int64_t s, int64_t c, int threads, uintptr_t stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    SolveArgs<T> a{};
    const int64_t size = cholesky_workspace(b, s, c, threads, is_cuda(a_in));
    a.batch = b;
    a.s = s;
    a.c = c;
    a.threads = threads;
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
    run_on(r, [&] { cuda::solve(a, reinterpret_cast<void*>(stream)); }, [&] { cpu::solve(a); });
  };
  by_type(a_in, [&] { run(float()); }, [&] { run(double()); });
}

void solve_backward(const Capsule& grad, const Capsule& factor, const Capsule& x, const Capsule& aux,
                    const Capsule& hyper, const std::vector<double>& values, int ridge, bool detach,
                    const Capsule& grad_a, const Capsule& grad_y, const Capsule& grad_v, const Capsule& work, int64_t b,
                    int64_t s, int64_t c, int threads, uintptr_t stream) {
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
    run_on(r, [&] { cuda::solve_backward(a, reinterpret_cast<void*>(stream)); }, [&] { cpu::solve_backward(a); });
  };
  by_type(grad, [&] { run(float()); }, [&] { run(double()); });
}

KrrShape shape_of(int64_t batch, int64_t s, int64_t q, int64_t d, int64_t c, int64_t n, int kernel, int ridge,
                  bool detach, bool bordered, int plan, int64_t chunk, int threads, bool fused_gram, bool lanes,
                  int order, bool halves) {
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
  shape.chunk = chunk;
  shape.threads = threads;
  shape.fused_gram = fused_gram;
  shape.lanes = lanes;
  shape.halves = halves;
  for (const int64_t size : {batch, s, q, d, c, n}) require(size >= 0, "shape: sizes must not be negative");
  require_fits(batch, std::max(s, std::max(q, n)), std::max(std::max(s, q), std::max(d, std::max(c, n))));
  require(chunk >= 1 && chunk <= kMostChunk, "shape: chunk must be positive");
  require_threads(threads);
  const bool primal = shape.plan == Plan::primal, linear = shape.kernel == KernelKind::linear;
  require(linear || shape.plan == Plan::dense, "plan: kernels other than the linear one run dense");
  require(!lanes || cpu::krr_lanes_fit(shape), "lanes: the linear kernel, low rank, few support points and features");
  require(n == (primal ? d + (bordered ? 1 : 0) : s), "shape: the factor's order does not match the plan");
  return shape;
}

void krr_forward(const KrrShape& shape, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q, const Capsule& y_q,
                 const Capsule& hyper, const std::vector<double>& values, int on_failure, const Capsule& out,
                 const Capsule& loss, const Capsule& factor, const Capsule& coef, const Capsule& kept,
                 const Capsule& aux, const Capsule& jitter, const Capsule& status, const Capsule& work,
                 uintptr_t stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    a.shape = shape;
    const KrrShape& s = a.shape;
    a.x_s = r.features("x_s", tensor_of(x_s), s.batch, s.s, s.d, a.s_element);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = r.features("x_q", tensor_of(x_q), s.batch, s.q, s.d, a.q_element);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    require(!s.lanes || !r.cuda(), "lanes: on the CPU only");
    a.out = r.template array<T>("out", tensor_of(out), s.batch * s.q * s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    a.factor = r.template array<T>("factor", tensor_of(factor), s.batch * s.n * s.n);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    a.kept = r.template array<T>("kept", tensor_of(kept), s.batch * kept_rows(s.kernel, s.s, s.q) * s.s);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * s.batch);
    a.jitter = r.template array<T>("jitter", tensor_of(jitter), s.batch);
    a.status = r.template array<int32_t>("status", tensor_of(status), s.batch, dlpack::kInt);
    a.hyper = r.hyper(tensor_of(hyper), values, s.batch);
    a.on_failure = on_failure_of(on_failure);
    a.work = r.template array<T>("work", tensor_of(work), krr_workspace(s, false, r.cuda()));
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    require_all("x_s, y_s, x_q, out, aux, jitter and status", a.x_s.p, a.y_s.p, a.x_q.p, a.out, a.aux, a.jitter,
                a.status);
    require(!a.loss == !a.y_q, "y_q and loss: both or neither");
    require((a.factor && a.coef) || (s.lanes && a.on_failure != OnFailure::jitter) || s.batch * s.n == 0,
            "factor and coef: needed here");
    require_all("work", a.work);
    run_on(r, [&] { cuda::krr_forward(a, reinterpret_cast<void*>(stream)); }, [&] { cpu::krr_forward(a); });
  };
  by_type(y_s, [&] { run(float()); }, [&] { run(double()); });
}

void krr_backward(const KrrShape& shape, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q, const Capsule& e,
                  const Capsule& g, const Capsule& factor, const Capsule& coef, const Capsule& kept, const Capsule& aux,
                  const Capsule& hyper, const std::vector<double>& values, const Capsule& grad_x_s,
                  const Capsule& grad_y_s, const Capsule& grad_x_q, const Capsule& grad_hyper, const Capsule& work,
                  uintptr_t stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrBackwardArgs<T> a{};
    a.shape = shape;
    const KrrShape& s = a.shape;
    a.x_s = r.features("x_s", tensor_of(x_s), s.batch, s.s, s.d, a.s_element);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = r.features("x_q", tensor_of(x_q), s.batch, s.q, s.d, a.q_element);
    a.e = r.batch("e", tensor_of(e), s.batch, s.q, s.c);
    a.g = r.batch("g", tensor_of(g), s.batch, 1, 1);
    a.factor = r.template array<T>("factor", tensor_of(factor), s.batch * s.n * s.n);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    a.kept = r.template array<T>("kept", tensor_of(kept), s.batch * kept_rows(s.kernel, s.s, s.q) * s.s);
    a.aux = r.template array<T>("aux", tensor_of(aux), 3 * s.batch);
    a.hyper = r.hyper(tensor_of(hyper), values, s.batch);
    a.grad_x_s = r.template array<T>("grad_x_s", tensor_of(grad_x_s), s.batch * s.s * s.d);
    a.grad_y_s = r.template array<T>("grad_y_s", tensor_of(grad_y_s), s.batch * s.s * s.c);
    a.grad_x_q = r.template array<T>("grad_x_q", tensor_of(grad_x_q), s.batch * s.q * s.d);
    a.grad_hyper = r.template array<T>("grad_hyper", tensor_of(grad_hyper), s.batch * a.hyper.count);
    a.work = r.template array<T>("work", tensor_of(work), krr_workspace(s, true, r.cuda()));
    require_all("x_s, y_s, x_q, e, factor, coef and aux", a.x_s.p, a.y_s.p, a.x_q.p, a.e.p, a.factor, a.coef, a.aux);
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    require_all("work", a.work);
    run_on(r, [&] { cuda::krr_backward(a, reinterpret_cast<void*>(stream)); }, [&] { cpu::krr_backward(a); });
  };
  by_type(y_s, [&] { run(float()); }, [&] { run(double()); });
}

// The workspace of krr_value_and_gradient: everything the forward saves for the backward, then the larger of their
// workspaces.
template <class T>
struct Between {
  T *out, *factor, *coef, *kept, *aux, *jitter, *g, *work;
  int32_t* status;
  int64_t total;
};

template <class T>
Between<T> between(const KrrShape& forward, const KrrShape& backward, bool keeps, T* memory) {
  Arena<T> arena{memory};
  Between<T> w{};
  const int64_t n = std::max(forward.n, backward.n), b = forward.batch;
  w.out = arena.take(b * forward.q * forward.c);
  w.factor = arena.take(b * n * n);
  w.coef = arena.take(b * n * forward.c);
  w.kept = keeps ? arena.take(b * kept_rows(forward.kernel, forward.s, forward.q) * forward.s) : nullptr;
  w.aux = arena.take(3 * b);
  w.jitter = arena.take(b);
  w.g = arena.take(b);
  w.status = reinterpret_cast<int32_t*>(arena.take(b));
  w.work = arena.take(std::max(cpu::krr_workspace(forward, false), cpu::krr_workspace(backward, true)));
  w.total = arena.used;
  return w;
}

// For small problems: the loss and, with gbar = 1, its gradients in one call. The backward is then one multiplication.
// Returns the number of problems that failed.
int krr_value_and_gradient(const KrrShape& forward, int backward_plan, const Capsule& x_s, const Capsule& y_s,
                           const Capsule& x_q, const Capsule& y_q, const std::vector<double>& values, int on_failure,
                           const Capsule& loss, const Capsule& grad_x_s, const Capsule& grad_y_s,
                           const Capsule& grad_x_q, const Capsule& work) {
  int failed = 0;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    KrrBackwardArgs<T> g{};
    a.shape = g.shape = forward;
    g.shape.plan = plan_of(backward_plan);
    const KrrShape& s = a.shape;
    require((s.plan == Plan::primal) == (g.shape.plan == Plan::primal), "plan: both passes or none are primal");
    a.x_s = g.x_s = r.batch("x_s", tensor_of(x_s), s.batch, s.s, s.d);
    a.y_s = g.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = g.x_q = r.batch("x_q", tensor_of(x_q), s.batch, s.q, s.d);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    a.hyper = g.hyper = r.hyper(nullptr, values, s.batch);
    a.on_failure = on_failure_of(on_failure);
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    g.grad_x_s = r.template array<T>("grad_x_s", tensor_of(grad_x_s), s.batch * s.s * s.d);
    g.grad_y_s = r.template array<T>("grad_y_s", tensor_of(grad_y_s), s.batch * s.s * s.c);
    g.grad_x_q = r.template array<T>("grad_x_q", tensor_of(grad_x_q), s.batch * s.q * s.d);
    require(!r.cuda() && a.loss, "krr_value_and_gradient: a loss on the CPU");
    require_all("x_s, y_s, x_q and y_q", a.x_s.p, a.y_s.p, a.x_q.p, a.y_q.p);
    require(s.kernel == KernelKind::linear || g.shape.plan == Plan::dense, "plan: other kernels run dense");
    if (cpu::krr_fuses(s, g.shape.plan) && a.x_s.cs == 1 && a.x_q.cs == 1) {
      T* memory = r.template array<T>("work", tensor_of(work), s.batch + 16 + cpu::krr_fused_workspace(s));
      require_all("work", memory);
      auto* status = reinterpret_cast<int32_t*>(memory);
      const KrrFusedArgs<T> fused{s,
                                  a.x_s,
                                  a.y_s,
                                  a.x_q,
                                  a.y_q,
                                  a.loss,
                                  g.grad_x_s,
                                  g.grad_y_s,
                                  g.grad_x_q,
                                  status,
                                  a.hyper,
                                  a.on_failure,
                                  memory + (s.batch + 15) / 16 * 16};
      py::gil_scoped_release release;
      cpu::krr_fused(fused);
      for (int64_t b = 0; b < s.batch; ++b) failed += status[b] != 0;
      return;
    }
    const bool keeps = s.plan == Plan::dense;
    T* memory = r.template array<T>("work", tensor_of(work), between<T>(a.shape, g.shape, keeps, nullptr).total);
    require_all("work", memory);
    const Between<T> w = between<T>(a.shape, g.shape, keeps, memory);
    a.out = w.out;
    a.factor = w.factor;
    a.coef = w.coef;
    a.kept = w.kept;
    a.aux = w.aux;
    a.jitter = w.jitter;
    a.status = w.status;
    a.work = w.work;
    g.e = {w.out, s.q * s.c, s.c, 1};
    g.g = {w.g, 1, 1, 1};
    g.factor = w.factor;
    g.coef = w.coef;
    g.kept = w.kept;
    g.aux = w.aux;
    g.work = w.work;
    py::gil_scoped_release release;
    for (int64_t b = 0; b < s.batch; ++b) w.g[b] = T(1);
    cpu::krr_forward(a);
    for (int64_t b = 0; b < s.batch; ++b) failed += w.status[b] != 0;
    cpu::krr_backward(g);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

// The workspace of krr_evaluate: what the ordinary op returns beside its result, then the forward's own.
template <class T>
Between<T> beside(const KrrShape& s, bool predicts, bool keeps_factor, T* memory) {
  Arena<T> arena{memory};
  Between<T> w{};
  w.out = predicts ? nullptr : arena.take(s.batch * s.q * s.c);
  w.factor = keeps_factor ? arena.take(s.batch * s.n * s.n) : nullptr;
  w.coef = keeps_factor ? arena.take(s.batch * s.n * s.c) : nullptr;
  w.aux = arena.take(3 * s.batch);
  w.jitter = arena.take(s.batch);
  w.status = reinterpret_cast<int32_t*>(arena.take(s.batch));
  w.work = arena.take(cpu::krr_workspace(s, false));
  w.total = arena.used;
  return w;
}

bool keeps_factor(const KrrShape& s, int on_failure) {
  return !s.lanes || on_failure_of(on_failure) == OnFailure::jitter;
}

// Predictions [B, Q, C] or, with y_q, the loss [B] on the CPU, and nothing else. Returns how many problems failed.
int krr_evaluate(const KrrShape& s, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q, const Capsule& y_q,
                 const std::vector<double>& values, int on_failure, const Capsule& result, const Capsule& work) {
  int failed = 0;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    a.shape = s;
    a.x_s = r.batch("x_s", tensor_of(x_s), s.batch, s.s, s.d);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = r.batch("x_q", tensor_of(x_q), s.batch, s.q, s.d);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    const bool predicts = !a.y_q;
    T* out = r.template array<T>("result", tensor_of(result), predicts ? s.batch * s.q * s.c : s.batch);
    require(out && !r.cuda(), "krr_evaluate: a result on the CPU");
    require_all("x_s, y_s and x_q", a.x_s.p, a.y_s.p, a.x_q.p);
    a.hyper = r.hyper(nullptr, values, s.batch);
    a.on_failure = on_failure_of(on_failure);
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    const bool keeps = keeps_factor(s, on_failure);
    T* memory = r.template array<T>("work", tensor_of(work), beside<T>(s, predicts, keeps, nullptr).total);
    require_all("work", memory);
    const Between<T> w = beside<T>(s, predicts, keeps, memory);
    a.out = predicts ? out : w.out;
    a.loss = predicts ? nullptr : out;
    a.factor = w.factor;
    a.coef = w.coef;
    a.aux = w.aux;
    a.jitter = w.jitter;
    a.status = w.status;
    a.work = w.work;
    py::gil_scoped_release release;
    cpu::krr_forward(a);
    for (int64_t b = 0; b < s.batch; ++b) failed += w.status[b] != 0;
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

// What an eager forward on the CPU keeps for its backward, in one tensor.
template <class T>
struct Saved {
  T *factor, *coef, *kept, *aux, *jitter;
  int32_t* status;
  int64_t at_coef, at_kept, at_aux, total;
};

template <class T>
Saved<T> saved_of(int64_t batch, int64_t n, int64_t c, int64_t kept, T* memory) {
  Arena<T> arena{memory};
  Saved<T> w{};
  w.factor = arena.take(batch * n * n);
  w.at_coef = arena.used;
  w.coef = arena.take(batch * n * c);
  w.at_kept = arena.used;
  w.kept = kept ? arena.take(kept) : nullptr;
  w.at_aux = arena.used;
  w.aux = arena.take(3 * batch);
  w.jitter = arena.take(batch);
  w.status = reinterpret_cast<int32_t*>(arena.take(batch));
  w.total = arena.used;
  return w;
}

template <class T>
Saved<T> saved_of(const KrrShape& s, bool keeps, T* memory) {
  return saved_of(s.batch, s.n, s.c, keeps ? s.batch * kept_rows(s.kernel, s.s, s.q) * s.s : 0, memory);
}

py::tuple places(const Saved<float>& w) { return py::make_tuple(w.at_coef, w.at_kept, w.at_aux, w.total); }

int failures(int64_t batch, const int32_t* status) {
  int failed = 0;
  for (int64_t b = 0; b < batch; ++b) failed += status[b] != 0;
  return failed;
}

// krr_forward on the CPU with all that it keeps in `saved`. Returns how many problems failed.
int krr_record(const KrrShape& s, bool keeps, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q,
               const Capsule& y_q, const Capsule& hyper, const std::vector<double>& values, int on_failure,
               const Capsule& out, const Capsule& loss, const Capsule& saved, const Capsule& work) {
  int failed = 0;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    a.shape = s;
    a.x_s = r.batch("x_s", tensor_of(x_s), s.batch, s.s, s.d);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = r.batch("x_q", tensor_of(x_q), s.batch, s.q, s.d);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    a.out = r.template array<T>("out", tensor_of(out), s.batch * s.q * s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    require(!r.cuda() && a.out && !a.loss == !a.y_q, "krr_record: on the CPU, y_q and loss both or neither");
    require_all("x_s, y_s and x_q", a.x_s.p, a.y_s.p, a.x_q.p);
    a.hyper = r.hyper(tensor_of(hyper), values, s.batch);
    a.on_failure = on_failure_of(on_failure);
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, keeps, nullptr).total);
    require_all("saved", memory);
    const Saved<T> w = saved_of<T>(s, keeps, memory);
    a.factor = w.factor;
    a.coef = w.coef;
    a.kept = w.kept;
    a.aux = w.aux;
    a.jitter = w.jitter;
    a.status = w.status;
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, false));
    require_all("work", a.work);
    py::gil_scoped_release release;
    cpu::krr_forward(a);
    failed = failures(s.batch, w.status);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

// The backward of krr_record. `g` is None if `e` is the gradient to the predictions.
void krr_replay(const KrrShape& s, bool keeps, const Capsule& x_s, const Capsule& y_s, const Capsule& x_q,
                const Capsule& e, const Capsule& g, const Capsule& hyper, const std::vector<double>& values,
                const Capsule& saved, const Capsule& grad_x_s, const Capsule& grad_y_s, const Capsule& grad_x_q,
                const Capsule& grad_hyper, const Capsule& work) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrBackwardArgs<T> a{};
    a.shape = s;
    a.x_s = r.batch("x_s", tensor_of(x_s), s.batch, s.s, s.d);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.x_q = r.batch("x_q", tensor_of(x_q), s.batch, s.q, s.d);
    a.e = r.batch("e", tensor_of(e), s.batch, s.q, s.c);
    const T* bars = r.template array<T>("g", tensor_of(g), s.batch);
    if (bars) a.g = {bars, 1, 1, 1};
    require(!r.cuda() && a.e, "krr_replay: on the CPU");
    require_all("x_s, y_s and x_q", a.x_s.p, a.y_s.p, a.x_q.p);
    a.hyper = r.hyper(tensor_of(hyper), values, s.batch);
    require_values(s.kernel, a.hyper.count, 1, sizeof(T));
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, keeps, nullptr).total);
    require_all("saved", memory);
    const Saved<T> w = saved_of<T>(s, keeps, memory);
    a.factor = w.factor;
    a.coef = w.coef;
    a.kept = w.kept;
    a.aux = w.aux;
    a.grad_x_s = r.template array<T>("grad_x_s", tensor_of(grad_x_s), s.batch * s.s * s.d);
    a.grad_y_s = r.template array<T>("grad_y_s", tensor_of(grad_y_s), s.batch * s.s * s.c);
    a.grad_x_q = r.template array<T>("grad_x_q", tensor_of(grad_x_q), s.batch * s.q * s.d);
    a.grad_hyper = r.template array<T>("grad_hyper", tensor_of(grad_hyper), s.batch * a.hyper.count);
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, true));
    require_all("work", a.work);
    py::gil_scoped_release release;
    cpu::krr_backward(a);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
}

// Sizes of one call from Gram matrices; keeps: the forward also forms the moment that its backward needs.
struct FromGramShape {
  int64_t batch, s, q, c;
  int ridge;
  bool detach, keeps;
  int threads;
};

FromGramShape from_gram_shape(int64_t batch, int64_t s, int64_t q, int64_t c, int ridge, bool detach, bool keeps,
                              int threads) {
  require(s > 0, "FromGramShape: expected at least one support point");
  for (const int64_t size : {q, c}) require(size >= 0, "shape: sizes must not be negative");
  require_fits(batch, std::max(s, q), std::max(s, c));
  require_threads(threads);
  ridge_of(ridge);
  return {batch, s, q, c, ridge, detach, keeps, threads};
}

template <class T>
Saved<T> saved_of(const FromGramShape& s, T* memory) {
  return saved_of(s.batch, s.s, s.c, s.keeps ? s.batch * s.s * s.c : 0, memory);
}

int krr_from_gram(const FromGramShape& s, const Capsule& k_ss, const Capsule& y_s, const Capsule& k_qs,
                  const Capsule& y_q, const std::vector<double>& values, int on_failure, const Capsule& out,
                  const Capsule& loss, const Capsule& saved, const Capsule& work) {
  int failed = 0;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    FromGramArgs<T> a{};
    a.batch = s.batch;
    a.s = s.s;
    a.q = s.q;
    a.c = s.c;
    a.threads = s.threads;
    a.k_ss = r.batch("k_ss", tensor_of(k_ss), s.batch, s.s, s.s);
    a.y_s = r.batch("y_s", tensor_of(y_s), s.batch, s.s, s.c);
    a.k_qs = r.batch("k_qs", tensor_of(k_qs), s.batch, s.q, s.s);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    a.out = r.template array<T>("out", tensor_of(out), s.batch * s.q * s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    require(!r.cuda() && a.out && !a.loss == !a.y_q, "krr_from_gram: on the CPU, y_q and loss both or neither");
    a.hyper = r.hyper(nullptr, values, s.batch);
    require(a.hyper.count == 1, "values: the ridge's alone");
    a.ridge = ridge_of(s.ridge);
    a.on_failure = on_failure_of(on_failure);
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, nullptr).total);
    require_all("saved", memory);
    const Saved<T> w = saved_of<T>(s, memory);
    a.factor = w.factor;
    a.alpha = w.coef;
    a.moment = w.kept;
    a.aux = w.aux;
    a.jitter = w.jitter;
    a.status = w.status;
    const int64_t size = cpu::krr_from_gram_workspace(s.batch, s.s, s.c, s.threads);
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("k_ss, y_s, k_qs and work", a.k_ss.p, a.y_s.p, a.k_qs.p, a.work);
    py::gil_scoped_release release;
    cpu::krr_from_gram(a);
    failed = failures(s.batch, w.status);
  };
  by_type(k_ss, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

void krr_from_gram_backward(const FromGramShape& s, const Capsule& k_qs, const Capsule& e, const Capsule& g,
                            const std::vector<double>& values, const Capsule& saved, const Capsule& grad_k_ss,
                            const Capsule& grad_y_s, const Capsule& grad_k_qs, const Capsule& work) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    FromGramBackwardArgs<T> a{};
    a.batch = s.batch;
    a.s = s.s;
    a.q = s.q;
    a.c = s.c;
    a.threads = s.threads;
    a.k_qs = r.batch("k_qs", tensor_of(k_qs), s.batch, s.q, s.s);
    a.e = r.batch("e", tensor_of(e), s.batch, s.q, s.c);
    const T* bars = r.template array<T>("g", tensor_of(g), s.batch);
    if (bars) a.g = {bars, 1, 1, 1};
    require(!r.cuda() && a.k_qs && a.e, "krr_from_gram_backward: on the CPU");
    a.hyper = r.hyper(nullptr, values, s.batch);
    require(a.hyper.count == 1, "values: the ridge's alone");
    a.ridge = ridge_of(s.ridge);
    a.detach = s.detach;
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, nullptr).total);
    require_all("saved", memory);
    const Saved<T> w = saved_of<T>(s, memory);
    a.moment = w.kept;
    a.factor = w.factor;
    a.alpha = w.coef;
    a.aux = w.aux;
    a.grad_k_ss = r.template array<T>("grad_k_ss", tensor_of(grad_k_ss), s.batch * s.s * s.s);
    a.grad_y_s = r.template array<T>("grad_y_s", tensor_of(grad_y_s), s.batch * s.s * s.c);
    a.grad_k_qs = r.template array<T>("grad_k_qs", tensor_of(grad_k_qs), s.batch * s.q * s.s);
    require(a.grad_y_s || s.batch * s.s * s.c == 0, "grad_y_s: needed here");
    const int64_t size = cpu::krr_from_gram_workspace(s.batch, s.s, s.c, s.threads);
    a.work = r.template array<T>("work", tensor_of(work), size);
    require_all("work", a.work);
    py::gil_scoped_release release;
    cpu::krr_from_gram_backward(a);
  };
  by_type(k_qs, [&] { run(float()); }, [&] { run(double()); });
}

void* function_of(const py::module_& module, const char* name) {
  const py::object capsule = module.attr("__pyx_capi__")[name];
  return PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr()));
}

void connect_blas() {
  const py::module_ blas = py::module_::import("scipy.linalg.cython_blas");
  const py::module_ lapack = py::module_::import("scipy.linalg.cython_lapack");
  cpu::blas::Table table{};
  table.spotrf = reinterpret_cast<decltype(table.spotrf)>(function_of(lapack, "spotrf"));
  table.dpotrf = reinterpret_cast<decltype(table.dpotrf)>(function_of(lapack, "dpotrf"));
  table.strsm = reinterpret_cast<decltype(table.strsm)>(function_of(blas, "strsm"));
  table.dtrsm = reinterpret_cast<decltype(table.dtrsm)>(function_of(blas, "dtrsm"));
  cpu::blas::set_table(table);
  const ThreadControl control = find_openblas();
  cpu::blas::set_thread_control(control.get, control.set);
}

py::dict build_info() {
  py::dict info;
  info["cuda"] = cuda::built();
  info["cuda_architectures"] = cuda::architectures();
  py::list available;
  for (cpu::Isa isa : {cpu::Isa::generic, cpu::Isa::avx2, cpu::Isa::avx512})
    if (cpu::isa_available(isa)) available.append(cpu::isa_name(isa));
  info["instruction_sets"] = available;
  info["instruction_set"] = cpu::isa_name(cpu::isa_in_force());
  info["compiler"] = __VERSION__;
  return info;
}

void force_instruction_set(const std::string& name) {
  for (cpu::Isa isa : {cpu::Isa::automatic, cpu::Isa::generic, cpu::Isa::avx2, cpu::Isa::avx512})
    if (name == cpu::isa_name(isa)) return cpu::force_isa(isa);
  throw std::invalid_argument("instruction set: expected automatic, generic, avx2 or avx512, got " + name);
}

}  // namespace
}  // namespace ssdd

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of ssdd_ext. Private: use the public names of ssdd_ext.";
  ssdd::connect_blas();
  // Immutable, so that a checked shape cannot change before a kernel uses it.
  py::class_<ssdd::KrrShape>(m, "KrrShape")
      .def(py::init(&ssdd::shape_of), py::kw_only(), py::arg("batch"), py::arg("s"), py::arg("q"), py::arg("d"),
           py::arg("c"), py::arg("n"), py::arg("kernel"), py::arg("ridge"), py::arg("detach"), py::arg("bordered"),
           py::arg("plan"), py::arg("chunk"), py::arg("threads"), py::arg("fused_gram") = false,
           py::arg("lanes") = false, py::arg("order") = 0, py::arg("halves") = false)
      .def_readonly("batch", &ssdd::KrrShape::batch)
      .def_readonly("n", &ssdd::KrrShape::n)
      .def_readonly("threads", &ssdd::KrrShape::threads);
  m.def("gram", &ssdd::gram);
  m.def("solve", &ssdd::solve);
  m.def("solve_backward", &ssdd::solve_backward);
  m.def("krr_forward", &ssdd::krr_forward);
  m.def("krr_backward", &ssdd::krr_backward);
  m.def("gram_workspace", &ssdd::gram_workspace);
  m.def("cholesky_workspace", &ssdd::cholesky_workspace);
  m.def("krr_workspace", &ssdd::krr_workspace);
  m.def("krr_value_and_gradient", &ssdd::krr_value_and_gradient);
  m.def("krr_evaluate", &ssdd::krr_evaluate);
  m.def("krr_evaluate_workspace", [](const ssdd::KrrShape& s, bool predicts, int on_failure) {
    return ssdd::beside<float>(s, predicts, ssdd::keeps_factor(s, on_failure), nullptr).total;
  });
  m.def("krr_fuses", [](const ssdd::KrrShape& shape, int backward_plan) {
    return ssdd::cpu::krr_fuses(shape, ssdd::plan_of(backward_plan));
  });
  m.def("krr_value_and_gradient_workspace", [](const ssdd::KrrShape& forward, int backward_plan) {
    ssdd::KrrShape backward = forward;
    backward.plan = ssdd::plan_of(backward_plan);
    const int64_t passes = ssdd::between<float>(forward, backward, forward.plan == ssdd::Plan::dense, nullptr).total;
    const bool fuses = ssdd::cpu::krr_fuses(forward, backward.plan);
    return fuses ? std::max(passes, forward.batch + 16 + ssdd::cpu::krr_fused_workspace(forward)) : passes;
  });
  m.def("krr_record", &ssdd::krr_record);
  m.def("krr_replay", &ssdd::krr_replay);
  m.def("krr_saved",
        [](const ssdd::KrrShape& s, bool keeps) { return ssdd::places(ssdd::saved_of<float>(s, keeps, nullptr)); });
  py::class_<ssdd::FromGramShape>(m, "FromGramShape")
      .def(py::init(&ssdd::from_gram_shape), py::kw_only(), py::arg("batch"), py::arg("s"), py::arg("q"), py::arg("c"),
           py::arg("ridge"), py::arg("detach"), py::arg("keeps"), py::arg("threads"));
  m.def("krr_from_gram", &ssdd::krr_from_gram);
  m.def("krr_from_gram_backward", &ssdd::krr_from_gram_backward);
  m.def("krr_from_gram_saved",
        [](const ssdd::FromGramShape& s) { return ssdd::places(ssdd::saved_of<float>(s, nullptr)); });
  m.def("krr_from_gram_workspace",
        [](const ssdd::FromGramShape& s) { return ssdd::cpu::krr_from_gram_workspace(s.batch, s.s, s.c, s.threads); });
  m.def("cuda_problem", &ssdd::cuda::problem);
  m.def("build_info", &ssdd::build_info);
  m.def("force_instruction_set", &ssdd::force_instruction_set);
}

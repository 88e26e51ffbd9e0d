// The bindings of krr.h for eager calls on the CPU: one call per pass, with all that is not a result in one workspace.
#include "krr_inputs.h"

namespace ssdd {
namespace {

// What a forward leaves for its backward, then the larger of their workspaces.
template <class T>
struct Between : Parts<T> {
  T *out, *g, *work;
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

// The problem in one pass, for small ones. Returns how many failed.
template <class T>
int fused(const KrrForwardArgs<T>& a, const KrrBackwardArgs<T>& g, T* memory) {
  const KrrShape& s = a.shape;
  auto* status = reinterpret_cast<int32_t*>(memory);
  T* work = memory + (s.batch + 15) / 16 * 16;
  const KrrFusedArgs<T> args{s,          a.x_s,      a.y_s,  a.x_q,   a.y_q,        a.loss, g.grad_x_s,
                             g.grad_y_s, g.grad_x_q, status, a.hyper, a.on_failure, work};
  py::gil_scoped_release release;
  cpu::krr_fused(args);
  return failures(s.batch, status);
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
    const py::none none;
    read_inputs(r, {x_s, y_s, x_q, none, values}, a);
    g.x_s = a.x_s;
    g.y_s = a.y_s;
    g.x_q = a.x_q;
    g.hyper = a.hyper;
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    a.on_failure = on_failure_of(on_failure);
    read_gradients(r, {grad_x_s, grad_y_s, grad_x_q, none}, g);
    require(!r.cuda() && a.loss && a.y_q, "krr_value_and_gradient: targets and a loss on the CPU");
    require(s.kernel == KernelKind::linear || g.shape.plan == Plan::dense, "plan: other kernels run dense");
    if (cpu::krr_fuses(s, g.shape.plan) && (s.lanes || (a.x_s.cs == 1 && a.x_q.cs == 1))) {
      T* memory = r.template array<T>("work", tensor_of(work), s.batch + 16 + cpu::krr_fused_workspace(s));
      require_all("work", memory);
      failed = fused(a, g, memory);
      return;
    }
    const bool keeps = s.plan == Plan::dense;
    T* memory = r.template array<T>("work", tensor_of(work), between<T>(a.shape, g.shape, keeps, nullptr).total);
    require_all("work", memory);
    const Between<T> w = between<T>(a.shape, g.shape, keeps, memory);
    set_parts(w, a);
    set_parts(w, g);
    a.out = w.out;
    g.e = {w.out, s.q * s.c, s.c, 1};
    g.g = {w.g, 1, 1, 1};
    a.work = g.work = w.work;
    py::gil_scoped_release release;
    for (int64_t b = 0; b < s.batch; ++b) w.g[b] = T(1);
    cpu::krr_forward(a);
    failed = failures(s.batch, w.status);
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
    read_inputs(r, {x_s, y_s, x_q, py::none(), values}, a);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    const bool predicts = !a.y_q;
    T* out = r.template array<T>("result", tensor_of(result), predicts ? s.batch * s.q * s.c : s.batch);
    require(out && !r.cuda(), "krr_evaluate: a result on the CPU");
    a.on_failure = on_failure_of(on_failure);
    const bool keeps = keeps_factor(s, on_failure);
    T* memory = r.template array<T>("work", tensor_of(work), beside<T>(s, predicts, keeps, nullptr).total);
    require_all("work", memory);
    const Between<T> w = beside<T>(s, predicts, keeps, memory);
    set_parts(w, a);
    a.out = predicts ? out : w.out;
    a.loss = predicts ? nullptr : out;
    a.work = w.work;
    py::gil_scoped_release release;
    cpu::krr_forward(a);
    failed = failures(s.batch, w.status);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

template <class T>
Saved<T> saved_of(const KrrShape& s, bool keeps, T* memory) {
  return saved_in(s.batch, s.n, s.c, keeps ? s.batch * kept_rows(s.kernel, s.s, s.q) * s.s : 0, memory);
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
    read_inputs(r, {x_s, y_s, x_q, hyper, values}, a);
    a.y_q = r.batch("y_q", tensor_of(y_q), s.batch, s.q, s.c);
    a.out = r.template array<T>("out", tensor_of(out), s.batch * s.q * s.c);
    a.loss = r.template array<T>("loss", tensor_of(loss), s.batch);
    require(!r.cuda() && a.out && !a.loss == !a.y_q, "krr_record: on the CPU, y_q and loss both or neither");
    a.on_failure = on_failure_of(on_failure);
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, keeps, nullptr).total);
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, false));
    require_all("saved and work", memory, a.work);
    const Saved<T> w = saved_of<T>(s, keeps, memory);
    set_parts(w, a);
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
    read_inputs(r, {x_s, y_s, x_q, hyper, values}, a);
    a.e = r.batch("e", tensor_of(e), s.batch, s.q, s.c);
    const T* bars = r.template array<T>("g", tensor_of(g), s.batch);
    if (bars) a.g = {bars, 1, 1, 1};
    require(!r.cuda() && a.e, "krr_replay: on the CPU");
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of<T>(s, keeps, nullptr).total);
    read_gradients(r, {grad_x_s, grad_y_s, grad_x_q, grad_hyper}, a);
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, true));
    require_all("saved and work", memory, a.work);
    set_parts(saved_of<T>(s, keeps, memory), a);
    py::gil_scoped_release release;
    cpu::krr_backward(a);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
}

// Where the factor, aux, the jitters and the status of a fit lie in `saved`; its coefficients are a tensor of their own.
template <class T>
Saved<T> saved_of_fit(const KrrShape& s, T* memory) {
  return saved_in(s.batch, s.n, 0, 0, memory);
}

// A regression without queries: the coefficients [B, n, C], and the rest in `saved`. Returns how many problems failed.
int krr_fit(const KrrShape& s, const Capsule& x_s, const Capsule& y_s, const std::vector<double>& values,
            int on_failure, const Capsule& coef, const Capsule& saved, const Capsule& work) {
  int failed = 0;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrForwardArgs<T> a{};
    a.shape = s;
    require(s.q == 0, "krr_fit: a shape without queries");
    const py::none none;
    read_inputs(r, {x_s, y_s, none, none, values}, a);
    require(!r.cuda(), "krr_fit: on the CPU");
    a.on_failure = on_failure_of(on_failure);
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of_fit<T>(s, nullptr).total);
    const Saved<T> w = saved_of_fit<T>(s, memory);
    set_parts(w, a);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, false));
    require_all("coef, saved and work", a.coef, memory, a.work);
    py::gil_scoped_release release;
    cpu::krr_forward(a);
    failed = failures(s.batch, w.status);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
  return failed;
}

// Its backward, from the gradient to the coefficients.
void krr_fit_backward(const KrrShape& s, const Capsule& x_s, const Capsule& y_s, const Capsule& grad,
                      const std::vector<double>& values, const Capsule& coef, const Capsule& saved,
                      const Capsule& grad_x_s, const Capsule& grad_y_s, const Capsule& work) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    KrrBackwardArgs<T> a{};
    a.shape = s;
    require(s.q == 0, "krr_fit_backward: a shape without queries");
    const py::none none;
    read_inputs(r, {x_s, y_s, none, none, values}, a);
    a.coef_bar = r.batch("grad", tensor_of(grad), s.batch, s.n, s.c);
    require(!r.cuda() && a.coef_bar, "krr_fit_backward: a gradient on the CPU");
    T* memory = r.template array<T>("saved", tensor_of(saved), saved_of_fit<T>(s, nullptr).total);
    set_parts(saved_of_fit<T>(s, memory), a);
    a.coef = r.template array<T>("coef", tensor_of(coef), s.batch * s.n * s.c);
    read_gradients(r, {grad_x_s, grad_y_s, none, none}, a);
    a.work = r.template array<T>("work", tensor_of(work), cpu::krr_workspace(s, true));
    require_all("coef, saved and work", a.coef, memory, a.work);
    py::gil_scoped_release release;
    cpu::krr_backward(a);
  };
  by_type(x_s, [&] { run(float()); }, [&] { run(double()); });
}

int64_t value_and_gradient_workspace(const KrrShape& forward, int backward_plan) {
  KrrShape backward = forward;
  backward.plan = plan_of(backward_plan);
  const int64_t one_pass =
      cpu::krr_fuses(forward, backward.plan) ? forward.batch + 16 + cpu::krr_fused_workspace(forward) : 0;
  if (one_pass && forward.lanes) return one_pass;  // of any strides
  return std::max(one_pass, between<float>(forward, backward, forward.plan == Plan::dense, nullptr).total);
}

}  // namespace

void bind_krr_eager(py::module_& m) {
  m.def("krr_evaluate", &krr_evaluate);
  m.def("krr_evaluate_workspace", [](const KrrShape& s, bool predicts, int on_failure) {
    return beside<float>(s, predicts, keeps_factor(s, on_failure), nullptr).total;
  });
  m.def("krr_value_and_gradient", &krr_value_and_gradient);
  m.def("krr_value_and_gradient_workspace", &value_and_gradient_workspace);
  m.def("krr_fuses",
        [](const KrrShape& shape, int backward_plan) { return cpu::krr_fuses(shape, plan_of(backward_plan)); });
  m.def("krr_record", &krr_record);
  m.def("krr_replay", &krr_replay);
  m.def("krr_saved", [](const KrrShape& s, bool keeps) { return places(saved_of<float>(s, keeps, nullptr)); });
  m.def("krr_fit", &krr_fit);
  m.def("krr_fit_backward", &krr_fit_backward);
  m.def("krr_fit_saved", [](const KrrShape& s) {
    const Saved<float> w = saved_of_fit<float>(s, nullptr);
    return py::make_tuple(w.at_aux, w.at_jitter, w.at_status, w.total);
  });
}

}  // namespace ssdd

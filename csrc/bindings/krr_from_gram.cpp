// The bindings of krr.h for regressions from Gram matrices, on the CPU.
#include "krr_inputs.h"

namespace ssdd {
namespace {

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
  return saved_in(s.batch, s.s, s.c, s.keeps ? s.batch * s.s * s.c : 0, memory);
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

}  // namespace

void bind_krr_from_gram(py::module_& m) {
  py::class_<FromGramShape>(m, "FromGramShape")
      .def(py::init(&from_gram_shape), py::kw_only(), py::arg("batch"), py::arg("s"), py::arg("q"), py::arg("c"),
           py::arg("ridge"), py::arg("detach"), py::arg("keeps"), py::arg("threads"));
  m.def("krr_from_gram", &krr_from_gram);
  m.def("krr_from_gram_backward", &krr_from_gram_backward);
  m.def("krr_from_gram_saved", [](const FromGramShape& s) { return places(saved_of<float>(s, nullptr)); });
  m.def("krr_from_gram_workspace",
        [](const FromGramShape& s) { return cpu::krr_from_gram_workspace(s.batch, s.s, s.c, s.threads); });
}

}  // namespace ssdd

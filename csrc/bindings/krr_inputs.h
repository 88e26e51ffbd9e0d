// What the bindings of krr.h read alike: the inputs of both passes, the gradients, and what the forward keeps for the
// backward.
#pragma once
#include <type_traits>

#include "../arena.h"
#include "../krr.h"
#include "kernels.h"

namespace ssdd {

struct Inputs {
  const Capsule &x_s, &y_s, &x_q, &hyper;
  const std::vector<double>& values;
};

// Fills x_s, y_s, x_q and the hyper-parameters of the arguments of either pass, whose shape is set. Without queries x_q
// may be None.
template <class T, class Args>
void read_inputs(Reader<T>& r, const Inputs& in, Args& a) {
  const KrrShape& s = a.shape;
  if constexpr (std::is_same_v<Args, KrrForwardArgs<T>>)
    require(s.plan != Plan::mixed, "plan: mixed is an order of the backward");
  a.x_s = r.features("x_s", tensor_of(in.x_s), s.batch, s.s, s.d, a.s_element);
  a.y_s = r.batch("y_s", tensor_of(in.y_s), s.batch, s.s, s.c);
  a.x_q = r.features("x_q", tensor_of(in.x_q), s.batch, s.q, s.d, a.q_element);
  require(a.x_s && a.y_s && (a.x_q || s.q == 0), "x_s, y_s and x_q: expected a tensor each, got None");
  a.hyper = r.hyper(tensor_of(in.hyper), in.values, s.batch);
  require_values(s.kernel, a.hyper.count, 1, sizeof(T));
}

struct Gradients {
  const Capsule &x_s, &y_s, &x_q, &hyper;
};

template <class T>
void read_gradients(Reader<T>& r, const Gradients& out, KrrBackwardArgs<T>& a) {
  const KrrShape& s = a.shape;
  a.grad_x_s = r.template array<T>("grad_x_s", tensor_of(out.x_s), s.batch * s.s * s.d);
  a.grad_y_s = r.template array<T>("grad_y_s", tensor_of(out.y_s), s.batch * s.s * s.c);
  a.grad_x_q = r.template array<T>("grad_x_q", tensor_of(out.x_q), s.batch * s.q * s.d);
  a.grad_hyper = r.template array<T>("grad_hyper", tensor_of(out.hyper), s.batch * a.hyper.count);
}

// The arrays that a forward leaves for its backward and for the caller.
template <class T>
struct Parts {
  T *factor, *coef, *kept, *aux, *jitter;
  int32_t* status;
};

template <class T>
void set_parts(const Parts<T>& w, KrrForwardArgs<T>& a) {
  a.factor = w.factor;
  a.coef = w.coef;
  a.kept = w.kept;
  a.aux = w.aux;
  a.jitter = w.jitter;
  a.status = w.status;
}

template <class T>
void set_parts(const Parts<T>& w, KrrBackwardArgs<T>& a) {
  a.factor = w.factor;
  a.coef = w.coef;
  a.kept = w.kept;
  a.aux = w.aux;
}

// What an eager forward on the CPU keeps for its backward, in one tensor.
template <class T>
struct Saved : Parts<T> {
  int64_t at_coef, at_kept, at_aux, at_jitter, at_status, total;
};

template <class T>
Saved<T> saved_in(int64_t batch, int64_t n, int64_t c, int64_t kept, T* memory) {
  Arena<T> arena{memory};
  Saved<T> w{};
  w.factor = arena.take(batch * n * n);
  w.at_coef = arena.used;
  w.coef = arena.take(batch * n * c);
  w.at_kept = arena.used;
  w.kept = kept ? arena.take(kept) : nullptr;
  w.at_aux = arena.used;
  w.aux = arena.take(3 * batch);
  w.at_jitter = arena.used;
  w.jitter = arena.take(batch);
  w.at_status = arena.used;
  w.status = reinterpret_cast<int32_t*>(arena.take(batch));
  w.total = arena.used;
  return w;
}

inline py::tuple places(const Saved<float>& w) { return py::make_tuple(w.at_coef, w.at_kept, w.at_aux, w.total); }

inline int failures(int64_t batch, const int32_t* status) {
  int failed = 0;
  for (int64_t b = 0; b < batch; ++b) failed += status[b] != 0;
  return failed;
}

}  // namespace ssdd

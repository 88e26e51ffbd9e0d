// The bindings of tridiagonal.h, on the CPU.
#include "../tridiagonal.h"

#include "capsules.h"

namespace ssdd {
namespace {

int64_t tridiagonal_workspace(int64_t n, int64_t m, int threads) {
  require_fits(1, n, std::max(n, m));
  require(n >= 1 && m >= 0, "shape: sizes must not be negative");
  require_threads(threads);
  return cpu::tridiagonal_workspace(n, m, threads);
}

// LAPACK counts in 32 bits.
void require_order(int64_t b, int64_t n, int64_t m) {
  require_fits(b, n, std::max(n, m));
  require(n >= 1 && m >= 0 && std::max(n, m) < (int64_t(1) << 24), "tridiagonal: sizes out of range");
}

void tridiagonal(const Capsule& a_in, const Capsule& reflectors, const Capsule& tau, const Capsule& diagonal,
                 const Capsule& beside, const Capsule& bounds, const Capsule& work, int64_t b, int64_t n, int threads) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    TridiagonalArgs<T> a{};
    require_order(b, n, 0);
    a.batch = b;
    a.n = n;
    a.threads = threads;
    a.a = r.batch("a", tensor_of(a_in), b, n, n);
    a.reflectors = r.template array<T>("reflectors", tensor_of(reflectors), b * n * n);
    a.tau = r.template array<T>("tau", tensor_of(tau), b * n);
    a.diagonal = r.template array<T>("diagonal", tensor_of(diagonal), b * n);
    a.beside = r.template array<T>("beside", tensor_of(beside), b * n);
    a.bounds = r.template array<T>("bounds", tensor_of(bounds), 2 * b);
    a.work = r.template array<T>("work", tensor_of(work), tridiagonal_workspace(n, 0, threads));
    require(!r.cuda(), "tridiagonal: on the CPU");
    require_all("all but the sizes", a.a.p, a.reflectors, a.tau, a.diagonal, a.beside, a.bounds, a.work);
    py::gil_scoped_release release;
    cpu::tridiagonal(a);
  };
  by_type(a_in, [&] { run(float()); }, [&] { run(double()); });
}

void tridiagonal_rotate(const Capsule& reflectors, const Capsule& tau, const Capsule& x, bool transposed,
                        const Capsule& work, int64_t b, int64_t n, int64_t m, int threads) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    RotateArgs<T> a{};
    require_order(b, n, m);
    a.batch = b;
    a.n = n;
    a.m = m;
    a.threads = threads;
    a.transposed = transposed;
    a.reflectors = r.template array<T>("reflectors", tensor_of(reflectors), b * n * n);
    a.tau = r.template array<T>("tau", tensor_of(tau), b * n);
    a.x = r.template array<T>("x", tensor_of(x), b * n * m);
    a.work = r.template array<T>("work", tensor_of(work), tridiagonal_workspace(n, m, threads));
    require(!r.cuda(), "tridiagonal_rotate: on the CPU");
    require_all("all but the sizes", a.reflectors, a.tau, a.x, a.work);
    py::gil_scoped_release release;
    cpu::tridiagonal_rotate(a);
  };
  by_type(x, [&] { run(float()); }, [&] { run(double()); });
}

void tridiagonal_solve(const Capsule& diagonal, const Capsule& beside, const Capsule& shifts, const Capsule& y,
                       const Capsule& x, const Capsule& work, int64_t b, int64_t n, int64_t r_count, int64_t c,
                       bool shared_y, bool shared_shift, int threads) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Reader<T> r;
    ShiftedSolveArgs<T> a{};
    require_order(b, n, c);
    require_fits(b * n, r_count, c);
    a.batch = b;
    a.n = n;
    a.r = r_count;
    a.c = c;
    a.shared_y = shared_y;
    a.shared_shift = shared_shift;
    a.threads = threads;
    a.diagonal = r.template array<T>("diagonal", tensor_of(diagonal), b * n);
    a.beside = r.template array<T>("beside", tensor_of(beside), b * n);
    a.shifts = r.template array<T>("shifts", tensor_of(shifts), b * r_count * (shared_shift ? 1 : c));
    a.y = r.template array<T>("y", tensor_of(y), b * n * (shared_y ? 1 : r_count) * c);
    a.x = r.template array<T>("x", tensor_of(x), b * n * r_count * c);
    a.work = r.template array<T>("work", tensor_of(work), tridiagonal_workspace(n, 0, threads));
    require(!r.cuda(), "tridiagonal_solve: on the CPU");
    require_all("all but the sizes", a.diagonal, a.beside, a.shifts, a.y, a.x, a.work);
    py::gil_scoped_release release;
    cpu::tridiagonal_solve(a);
  };
  by_type(x, [&] { run(float()); }, [&] { run(double()); });
}

}  // namespace

void bind_tridiagonal(py::module_& m) {
  m.def("tridiagonal", &tridiagonal);
  m.def("tridiagonal_rotate", &tridiagonal_rotate);
  m.def("tridiagonal_solve", &tridiagonal_solve);
  m.def("tridiagonal_workspace", &tridiagonal_workspace);
}

}  // namespace ssdd

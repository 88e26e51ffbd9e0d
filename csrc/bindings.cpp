// The Python module: BLAS from SciPy, what this build has, and the functions of csrc/bindings/, one file per contract.
#include <optional>

#include "bindings/capsules.h"
#include "cpu/blas.h"
#include "cpu/micro.h"
#include "openblas.h"

namespace ssdd {
namespace {

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
  table.ssytrd = reinterpret_cast<decltype(table.ssytrd)>(function_of(lapack, "ssytrd"));
  table.dsytrd = reinterpret_cast<decltype(table.dsytrd)>(function_of(lapack, "dsytrd"));
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
  ssdd::bind_gram(m);
  ssdd::bind_cholesky(m);
  ssdd::bind_krr(m);
  ssdd::bind_krr_eager(m);
  ssdd::bind_krr_from_gram(m);
  ssdd::bind_tridiagonal(m);
  m.def("cuda_problem", &ssdd::cuda::problem);
  m.def("build_info", &ssdd::build_info);
  m.def("force_instruction_set", &ssdd::force_instruction_set);
}

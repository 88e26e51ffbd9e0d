// The core's Python module on the host twin: csrc/bindings.cpp and csrc/bindings/ unchanged, over the CUDA kernels. Two things are
// replaced: CPU tensors stand for those of a GPU, and the CPU's half of the core has only what an import needs. So
// everything that runs on a GPU between a Python call and the kernels runs here too, except the driver.
#include "dlpack.h"

// Every "is it on a GPU" below then tests for CPU tensors.
#define kCUDA kCPU
#include "bindings.cpp"
#include "bindings/cholesky.cpp"
#include "bindings/gram.cpp"
#include "bindings/krr.cpp"
#include "bindings/krr_eager.cpp"
#include "bindings/krr_from_gram.cpp"
#include "bindings/tridiagonal.cpp"
#undef kCUDA

#include "runtime.h"

namespace ssdd::cpu {

// This is no exception, since some path in Python might catch it and choose another path.
[[noreturn]] void absent() { simt::runtime::fail(simt::Site::here(), "the CPU's half of the core was called"); }

int64_t gram_workspace(KernelKind, int64_t, int64_t, int64_t, int64_t, int) { absent(); }
int64_t gram_backward_workspace(KernelKind, int64_t, int64_t, int64_t, int64_t, int64_t, bool, int) { absent(); }
int64_t cholesky_workspace(int64_t, int64_t, int64_t, int) { absent(); }
int64_t krr_workspace(const KrrShape&, bool) { absent(); }
int64_t krr_fused_workspace(const KrrShape&) { absent(); }
int64_t krr_from_gram_workspace(int64_t, int64_t, int64_t, int) { absent(); }
int64_t tridiagonal_workspace(int64_t, int64_t, int) { absent(); }
bool krr_fuses(const KrrShape&, Plan) { absent(); }
bool krr_lanes_fit(const KrrShape&) { absent(); }

template <class T> void gram(const GramArgs<T>&) { absent(); }
template <class T> void gram_backward(const GramBackwardArgs<T>&) { absent(); }
template <class T> void solve(const SolveArgs<T>&) { absent(); }
template <class T> void solve_backward(const SolveBackwardArgs<T>&) { absent(); }
template <class T> void krr_forward(const KrrForwardArgs<T>&) { absent(); }
template <class T> void krr_backward(const KrrBackwardArgs<T>&) { absent(); }
template <class T> void krr_fused(const KrrFusedArgs<T>&) { absent(); }
template <class T> void krr_from_gram(const FromGramArgs<T>&) { absent(); }
template <class T> void krr_from_gram_backward(const FromGramBackwardArgs<T>&) { absent(); }
template <class T> void tridiagonal(const TridiagonalArgs<T>&) { absent(); }
template <class T> void tridiagonal_rotate(const RotateArgs<T>&) { absent(); }
template <class T> void tridiagonal_solve(const ShiftedSolveArgs<T>&) { absent(); }

#define SSDD_INSTANTIATE(T)                                             \
  template void gram(const GramArgs<T>&);                               \
  template void gram_backward(const GramBackwardArgs<T>&);              \
  template void solve(const SolveArgs<T>&);                             \
  template void solve_backward(const SolveBackwardArgs<T>&);            \
  template void krr_forward(const KrrForwardArgs<T>&);                  \
  template void krr_backward(const KrrBackwardArgs<T>&);                \
  template void krr_fused(const KrrFusedArgs<T>&);                      \
  template void krr_from_gram(const FromGramArgs<T>&);                  \
  template void krr_from_gram_backward(const FromGramBackwardArgs<T>&); \
  template void tridiagonal(const TridiagonalArgs<T>&);                 \
  template void tridiagonal_rotate(const RotateArgs<T>&);               \
  template void tridiagonal_solve(const ShiftedSolveArgs<T>&);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

void blas::set_table(const Table&) {}
void blas::set_thread_control(int (*)(), void (*)(int)) {}
bool isa_available(Isa isa) { return isa == Isa::generic; }
Isa isa_in_force() { return Isa::generic; }
const char* isa_name(Isa) { return "host twin"; }
void force_isa(Isa) { absent(); }

}  // namespace ssdd::cpu

// For ctypes. The pointers are the addresses of kernels in this module; its symbols translate them to names.
extern "C" __attribute__((visibility("default"))) int64_t simt_launches() { return simt::launches(); }
extern "C" __attribute__((visibility("default"))) int64_t simt_dependent_launches() {
  return simt::dependent_launches();
}
extern "C" __attribute__((visibility("default"))) int64_t simt_launched(int64_t room, uintptr_t* places) {
  Dl_info module{};
  dladdr(reinterpret_cast<const void*>(&simt_launches), &module);
  int64_t count = 0;
  for (const void* kernel : simt::launched()) {
    if (count < room) places[count] = uintptr_t(kernel) - uintptr_t(module.dli_fbase);
    ++count;
  }
  return count;
}

// The core's Python module on the host twin: csrc/bindings.cpp as it stands, over the CUDA kernels. What is replaced: the
// tensors of a GPU are those of the CPU, and of the CPU's half of the core only what an import asks for is here. So all
// that runs on a GPU between a call from Python and the kernels runs here too, but for the driver.
#include "dlpack.h"

// Every "is it on a GPU" that follows is asked of the CPU's tensors.
#define kCUDA kCPU
#include "bindings.cpp"
#undef kCUDA

#include "runtime.h"

namespace ssdd::cpu {

// Not an exception: some road in Python might take that for a reason to go another way.
[[noreturn]] void absent() { simt::runtime::fail(simt::Site::here(), "the CPU's half of the core was called"); }

int64_t gram_workspace(int64_t, int64_t, int64_t, int) { absent(); }
int64_t cholesky_workspace(int64_t, int64_t, int64_t, int) { absent(); }
int64_t krr_workspace(const KrrShape&, bool) { absent(); }
int64_t krr_fused_workspace(const KrrShape&) { absent(); }
bool krr_fuses(const KrrShape&, Plan) { absent(); }

template <class T> void gram(const GramArgs<T>&) { absent(); }
template <class T> void solve(const SolveArgs<T>&) { absent(); }
template <class T> void solve_backward(const SolveBackwardArgs<T>&) { absent(); }
template <class T> void krr_forward(const KrrForwardArgs<T>&) { absent(); }
template <class T> void krr_backward(const KrrBackwardArgs<T>&) { absent(); }
template <class T> void krr_fused(const KrrFusedArgs<T>&) { absent(); }

#define SSDD_INSTANTIATE(T)                                  \
  template void gram(const GramArgs<T>&);                    \
  template void solve(const SolveArgs<T>&);                  \
  template void solve_backward(const SolveBackwardArgs<T>&); \
  template void krr_forward(const KrrForwardArgs<T>&);       \
  template void krr_backward(const KrrBackwardArgs<T>&);     \
  template void krr_fused(const KrrFusedArgs<T>&);
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

// For ctypes. The pointers are where kernels stand in this module, so that whoever has its symbols can name them.
extern "C" __attribute__((visibility("default"))) int64_t simt_launches() { return simt::launches(); }
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

// The cuda:: half of the core in a build without CUDA: the same symbols; each throws an error that says so.
#include <stdexcept>

#include "cholesky.h"
#include "device.h"
#include "gram.h"
#include "krr.h"

namespace ssdd::cuda {
namespace {
[[noreturn]] void absent() {
  throw std::runtime_error(
      "ssdd_ext was built without CUDA kernels: build it with CUDA=ON on a machine with nvcc, or use backend='torch'");
}
}  // namespace

bool built() { return false; }
std::string architectures() { return ""; }
std::string problem(int) { return "this build has no CUDA kernels (built with CUDA=OFF, or no nvcc was found)"; }
DeviceGuard::DeviceGuard(int) { absent(); }
DeviceGuard::~DeviceGuard() = default;

int64_t gram_workspace(int64_t, int64_t, int64_t, int64_t, bool) { absent(); }
int64_t cholesky_workspace(int64_t, int64_t, int64_t) { absent(); }
int64_t krr_workspace(const KrrShape&, bool) { absent(); }

template <class T> void gram(const GramArgs<T>&, void*) { absent(); }
template <class T> void solve(const SolveArgs<T>&, void*) { absent(); }
template <class T> void solve_backward(const SolveBackwardArgs<T>&, void*) { absent(); }
template <class T> void krr_forward(const KrrForwardArgs<T>&, void*) { absent(); }
template <class T> void krr_backward(const KrrBackwardArgs<T>&, void*) { absent(); }

template void gram(const GramArgs<float>&, void*);
template void gram(const GramArgs<double>&, void*);
template void solve(const SolveArgs<float>&, void*);
template void solve(const SolveArgs<double>&, void*);
template void solve_backward(const SolveBackwardArgs<float>&, void*);
template void solve_backward(const SolveBackwardArgs<double>&, void*);
template void krr_forward(const KrrForwardArgs<float>&, void*);
template void krr_forward(const KrrForwardArgs<double>&, void*);
template void krr_backward(const KrrBackwardArgs<float>&, void*);
template void krr_backward(const KrrBackwardArgs<double>&, void*);

}  // namespace ssdd::cuda

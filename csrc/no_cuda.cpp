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

template <class T> void gram(const GramArgs<T>&, Stream) { absent(); }
template <class T> void solve(const SolveArgs<T>&, Stream) { absent(); }
template <class T> void solve_backward(const SolveBackwardArgs<T>&, Stream) { absent(); }
template <class T> void krr_forward(const KrrForwardArgs<T>&, Stream) { absent(); }
template <class T> void krr_backward(const KrrBackwardArgs<T>&, Stream) { absent(); }

template void gram(const GramArgs<float>&, Stream);
template void gram(const GramArgs<double>&, Stream);
template void solve(const SolveArgs<float>&, Stream);
template void solve(const SolveArgs<double>&, Stream);
template void solve_backward(const SolveBackwardArgs<float>&, Stream);
template void solve_backward(const SolveBackwardArgs<double>&, Stream);
template void krr_forward(const KrrForwardArgs<float>&, Stream);
template void krr_forward(const KrrForwardArgs<double>&, Stream);
template void krr_backward(const KrrBackwardArgs<float>&, Stream);
template void krr_backward(const KrrBackwardArgs<double>&, Stream);

}  // namespace ssdd::cuda

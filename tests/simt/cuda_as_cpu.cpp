// The core's own tests call cpu::. Here these names call the CUDA kernels on the host twin, so that one table of
// problems tests both halves of the core.
#include "cholesky.h"
#include "cpu/blas.h"
#include "cpu/micro.h"
#include "gram.h"
#include "krr.h"
#include "test_core.h"
#include <simt.cuh>

namespace ssdd::cpu {

int64_t gram_workspace(KernelKind, int64_t batch, int64_t s, int64_t q, int64_t d, int) {
  return cuda::gram_workspace(batch, s, q, d);
}
int64_t cholesky_workspace(int64_t batch, int64_t s, int64_t c, int) { return cuda::cholesky_workspace(batch, s, c); }
int64_t krr_workspace(const KrrShape& shape, bool backward) { return cuda::krr_workspace(shape, backward); }

template <class T> void gram(const GramArgs<T>& a) { cuda::gram(a, nullptr); }
template <class T> void solve(const SolveArgs<T>& a) { cuda::solve(a, nullptr); }
template <class T> void solve_backward(const SolveBackwardArgs<T>& a) { cuda::solve_backward(a, nullptr); }
template <class T> void krr_forward(const KrrForwardArgs<T>& a) { cuda::krr_forward(a, nullptr); }
template <class T> void krr_backward(const KrrBackwardArgs<T>& a) { cuda::krr_backward(a, nullptr); }

#define SSDD_INSTANTIATE(T)                                  \
  template void gram(const GramArgs<T>&);                    \
  template void solve(const SolveArgs<T>&);                  \
  template void solve_backward(const SolveBackwardArgs<T>&); \
  template void krr_forward(const KrrForwardArgs<T>&);       \
  template void krr_backward(const KrrBackwardArgs<T>&);
SSDD_INSTANTIATE(float)
SSDD_INSTANTIATE(double)
#undef SSDD_INSTANTIATE

// Two devices take the place of instruction sets. The second has so little shared memory that medium problems use the
// tiled factorisation.
bool isa_available(Isa isa) { return isa != Isa::avx512; }
const char* isa_name(Isa isa) {
  return isa == Isa::generic ? "the host twin, 227 KB of shared memory"
         : isa == Isa::avx2  ? "the host twin, 72 KB of shared memory"
                             : "a third twin";
}
void force_isa(Isa isa) { simt::set_shared_limit(isa == Isa::generic ? 227 << 10 : 72 << 10); }
void blas::set_table(const Table&) {}

}  // namespace ssdd::cpu

// Launches of the rows of a smaller sample are printed with their test's name (launched.cpp).
//
// The devices differ in where a factorisation leaves one block's shared memory, of more than 64 points on both; and no kernel
// knows how many threads a core would have.
namespace test {
void row_of(const char* name, bool in_smaller_sample) { simt::name_launches(in_smaller_sample ? name : nullptr); }
bool new_here(int64_t n) { return n > 64 || simt::shared_limit() == 227 << 10; }
int most_threads(int) { return 1; }
}  // namespace test

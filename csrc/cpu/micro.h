// The innermost loops of every product, one table of functions per instruction set.
//
// A product C[m,n] = sum_k f(A[m,k], B[k,n]) runs on packed panels: A in panels of `mr` rows (k-major), B in panels
// of at most `nr` columns (k-major). `dot` has f = a*b, `distance` has f = (a-b)^2: squared Euclidean distances
// without the cancellation of |x|^2 + |z|^2 - 2xz, at half the arithmetic rate of `dot`. `difference` has
// f = a (b - x); x [m, n] is the element that belongs to the sum: sum_k a b - (sum_k a) x without its
// cancellation, also at half the rate. `absolute` has f = |a - b|, and `sign` f = a sign(b - x): the 1-norm and its
// gradient.
//
// micro_generic.cpp, micro_avx2.cpp and micro_avx512.cpp instantiate micro_tile.h for one vector width each;
// dispatch.cpp chooses one at run time. No other file is compiled for a particular instruction set.
#pragma once
#include <cstdint>

namespace ssdd::cpu {

enum class Inner { dot, distance, difference, absolute, sign };

template <class T>
struct Micro {
  const char* name;
  int mr;     // rows of an A panel
  int nr;     // columns of a full B panel for dot; a distance or difference needs one more register per row, so its
              // panels are 2 * lanes wide
  int lanes;  // a B panel's width is its column count rounded up to this

  // Packs element (k, j) = src[k * ks + j * js], k < kc, j < n, into panels of `width` columns: panel p starts at
  // dst + p * width * kc and is k-major. The last panel is only as wide as its columns, rounded up to `granule` with
  // zeros.
  void (*pack)(const T* src, int64_t ks, int64_t js, int kc, int n, int width, int granule, T* dst);

  // acc[i][j] = sum_{k < kc} f(a[i * rs + k * ks], b[k * width + j]) for `panels` panels of mr rows (the second at
  // a + panel_stride) and `width` columns; then out[i * ld + j] = beta * out + alpha * acc (beta = 0 never reads out).
  // panels is 1, or 2 if width == lanes (one panel alone would not hide the latency of the multiply-add).
  void (*dot)(int panels, int width, int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b,
              T* out, int64_t ld, T alpha, T beta);
  void (*distance)(int panels, int width, int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b,
                   T* out, int64_t ld, T alpha, T beta);
  void (*absolute)(int panels, int width, int kc, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, const T* b,
                   T* out, int64_t ld, T alpha, T beta);
  // The same for a (b - x) and a sign(b - x), for one panel and at most 2 * lanes columns: x [mr, width] is dense.
  void (*difference)(int width, int kc, const T* a, const T* b, const T* x, T* out, int64_t ld, T alpha, T beta);
  void (*sign)(int width, int kc, const T* a, const T* b, const T* x, T* out, int64_t ld, T alpha, T beta);

  // Few columns: out[i * ld + j] = beta * out + alpha * sum_k a[i * as + k] * b[j * bs + k], i < m, j < n.
  void (*dots)(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld, T alpha,
               T beta);
  // Few rows: c[i * ld + j] += sum_k a[k * m + i] * b[k * bs + j], i < m, j < n; rows of b are read once, in order.
  void (*stream)(int m, int n, int kc, const T* a, const T* b, int64_t bs, T* c, int64_t ld);
  // Few terms: out[i * ld + j] = sum_k a[i * as + k] * b[k * bs + j], i < m, j < n. n is at least `lanes`.
  void (*outer)(int m, int n, int kc, const T* a, int64_t as, const T* b, int64_t bs, T* out, int64_t ld);

  // x <- L^-1 x or L^-T x in double, x [n, columns]: l [n, n] has L below its diagonal, inverse [n] 1 / L_ii. `panel` is
  // memory for n * kSolveColumns doubles, at a multiple of 64 bytes.
  void (*solve)(bool transposed, int n, int columns, const double* l, const double* inverse, T* x, int64_t ldx,
                double* panel);
};
constexpr int kSolveColumns = 24;  // three vectors of eight doubles

// Instruction sets in ascending order. `automatic` is the best that has been proven on a real machine.
enum class Isa { automatic = -1, generic = 0, avx2 = 1, avx512 = 2 };

template <class T> const Micro<T>& micro();  // the table in use
bool isa_available(Isa isa);                 // built, and supported by this CPU
const char* isa_name(Isa isa);
Isa isa_in_force();
void force_isa(Isa isa);  // tests only; throws std::invalid_argument if unavailable

template <class T> const Micro<T>* micro_generic();
template <class T> const Micro<T>* micro_avx2();
template <class T> const Micro<T>* micro_avx512();

}  // namespace ssdd::cpu

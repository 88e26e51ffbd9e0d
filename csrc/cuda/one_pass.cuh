// The loss of a linear kernel in few launches that read the queries once: sizes, and what its kernels share.
//
// All gradients are linear in the gradient of the loss, which only the backward knows. So each block of queries leaves
// sums over its queries, with R = P - Y_q, from which the backward gets all gradients without reading the queries:
//
//   M = R^T X_q [C, width]    K_qs^T R [S, C]    1^T R [C]
#pragma once
#include "krr_work.cuh"
#include "triangle.cuh"

namespace ssdd::cuda {

constexpr int kOnePassFactors = 32;             // up to so many support points, the blocks of queries also factor K_ss
constexpr int kOnePassSupport = 128;            // support points at most: a warp solves with 4 rows per lane
constexpr int kGroup = 32;                      // columns are handled in whole groups; those beyond D are zero
constexpr int kStaticBytes = 512;               // room left for static shared arrays
constexpr int kUnitRows = 8, kUnitColumns = 4;  // of a product that one warp computes, lanes along k

// The sizes of one problem, and where its sums lie in a part.
struct OnePass {
  int s, q, d, c;
  int width;                   // D in whole groups
  int targets, pitch;          // C in whole vectors, and the pitch of rows of C numbers in shared memory
  int parts;                   // blocks of queries per problem
  int64_t moment, sums, part;  // of K_qs^T R and 1^T R in a part, and its elements. M is at 0
};

constexpr int64_t whole_groups(int64_t n) { return (n + kGroup - 1) / kGroup * kGroup; }
inline OnePass one_pass_sizes(const KrrShape& shape) {
  OnePass of{};
  of.s = static_cast<int>(shape.s);
  of.q = static_cast<int>(shape.q);
  of.d = static_cast<int>(shape.d);
  of.c = static_cast<int>(shape.c);
  of.width = static_cast<int>(whole_groups(shape.d));
  of.targets = (of.c + 3) / 4 * 4;
  of.pitch = shared_pitch<float>(of.c);
  of.parts = static_cast<int>(shape.parts);
  of.moment = shape.c * of.width;
  of.sums = of.moment + whole_groups(shape.s * shape.c);
  of.part = one_pass_part(shape.s, shape.d, shape.c);
  return of;
}

// The arguments of the forward's kernels.
struct QueryArgs {
  OnePass of;
  int rows;   // of a tile of queries
  int chunk;  // features of X_s per stage (few_kernel)
  Source<float> x_s, x_q;
  bool vectors_s, vectors_q;  // their rows are aligned to 16 bytes
  Batch<const float> y_q;
  const float* scalars;
  const float* coef;  // alpha, which query_kernel reads
  float* out;         // R
  float* left;        // the parts, or nullptr
  float *loss, *loss_parts;
  int* counters;
};

// The arguments of the backward's kernel.
struct FinishArgs {
  OnePass of;
  int columns, strips;  // of a block, in whole groups; per problem
  Source<float> x_s;
  bool vectors;
  Batch<const float> r;  // [Q, C]
  ScalarArgs<float> scalars;
  RidgeKind ridge;
  bool detach;
  const float *factor, *coef, *aux, *parts;
  float *grad_x_s, *grad_y_s, *grad_x_q, *grad_hyper;
};

// True if these kernels can run both passes. It does not depend on the batch.
bool one_pass_fits(const KrrShape& shape);
template <class T>
bool takes_one_pass(const KrrShape& shape) {
  return sizeof(T) == 4 && shape.parts > 0 && one_pass_fits(shape);
}
int one_pass_backward_bytes(const OnePass& of, int columns);
int few_bytes(const OnePass& of, int rows, bool keeps_m);
void launch_few(QueryArgs args, const Factor<float>& f, simt::Stream stream);

// Computes the losses, the residuals and, for the backward, the parts; up to kOnePassFactors support points also all that
// a factorisation gives. f: its arguments, with the solution in f.x. loss_parts: [batch, parts].
void one_pass_forward(const KrrForwardArgs<float>& a, const Factor<float>& f, float* loss_parts, int* counters,
                      simt::Stream stream);
// Computes all gradients from the parts. scalars: those of the backward, which this launch computes itself.
void one_pass_backward(const KrrBackwardArgs<float>& a, const ScalarArgs<float>& scalars, simt::Stream stream);
inline void one_pass_forward(const KrrForwardArgs<double>&, const Factor<double>&, double*, int*, simt::Stream) {}
inline void one_pass_backward(const KrrBackwardArgs<double>&, const ScalarArgs<double>&, simt::Stream) {}

// --- shared by the kernels -------------------------------------------------------------------------------------------

// Starts copies of columns k .. k + length of x to shared memory, zero from column d on and in rows from `exist` on.
// length is a multiple of kGroup. vectors: rows are aligned to 16 bytes.
SIMT_DEVICE void load_rows(const Source<float>& x, bool vectors, int exist, int rows, int k, int length, int d,
                           float* to, int pitch) {
  const int step = vectors ? 4 : 1;
#pragma unroll 1
  for (int i = simt::warp(); i < rows; i += kBlockThreads / 32) {
    const Source<float> row = x.from(i < exist ? i : 0, k);
    const int left = i < exist ? d - k : 0;
#pragma unroll 1
    for (int j = simt::lane() * step; j < length; j += 32 * step) {
      const int count = left < j ? 0 : left - j < step ? left - j : step;
      float* const there = to + i * pitch + j;
      const float* const from = row.p + (count ? j * row.cs : 0);
      if (vectors)
        simt::copy_async<16>(there, from, count * 4);
      else if (x.element == Element::own)
        simt::copy_async<4>(there, from, count * 4);
      else
        simt::put(there, count ? row(0, j) : 0.0f);
    }
  }
}
inline bool has_vectors(const Source<float>& x) {
  return x.element == Element::own && x.cs == 1 && x.rs % 4 == 0 && x.bs % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.p) % 16 == 0;
}

// Loads rows of C numbers to [rows, targets] in shared memory, zero beyond the last column and from row `exist` on.
SIMT_DEVICE void load_targets(const OnePass& of, const View<const float>& from, int exist, int rows, float* to,
                              int pitch) {
#pragma unroll 1
  for (int i = simt::warp(); i < rows; i += kBlockThreads / 32)
#pragma unroll 1
    for (int c = simt::lane(); c < of.targets; c += 32) {
      const bool exists = i < exist && c < of.c;
      simt::put(to + i * pitch + c, simt::load_if(exists, from.p + (exists ? i * from.rs + c * from.cs : 0), 0.0f));
    }
}

// Adds 32 sums over the lanes, so that lane l ends with sum l in sums[0]. In each step a lane keeps one half of its sums
// and passes on the other.
template <int Half>
SIMT_DEVICE void add_lanes(float (&sums)[32]) {
  const bool upper = (simt::lane() & Half) != 0;
#pragma unroll
  for (int e = 0; e < Half; ++e) {
    const float mine = upper ? sums[e + Half] : sums[e], other = upper ? sums[e] : sums[e + Half];
    sums[e] = mine + simt::shuffle_xor(other, Half);
  }
  if constexpr (Half > 1) add_lanes<Half / 2>(sums);
}

// The products of 8 rows of a and 4 rows of b, over `length` columns; one warp. This lane gets the product of rows
// lane / 4 and lane % 4. Rows beyond last_a and last_b are replaced by those.
SIMT_DEVICE float dot_rows(const float* a, int pitch_a, int last_a, const float* b, int pitch_b, int last_b,
                           int length) {
  float sums[kUnitRows * kUnitColumns] = {};
  int at_a[kUnitRows], at_b[kUnitColumns];
#pragma unroll
  for (int i = 0; i < kUnitRows; ++i) at_a[i] = (i < last_a ? i : last_a) * pitch_a;
#pragma unroll
  for (int j = 0; j < kUnitColumns; ++j) at_b[j] = (j < last_b ? j : last_b) * pitch_b;
#pragma unroll 1
  for (int first = 0; first < length; first += 128) {
    const int k = first + simt::lane() * 4;
    simt::Vector<float, 4> y[kUnitColumns];
#pragma unroll
    for (int j = 0; j < kUnitColumns; ++j) y[j] = simt::get_vector_if<4>(k < length, b + at_b[j] + k);
#pragma unroll
    for (int i = 0; i < kUnitRows; ++i) {
      const auto x = simt::get_vector_if<4>(k < length, a + at_a[i] + k);
#pragma unroll
      for (int j = 0; j < kUnitColumns; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums[i * kUnitColumns + j] = simt::fma(x.v[e], y[j].v[e], sums[i * kUnitColumns + j]);
    }
  }
  add_lanes<16>(sums);
  return sums[0];
}

// Adds y^T x to out, or replaces it if `first`: y [rows, targets], x [rows, width] and out [targets, width] with the
// same pitch, in shared memory. global: out is in global memory, is replaced and has C rows. 4 x 4 elements per thread.
SIMT_DEVICE void add_outer(const OnePass& of, const float* y, int rows, const float* x, int width, int pitch,
                           bool first, float* out, bool global = false) {
  const int across = width / 4, units = across * (of.targets / 4);
#pragma unroll 1
  for (int unit = simt::thread(); unit < units; unit += kBlockThreads) {
    const int line = quotient(unit, across), j = (unit - line * across) * 4, c = line * 4;
    float sums[4][4] = {};
#pragma unroll 4
    for (int i = 0; i < rows; ++i) {
      float left[4], right[4];
      get_row(y + i * of.pitch + c, left);
      get_row(x + i * pitch + j, right);
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[u][e] = simt::fma(left[u], right[e], sums[u][e]);
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      float* const to = out + (c + u) * pitch + j;
      simt::Vector<float, 4> v{};
      if (!global && !first) v = simt::get_vector<4>(to);
#pragma unroll
      for (int e = 0; e < 4; ++e) v.v[e] += sums[u][e];
      if (global)
        simt::store_vector_if<4>(c + u < of.c, to, v);
      else
        simt::put_vector<4>(to, v);
    }
  }
}

// Solves L L^T x = x in place for two columns, one warp: lane l has rows l, l + 32, ... inverse: 1 / L(i, i).
// The solve with L^T counts rows from the last lane's last row backwards, so that it runs through the same code.
template <int Rows>
SIMT_DEVICE void solve_pair(const float* l, int pitch, int n, const float* inverse, float (&x)[2][Rows]) {
  constexpr int kRows = Rows * 32, kEnd = kRows - 1;
  const int lane = simt::lane();
#pragma unroll 1
  for (int back = 0; back < 2; ++back) {
    // Row i and column k are those of the matrix or, of L^T, kEnd - i and kEnd - k.
    const int begin = back ? kRows - n : 0, end = back ? kRows : n;
    const int row = back ? -1 : pitch, column = back ? -pitch : 1;
    const float* const own = l + (back ? kEnd * (pitch + 1) : 0) + lane * row;
    const float* const over = inverse + (back ? kEnd : 0);
#pragma unroll
    for (int at = 0; at < Rows; ++at) {
      const int first = at * 32, last = (end < first + 32 ? end : first + 32) - first;
#pragma unroll 1
      for (int k = begin > first ? begin - first : 0; k < last; ++k) {
        const float by = simt::get(over + (back ? -first - k : first + k));
        const float v[2] = {simt::shuffle(x[0][at], k) * by, simt::shuffle(x[1][at], k) * by};
        const float* const from = own + (first + k) * column;
#pragma unroll
        for (int r = at; r < Rows; ++r) {
          const bool below = r == at ? lane > k && lane < last : lane < end - r * 32;
          const float element = simt::get_if(below, from + r * 32 * row, 0.0f);
#pragma unroll
          for (int u = 0; u < 2; ++u) x[u][r] = r == at && lane == k ? v[u] : simt::fma(-element, v[u], x[u][r]);
        }
      }
    }
    // The other order of rows.
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float turned[Rows];
#pragma unroll
      for (int r = 0; r < Rows; ++r) turned[r] = simt::shuffle(x[u][Rows - 1 - r], 31 - lane);
#pragma unroll
      for (int r = 0; r < Rows; ++r) x[u][r] = turned[r];
    }
  }
}

// Solves for all targets in place, two columns per warp: x [n, targets] in shared memory with an odd pitch, so that the
// rows of a column lie in different banks. failed: they become NaN.
template <int Rows>
SIMT_DEVICE void solve_targets(const OnePass& of, const float* l, const float* inverse, bool failed, float* x) {
  const int pitch = of.targets | 1;
#pragma unroll 1
  for (int c = simt::warp() * 2; c < of.targets; c += kBlockThreads / 32 * 2) {
    float own[2][Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int i = r * 32 + simt::lane();
        own[u][r] = failed ? simt::nan<float>() : simt::get_if(i < of.s, x + i * pitch + c + u, 0.0f);
      }
    if (!failed) solve_pair<Rows>(l, of.s | 1, of.s, inverse, own);
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int i = r * 32 + simt::lane();
        simt::put_if(i < of.s, x + i * pitch + c + u, own[u][r]);
      }
  }
}

}  // namespace ssdd::cuda

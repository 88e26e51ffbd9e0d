// Cholesky and triangular solves of one team of threads on a matrix in shared memory, in strips of 16 columns.
//
// A pivot costs one warp about 35 instructions and a chain of a shuffle, two multiply-adds and a reciprocal square
// root. Loops over strips and over groups of 4 pivots stay rolled, so that the code is fetched once and then runs from
// the instruction cache.
#pragma once
#include "product.cuh"

namespace ssdd::cuda {

constexpr int kBlockThreads = 256, kStrip = 16;
constexpr int kPanelPitch = 32;  // of the scratch in which a strip's diagonal block stands transposed

// Elements of one 16-byte access.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// The row pitch of a matrix in shared memory: an odd multiple of 16 bytes. Rows are then aligned for 16-byte accesses,
// and 8 lanes on 8 rows of one column of such vectors use all 32 banks.
template <class T>
constexpr int shared_pitch(int n) {
  return ((n + kVector<T> - 1) / kVector<T> | 1) * kVector<T>;
}
constexpr int whole_strips(int n) { return (n + kStrip - 1) / kStrip * kStrip; }

// The threads that work on one matrix: a block, or one warp of it.
template <int Threads>
struct Team {
  static constexpr int kThreads = Threads, kWarps = Threads / 32;
  static SIMT_DEVICE int rank() { return simt::thread(); }
  static SIMT_DEVICE int warp() { return simt::uniform(simt::warp()); }
  static SIMT_DEVICE void barrier() { simt::barrier(); }
};
template <>
struct Team<32> {
  static constexpr int kThreads = 32, kWarps = 1;
  static SIMT_DEVICE int rank() { return simt::lane(); }
  static SIMT_DEVICE int warp() { return 0; }
  static SIMT_DEVICE void barrier() { simt::warp_barrier(); }
};

// A square matrix in shared memory.
template <class T>
struct Square {
  T* p;
  int n, pitch;
  SIMT_DEVICE T* at(int i, int j) const { return p + i * pitch + j; }
};

// Load and store `Count` neighbours in shared memory, aligned to 16 bytes. `exist` (the same for the warp): elements
// from there on are read as zero, and not written. part: false if this lane writes nothing.
template <int Count, class T>
SIMT_DEVICE void get_row(const T* p, T (&v)[Count], int exist = Count) {
#pragma unroll
  for (int e = 0; e < Count; e += kVector<T>) {
    simt::Vector<T, kVector<T>> four{};
    if (e < exist) four = simt::get_vector<kVector<T>>(p + e);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) v[e + i] = four.v[i];
  }
}
template <int Count, class T>
SIMT_DEVICE void put_row(T* p, const T (&v)[Count], int exist = Count, bool part = true) {
#pragma unroll
  for (int e = 0; e < Count; e += kVector<T>) {
    simt::Vector<T, kVector<T>> four;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) four.v[i] = v[e + i];
    if (e < exist) simt::put_vector_if<kVector<T>>(part, p + e, four);
  }
}

// --- Cholesky ----------------------------------------------------------------------------------------------------

// Subtracts the contribution of the strip at column p from row i of the next strip (columns q = p + 16 and on). L
// stands below the diagonal and, for columns left of q, transposed above it.
template <class T>
SIMT_DEVICE void update_row(const Square<T>& a, int p, int i, T (&row)[kStrip]) {
  const int q = p + kStrip, exist = a.n - q;
#pragma unroll 1
  for (int k = 0; k < kStrip; k += kVector<T>) {
    T mine[kVector<T>];
    get_row(a.at(i, p + k), mine);
#pragma unroll
    for (int u = 0; u < kVector<T>; ++u) {
      T others[kStrip];
      get_row(a.at(p + k + u, q), others, exist);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) row[j] = simt::fma(-mine[u], others[j], row[j]);
    }
  }
}

// Factors the strip at column p in its first 32 rows with one warp; lane i holds row p + i.
// Per pivot, its lane broadcasts the reciprocal of the pivot's root. Every lane scales its element of the column,
// stores it to shared memory, and subtracts its contribution to the remaining columns.
// L is written to `a`; rows behind the first 16 also transposed above the diagonal; the diagonal block also transposed
// to panel [16, kPanelPitch]; inverse[i] = 1 / L(i, i). Returns the 1-based pivot that failed, or 0, in all lanes.
template <class T>
SIMT_DEVICE int factor_strip(const Square<T>& a, int p, T (&row)[kStrip], T* inverse, T* panel) {
  const int lane = simt::lane(), i = p + lane, size = a.n - p < kStrip ? a.n - p : kStrip;
  const bool exists = i < a.n;
  // Rows beyond the last may hold anything, and so may the pivots of their columns: no row has elements from there on.
  T diagonal = 1, kept = 1;
#pragma unroll
  for (int j = 0; j < kStrip; ++j)
    if (j == lane) diagonal = row[j];
  const bool above = lane >= kStrip && exists;
  T* column = above ? a.at(p, i) : panel + lane;
  const int step = above ? a.pitch : kPanelPitch;
  T own = simt::inverse_root(diagonal);
#pragma unroll 1
  for (int first = 0; first < size; first += 4) {
    T finished[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int k = first + u;
      const T over = simt::shuffle(own, k);
      const T mine = row[u] * over;
      if (lane == k) kept = over;
      diagonal = simt::fma(-mine, mine, diagonal);
      own = simt::inverse_root(diagonal);
      finished[u] = mine;
      simt::put(column, mine);
      column += step;
      simt::warp_barrier();
      T others[kStrip];
      get_row(panel + k * kPanelPitch + first, others);
#pragma unroll
      for (int j = u + 1; j < kStrip; ++j) row[j] = simt::fma(-mine, others[j], row[j]);
    }
    put_row(a.at(exists ? i : p, p + first), finished, size - first, exists);
#pragma unroll
    for (int j = 0; j + 4 < kStrip; ++j) row[j] = row[j + 4];
  }
  if (lane < size) simt::put(inverse + i, kept);
  const bool bad = lane < size && !(kept > T(0) && simt::finite(kept));
  const int which = simt::first_set(simt::ballot(bad));
  return which ? p + which : 0;
}

// Solves x L^T = a for row i below the first 32 of the strip at column p; one thread per row. part: false if the row
// does not exist.
template <class T>
SIMT_DEVICE void solve_row(const Square<T>& a, int p, int i, bool part, const T* inverse, const T* panel) {
  T x[kStrip];
  get_row(a.at(i, p), x);
#pragma unroll
  for (int first = 0; first < kStrip; first += 4) {
    T over[4];
    get_row(inverse + p + first, over);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int k = first + u;
      x[k] *= over[u];
      simt::put_if(part, a.at(p + k, i), x[k]);
#pragma unroll
      for (int from = first; from < kStrip; from += 4) {
        T others[4];
        if (from + 3 > k) get_row(panel + k * kPanelPitch + from, others);
#pragma unroll
        for (int j = from; j < from + 4; ++j)
          if (j > k) x[j] = simt::fma(-x[k], others[j - from], x[j]);
      }
    }
  }
  put_row(a.at(i, p), x, kStrip, part);
}

// Subtracts the contribution of the strip at column p from a square of 32 x 32 at (i0, j0); one warp. Each lane has 4
// rows of two vectors at a time. Elements above the diagonal and columns before `from` are skipped.
template <class T>
SIMT_DEVICE void update_square(const Square<T>& a, int p, int i0, int j0, int from) {
  constexpr int kWide = kVector<T>, kApart = 4 * kWide;
  const int lane = simt::lane(), i = i0 + lane / 4 * 4;
#pragma unroll 1
  for (int j = j0 + lane % 4 * kWide, end = j0 + 32; j < end; j += 2 * kApart) {
    T sums[4][2 * kWide] = {};
#pragma unroll(kWide / 2)
    for (int k = 0; k < kStrip; ++k) {
      T x[4], z[2 * kWide];
      get_row(a.at(p + k, i < a.n ? i : p), x);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = j + h * kApart;
        const auto part = simt::get_vector<kWide>(a.at(p + k, column < a.n ? column : p));
#pragma unroll
        for (int e = 0; e < kWide; ++e) z[h * kWide + e] = part.v[e];
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int e = 0; e < 2 * kWide; ++e) sums[r][e] = simt::fma(x[r], z[e], sums[r][e]);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = j + h * kApart;
        const bool wanted = i + r < a.n && column <= i + r && column >= from;
        T* const there = a.at(i + r, column);
        auto part = simt::get_vector_if<kWide>(wanted, there);
#pragma unroll
        for (int e = 0; e < kWide; ++e) part.v[e] -= sums[r][h * kWide + e];
        simt::put_vector_if<kWide>(wanted, there, part);
      }
  }
}

// Elements of the scratch of factor_shared.
constexpr int kPanelRoom = kStrip * kPanelPitch;

// Factors a, given by its lower triangle: L on and below the diagonal, anything above it. inverse [whole_strips(n)] is
// aligned to 16 bytes. *failed: the pivot that failed, shared by the team; it must be 0 on entry.
// The first warp updates and factors the next strip while the others update the triangle behind it.
template <int Threads, class T>
SIMT_DEVICE void factor_shared(const Square<T>& a, T* inverse, T* panel, int* failed) {
  using Crew = Team<Threads>;
  const int n = a.n;
#pragma unroll 1
  for (int p = 0; p < n; p += kStrip) {
    const int last = p - kStrip;
    if (Crew::warp() == 0) {
      // Load the strip's first rows, subtract the strip before, factor.
      const int i = p + simt::lane() < n ? p + simt::lane() : n - 1;
      T row[kStrip];
      get_row(a.at(i, p), row, n - p);
      if (last >= 0) update_row(a, last, i, row);
      simt::warp_barrier();
      const int bad = factor_strip(a, p, row, inverse, panel);
      if (bad && simt::lane() == 0 && *failed == 0) *failed = bad;
    } else if (last >= 0) {
      // Update the rest of the triangle, in squares of 32 x 32, one per warp.
      const int squares = (n - p + 31) / 32;
      int si = 0, sj = Crew::warp() - 1;
#pragma unroll 1
      for (;;) {
        while (sj > si && si < squares) sj -= ++si;
        if (si >= squares) break;
        update_square(a, last, p + si * 32, p + sj * 32, si == 0 ? p + kStrip : p);
        sj += Crew::kWarps - 1;
      }
    }
    Crew::barrier();
    if (Threads == 32 || p + 32 >= n) continue;  // to the last strip, if there is one; a warp has at most 32 rows
    // Read between two barriers, so that all threads see the same.
    if (simt::uniform(*failed)) return;
    // Solve the strip's rows below, one per thread.
#pragma unroll 1
    for (int first = p + 32 + Crew::warp() * 32; first < n; first += Threads) {
      const int i = first + simt::lane();
      solve_row(a, p, i < n ? i : p, i < n, inverse, panel);  // row p is a valid address that no thread writes now
    }
    Crew::barrier();
  }
}

// --- triangular solves -------------------------------------------------------------------------------------------

// Columns in shared memory, whole_strips(n) rows, zero from n on.
template <int Width, class T>
struct Columns {
  // How a warp covers 16 rows of up to 32 of the columns: 32 tiles of kRows x 4.
  static constexpr int kGroup = Width < 32 ? Width : 32, kRows = kGroup / 8, kAcross = kGroup / 4;
  T* p;
  int pitch;
  SIMT_DEVICE T* at(int i, int c) const { return p + i * pitch + c; }
};

// Adds the contribution of the strip at row p (of L^T if Back) to the tile of rows i.. and columns c.. to sums.
template <bool Back, int Width, class T>
SIMT_DEVICE void add_strip(const Square<T>& l, int p, const Columns<Width, T>& x, int i, int c,
                           T (&sums)[Columns<Width, T>::kRows][4]) {
  constexpr int kRows = Columns<Width, T>::kRows;
#pragma unroll 1
  for (int k = 0; k < kStrip; k += 4) {
    T own[kRows][4];  // L(i + r, p + k + u), or L(p + k + u, i + r)
    if constexpr (!Back) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) get_row(l.at(i + r < l.n ? i + r : l.n - 1, p + k), own[r]);
    } else {
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const T* const from = l.at(p + k + u < l.n ? p + k + u : l.n - 1, i);  // times zero beyond the last
        if constexpr (kRows == 4) {
          T four[4];
          get_row(from, four);
#pragma unroll
          for (int r = 0; r < 4; ++r) own[r][u] = four[r];
        } else {
#pragma unroll
          for (int r = 0; r < kRows; ++r) own[r][u] = simt::get(from + r);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      T others[4];
      get_row(x.at(p + k + u, c), others);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[r][e] = simt::fma(own[r][u], others[e], sums[r][e]);
    }
  }
}

// Subtracts the contribution of the strip at row p (back: of L^T) from the tile of rows i.. and columns c..
template <int Width, class T>
SIMT_DEVICE void update_tile(const Square<T>& l, int p, const Columns<Width, T>& x, int i, int c, bool back) {
  constexpr int kRows = Columns<Width, T>::kRows;
  T sums[kRows][4] = {};
  if (back)
    add_strip<true>(l, p, x, i, c, sums);
  else
    add_strip<false>(l, p, x, i, c, sums);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    T v[4];
    get_row(x.at(i + r, c), v);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] -= sums[r][e];
    put_row(x.at(i + r, c), v, 4, i + r < l.n);
  }
}

// Solves the diagonal block of the strip at row p for one column v, of which `size` elements exist. Both directions read
// rows of L.
template <bool Back, class T>
SIMT_DEVICE void substitute_column(const Square<T>& l, int p, const T* inverse, int size, T (&v)[kStrip]) {
#pragma unroll
  for (int at = 0; at < kStrip; at += 4) {
    const int first = Back ? kStrip - 4 - at : at;
    if (first < size) {
      T over[4];
      get_row(inverse + p + first, over);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int u = Back ? 3 - step : step, k = first + u;
        const T* const from = k < size ? l.at(p + k, p) : inverse;  // beyond the last row any 16 finite numbers
        if (Back) v[k] = k < size ? v[k] * over[u] : T(0);
#pragma unroll
        for (int j = 0; j < k; j += 4) {
          T own[4];
          get_row(from + j, own, k - j);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (j + e >= k) continue;
            if (Back)
              v[j + e] = simt::fma(-own[e], v[k], v[j + e]);
            else
              v[k] = simt::fma(-own[e], v[j + e], v[k]);
          }
        }
        if (!Back) v[k] *= over[u];
      }
    }
  }
}

// Solves the strip at row p of one column per lane.
template <class T>
SIMT_DEVICE void substitute_strip(const Square<T>& l, int p, const T* inverse, T* x, int pitch, bool back) {
  const int size = l.n - p < kStrip ? l.n - p : kStrip;
  T v[kStrip];
#pragma unroll
  for (int k = 0; k < kStrip; ++k) v[k] = simt::get(x + k * pitch);
  if (back)
    substitute_column<true>(l, p, inverse, size, v);
  else
    substitute_column<false>(l, p, inverse, size, v);
#pragma unroll
  for (int k = 0; k < kStrip; ++k) simt::put_if(k < size, x + k * pitch, v[k]);
}

// x <- L^-1 x (back: L^-T x). Columns are cut into independent groups of at most 32. The first warp of each group updates
// and solves the next strip while its other warps update the rows behind. Rows of x must be visible to all threads on
// entry, and are on return.
template <int Threads, int Width, class T>
SIMT_DEVICE void substitute(const Square<T>& l, const T* inverse, const Columns<Width, T>& x, bool back) {
  using Crew = Team<Threads>;
  using Cut = Columns<Width, T>;
  constexpr int kGroups = Width / Cut::kGroup, kWarps = Crew::kWarps / kGroups;
  const int lane = simt::lane(), warp = Crew::warp() % kWarps, group = Crew::warp() / kWarps * Cut::kGroup;
  const int strips = (l.n + kStrip - 1) / kStrip;
  const int tile_row = lane / Cut::kAcross * Cut::kRows, tile_column = group + lane % Cut::kAcross * 4;
  const int next = back ? -kStrip : kStrip;
  int p = back ? (strips - 1) * kStrip : 0;
#pragma unroll 1
  for (int s = 0; s < strips; ++s, p += next) {
    // Subtract the previous strip from the strips behind it. The first warp updates the next strip, and then solves it.
#pragma unroll 1
    for (int t = warp; s > 0 && t < strips - s; t += t == 0 ? strips : kWarps - 1)
      update_tile(l, p - next, x, p + t * next + tile_row, tile_column, back);
    if (warp == 0) {
      simt::warp_barrier();
      if (lane < Cut::kGroup) substitute_strip(l, p, inverse, x.at(p, group + lane), x.pitch, back);
    }
    Crew::barrier();
  }
}

// x <- A^-1 x for A = L L^T.
template <int Threads, int Width, class T>
SIMT_DEVICE void substitute_twice(const Square<T>& l, const T* inverse, const Columns<Width, T>& x) {
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) substitute<Threads>(l, inverse, x, turn != 0);
}

}  // namespace ssdd::cuda

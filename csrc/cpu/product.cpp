// Blocked product after Goto. The columns of B are packed one block of k at a time and shared by the team. Rows of A
// are packed one cache block at a time by the thread that uses them. The register tile of micro.h runs over both. If
// there are few rows, the columns are divided instead, and each thread packs its own.
#include "product.h"

#include "thin.h"

namespace ssdd::cpu {
namespace {

constexpr int kDepth = 256;         // k of a block: a B panel of 24 KiB (float) stays in L1
constexpr int kRows = 192;          // rows of a packed A block: 192 KiB (float) of L2
constexpr int64_t kColumns = 1536;  // columns of a shared B block: 1.5 MiB (float) of L3
constexpr int kShallow = 64;        // up to this k the output is the larger stream, and is written along its rows
constexpr int64_t kStrip = 768;     // columns of a thread's own B block if there are few rows: long runs of memory
constexpr int64_t kDirectPanels = 3;
constexpr int64_t kLeastColumns = 4 * 48 * kDirectPanels;  // so that deep blocks of few columns, and strips, fit
constexpr int kTile = 16 * 48;

int64_t own_elements() { return std::max(int64_t(kRows + 16) * kDepth, thin_elements()); }

int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

template <class T>
struct Job {
  const Product<T>& p;
  const Micro<T>& micro;
  int nr;

  int64_t panels(int64_t n) const { return (n + nr - 1) / nr; }

  // Computes tiles of rows [i, i + rows) (packed panels at `a`, or in place with strides) and one B panel.
  void tiles(int64_t i, int rows, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, int64_t j, int columns,
             const T* b, int depth, bool first, bool last) const {
    const int width = static_cast<int>(round_up(columns, micro.lanes));
    const bool difference = p.inner == Inner::difference || p.inner == Inner::sign;
    const int step = width == micro.lanes && !difference ? 2 * micro.mr : micro.mr;
    const T beta = first ? p.beta : T(1);
    for (int r = 0; r < rows; r += step) {
      const int m = std::min(step, rows - r);
      const int64_t row = i + r;
      if (p.lower && j > row + m - 1) continue;
      const bool crosses = p.lower && j + columns - 1 > row;
      const T* a_tile = a + (r / micro.mr) * panel_stride;
      const int count = m > micro.mr ? 2 : 1;
      alignas(64) T points[kTile];
      if (difference) bring_points(row, m, j, columns, width, points);
      const auto run = [&](T* out, int64_t ld, T factor) {
        if (difference)
          (p.inner == Inner::sign ? micro.sign : micro.difference)(width, depth, a_tile, b, points, out, ld, p.alpha,
                                                                   factor);
        else
          (p.inner == Inner::dot ? micro.dot
           : p.inner == Inner::distance
               ? micro.distance
               : micro.absolute)(count, width, depth, a_tile, rs, ks, panel_stride, b, out, ld, p.alpha, factor);
      };
      T* c = p.c + row * p.ldc + j;
      // A tile of 2 panels with a partial second panel, an edge tile, or a tile on the diagonal goes through a small
      // buffer. Packed operands are padded with zeros, so computing the whole tile is safe.
      const bool whole = m == count * micro.mr && columns == width && !crosses;
      if (whole) {
        run(c, p.ldc, beta);
      } else {
        alignas(64) T buffer[kTile];
        run(buffer, width, T(0));
        for (int y = 0; y < m; ++y) {
          const int64_t upto = p.lower ? std::min<int64_t>(columns, row + y - j + 1) : columns;
          T* out = c + y * p.ldc;
          const T* in = buffer + y * width;
          if (beta == T(0))
            for (int64_t x = 0; x < upto; ++x) out[x] = in[x];
          else
            for (int64_t x = 0; x < upto; ++x) out[x] = beta * out[x] + in[x];
        }
      }
      if (last && p.epilogue) finish(row, j, m, columns, crosses, c);
    }
  }

  // Loads x(i, j) of a tile, zero beyond its edges; results there are not kept.
  void bring_points(int64_t row, int m, int64_t j, int columns, int width, T* points) const {
    for (int y = 0; y < micro.mr; ++y)
      for (int x = 0; x < width; ++x) points[y * width + x] = y < m && x < columns ? p.x(row + y, j + x) : T(0);
  }

  void finish(int64_t row, int64_t j, int m, int columns, bool crosses, T* c) const {
    if (!crosses) {
      p.epilogue->apply(p.epilogue->context, row, j, m, columns, c, p.ldc);
      return;
    }
    for (int y = 0; y < m; ++y) {
      const int upto = static_cast<int>(std::min<int64_t>(columns, row + y - j + 1));
      if (upto > 0) p.epilogue->apply(p.epilogue->context, row + y, j, 1, upto, c + y * p.ldc, p.ldc);
    }
  }

  // Packs this rank's share of the panels of columns [j0, j1) of the k block at k0.
  void pack_columns(const Team& team, int64_t k0, int depth, int64_t j0, int64_t j1, T* out) const {
    int64_t begin, end;
    team.share(j1 - j0, nr, &begin, &end);
    micro.pack(p.b.p + k0 * p.b.rs + (j0 + begin) * p.b.cs, p.b.rs, p.b.cs, depth, static_cast<int>(end - begin), nr,
               micro.lanes, out + begin * depth);
  }

  // Multiplies rows [i, i + rows) with the packed columns [j0, j1).
  void row_block(int64_t i, int rows, int64_t j0, int64_t j1, int64_t k0, int depth, bool direct, const T* packed,
                 T* own, bool first, bool last) const {
    const int64_t all = panels(j1 - j0);
    const T* a = p.a.p + i * p.a.rs + k0 * p.a.cs;
    const int step = 2 * micro.mr;
    const int in_place = direct ? rows / step * step : 0;
    const int rest = rows - in_place;
    micro.pack(a + in_place * p.a.rs, p.a.cs, p.a.rs, depth, rest, micro.mr, micro.mr, own);
    for (int r = 0; r < in_place; r += step)
      for (int64_t panel = 0; panel < all; ++panel)
        panel_tiles(i + r, step, a + r * p.a.rs, p.a.rs, p.a.cs, micro.mr * p.a.rs, j0, j1, panel, packed, depth, first,
                    last);
    // A shallow product moves more of C than of B: finish one band of rows along all columns before the next.
    const int band = depth <= kShallow ? step : rest;
    for (int r = 0; r < rest; r += band)
      for (int64_t panel = 0; panel < all; ++panel)
        panel_tiles(i + in_place + r, std::min(band, rest - r), own + int64_t(r) * depth, 1, micro.mr,
                    int64_t(micro.mr) * depth, j0, j1, panel, packed, depth, first, last);
  }

  void panel_tiles(int64_t i, int rows, const T* a, int64_t rs, int64_t ks, int64_t panel_stride, int64_t j0,
                   int64_t j1, int64_t panel, const T* packed, int depth, bool first, bool last) const {
    const int64_t j = j0 + panel * nr;
    if (p.lower && j > i + rows - 1) return;
    tiles(i, rows, a, rs, ks, panel_stride, j, static_cast<int>(std::min<int64_t>(nr, j1 - j)),
          packed + panel * nr * depth, depth, first, last);
  }
};

// k == 0: c = beta c, then the epilogue, on this rank's rows.
template <class T>
void scale_only(const Team& team, const Job<T>& job) {
  const Product<T>& p = job.p;
  int64_t begin, end;
  team.share(p.m, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t upto = p.lower ? std::min(p.n, i + 1) : p.n;
    T* c = p.c + i * p.ldc;
    for (int64_t j = 0; j < upto; ++j) c[j] = p.beta == T(0) ? T(0) : p.beta * c[j];
    for (int64_t j = 0; p.epilogue && j < upto; j += 1024)
      p.epilogue->apply(p.epilogue->context, i, j, 1, static_cast<int>(std::min<int64_t>(1024, upto - j)), c + j,
                        p.ldc);
  }
}

}  // namespace

int64_t packing_elements(int64_t widest, int threads) {
  const int64_t columns = std::max(kLeastColumns * threads, std::min(kColumns, round_up(widest, 48)));
  return 2 * kDepth * columns + threads * own_elements() + 32;
}

template <class T>
Packing<T> packing(T* memory, int64_t widest, int threads) {
  const int64_t columns = std::max(kLeastColumns * threads, std::min(kColumns, round_up(widest, 48)));
  // Whole cache lines, so that no vector of a panel straddles two.
  auto address = reinterpret_cast<uintptr_t>(memory);
  T* base = memory + ((64 - address % 64) % 64) / sizeof(T);
  return {base, base + 2 * kDepth * columns, columns};
}

template <class T>
void product(const Team& team, const Packing<T>& packing, const Product<T>& p) {
  if (p.m == 0 || p.n == 0) return;
  const Micro<T>& micro = cpu::micro<T>();
  const Job<T> job{p, micro, p.inner == Inner::dot ? micro.nr : 2 * micro.lanes};
  if (p.k == 0) {
    scale_only(team, job);
    team.barrier();
    return;
  }
  T* own = packing.own + team.rank * own_elements();
  if (is_thin(p)) {
    thin_product(team, own, p);
    team.barrier();
    return;
  }
  const bool by_rows = p.m >= int64_t(16) * micro.mr * team.size || p.m >= p.n;
  if (by_rows) {
    const bool direct = p.n <= kDirectPanels * job.nr && p.inner == Inner::dot && !p.lower;
    // Row blocks are assigned round robin. In a triangle, long and short ones alternate.
    const int64_t fair = (p.m + team.size - 1) / team.size;
    const int64_t part = p.lower ? (fair + 3) / 4 : fair;
    const int64_t turns = direct ? 1 : (part + kRows - 1) / kRows;
    const int64_t rows = round_up((part + turns - 1) / turns, 2 * micro.mr);
    const int64_t blocks = (p.m + rows - 1) / rows;
    int64_t turn = 0;
    for (int64_t j0 = 0; j0 < p.n; j0 += packing.columns) {
      const int64_t j1 = std::min(p.n, j0 + packing.columns);
      for (int64_t k0 = 0; k0 < p.k; k0 += kDepth, ++turn) {
        const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.k - k0));
        // Two alternating buffers: one barrier per block, since the other buffer is still being read before it.
        T* packed = packing.shared + (turn % 2) * kDepth * packing.columns;
        job.pack_columns(team, k0, depth, j0, j1, packed);
        team.barrier();
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t turn_of =
              p.lower && (block / team.size) % 2 ? team.size - 1 - block % team.size : block % team.size;
          if (turn_of != team.rank) continue;
          const int64_t i = block * rows;
          if (p.lower && j0 > i + rows - 1) continue;
          job.row_block(i, static_cast<int>(std::min(rows, p.m - i)), j0, j1, k0, depth, direct, packed, own, k0 == 0,
                        k0 + depth == p.k);
        }
      }
    }
  } else {
    int64_t begin, end;
    team.share(p.n, job.nr, &begin, &end);
    // Few rows: a block of B is used little, so it is read in long runs of few k, which have the highest memory
    // bandwidth.
    const bool few = p.m <= 8 * micro.mr;
    const int depth_full = few ? kShallow : kDepth;
    const int64_t strip = std::max<int64_t>(1, (few ? kStrip : kStrip / 4) / job.nr) * job.nr;
    T* packed = packing.shared + team.rank * (2 * kDepth * packing.columns / team.size / 16 * 16);
    for (int64_t j = begin; j < end; j += strip) {
      const int64_t stop = std::min(end, j + strip);
      for (int64_t k0 = 0; k0 < p.k; k0 += depth_full) {
        const int depth = static_cast<int>(std::min<int64_t>(depth_full, p.k - k0));
        job.pack_columns(Team{}, k0, depth, j, stop, packed);
        for (int64_t i = 0; i < p.m; i += kRows)
          job.row_block(i, static_cast<int>(std::min<int64_t>(kRows, p.m - i)), j, stop, k0, depth, false, packed, own,
                        k0 == 0, k0 + depth == p.k);
      }
    }
  }
  team.barrier();
}

template Packing<float> packing(float*, int64_t, int);
template Packing<double> packing(double*, int64_t, int);
template void product(const Team&, const Packing<float>&, const Product<float>&);
template void product(const Team&, const Packing<double>&, const Product<double>&);

}  // namespace ssdd::cpu

// Epilogue of a product: a block has put a tile of sums into shared memory, [row][column] with a given pitch. Sums that
// are not finite are computed again in float, the parts of a split k are added, finished elements are written, a
// triangle is mirrored, and squares are summed. Neighbouring lanes work on neighbouring elements.
#pragma once
#include "join.cuh"

namespace ssdd::cuda {

// Maps: v = exp(map_of v) is among the options (of a product's Inner::distance only). Own: no operand is of 16-bit floats.
template <int Threads, int Size, int Pitch, class T, bool Maps = false, bool Own = false>
class TileFinish {
  static constexpr int kWide = 16 / static_cast<int>(sizeof(T)), kWhole = Size * Size;

 public:
  SIMT_DEVICE TileFinish(const Product<T>& product, const Tiling& t, const Part& which, T* sums)
      : p(product), tiling(t), part(which), tile(sums) {
    rows = p.m - part.row < Size ? static_cast<int>(p.m - part.row) : Size;
    columns = p.n - part.column < Size ? static_cast<int>(p.n - part.column) : Size;
    bits = Size == 128 ? 7 : 6;
    static_assert(Size == 64 || Size == 128, "2^6 or 2^7 columns");
#pragma unroll 1
    while (bits > 0 && 1 << bits >= 2 * columns) --bits;
  }

  // For sums from tensor cores. not_finite: this thread has just put a sum into the tile that is not finite and may be
  // wrong.
  SIMT_DEVICE void run(bool not_finite) const {
    if (any(not_finite)) recompute();
    run();
  }
  SIMT_DEVICE void run() const {
    simt::barrier();
    if (tiling.splits > 1 && !join()) return;
    const Finish<T> finish(p, part.b);
    const bool plain =
        p.triangle == Triangle::full && !p.accumulate && !(Maps && p.map_of) && !p.row && !p.add && !p.squares.out;
    if (plain && aligned())
      write_plain(finish);
    else
      write(finish);
  }

 private:
  // The place of a thread: row i and the first of a run of columns j, with `step` rows to its next place.
  struct Place {
    int i, j, step;
  };
  // A power of two of threads stand side by side, as many as cover the runs of Wide columns that exist. All threads work
  // even if a tile has few columns. Each thread keeps its columns.
  template <int Wide>
  SIMT_DEVICE Place place() const {
    static_assert(Wide == 1 || Wide == 2 || Wide == 4);
    constexpr int kLog = Wide / 2;
    const int t = simt::thread(), own = bits > kLog ? bits - kLog : 0;
    return {t >> own, (t & ((1 << own) - 1)) * Wide, Threads >> own};
  }

  // True in all threads if it is true in any. It contains the barrier that the tile needs before it is read.
  SIMT_DEVICE bool any(bool mine) const {
    SIMT_SHARED(unsigned, votes, Threads / 32);
    const unsigned vote = simt::ballot(mine);
    if (simt::lane() == 0) simt::put(votes + simt::warp(), vote);
    simt::barrier();
    unsigned all = 0;
#pragma unroll
    for (int w = 0; w < Threads / 32; ++w) all |= simt::get(votes + w);
    return all != 0;
  }

  // An infinite operand, or one near the largest float, is not a sum of two TF32 numbers. A sum that is not finite is
  // therefore computed again in float, one product after the other: it has the reference's value, at the reference's
  // speed.
  SIMT_DEVICE void recompute() const {
    const Place own = place<1>();
    if (own.j >= columns) return;
    Source<T> all_a = p.a[part.b], all_b = p.b[part.b];
    if (Own) all_a.element = all_b.element = Element::own;
    const Source<T> b = all_b.from(0, part.column + own.j);
#pragma unroll 1
    for (int i = own.i; i < rows; i += own.step) {
      T* const element = tile + i * Pitch + own.j;
      if (simt::finite(simt::get(element))) continue;
      const Source<T> a = all_a.from(part.row + i, 0);
      T sum = 0;
#pragma unroll 1
      for (int64_t k = part.k_begin; k < part.k_end; ++k) sum = simt::fma(a(0, k), b(k, 0), sum);
      simt::put(element, sum);
    }
  }

  // Adds the sums of all splits of this tile, in their order, in the block that finishes last; true in that block. A
  // split's part lies in memory as [row][column]; elements outside of the matrix are neither written nor read. For a
  // tile of 64 x 64 floats the last block takes about 350 cycles per split, 3.2 us for 16: the cost of a launch.
  SIMT_DEVICE bool join() const {
    const int number = part.b * tiling.tiles + part.tile;
    T* const parts = p.split + static_cast<int64_t>(number) * tiling.splits * kWhole;
    const Place own = place<kWide>();
    if (own.j < columns) {
      T* const mine = parts + static_cast<int64_t>(part.split) * kWhole + own.j;
#pragma unroll 1
      for (int i = own.i; i < rows; i += own.step)
        simt::store_vector<kWide>(mine + i * Size, simt::get_vector<kWide>(tile + i * Pitch + own.j));
    }
    if (!last_to_arrive(p.counters + number, tiling.splits)) return false;
    // Many loads at once, since each has the latency of L2.
    constexpr int kRuns = 2, kSplits = sizeof(T) == 4 ? 8 : 4;
#pragma unroll 1
    for (int i = own.i; i < rows && own.j < columns; i += kRuns * own.step) {
      simt::Vector<T, kWide> sums[kRuns] = {};
      const T* from = parts + i * Size + own.j;
#pragma unroll 1
      for (int left = tiling.splits; left > 0; left -= kSplits, from += kSplits * kWhole) {
        simt::Vector<T, kWide> v[kRuns][kSplits];
#pragma unroll
        for (int r = 0; r < kRuns; ++r)
#pragma unroll
          for (int s = 0; s < kSplits; ++s)
            v[r][s] = simt::load_vector_if<kWide>(s < left && i + r * own.step < rows,
                                                  from + r * own.step * Size + s * kWhole);
        // Splits beyond the last add zeros, which change nothing.
#pragma unroll
        for (int r = 0; r < kRuns; ++r)
#pragma unroll
          for (int s = 0; s < kSplits; ++s)
#pragma unroll
            for (int w = 0; w < kWide; ++w) sums[r].v[w] += v[r][s].v[w];
      }
#pragma unroll
      for (int r = 0; r < kRuns; ++r)
        if (i + r * own.step < rows) simt::put_vector<kWide>(tile + (i + r * own.step) * Pitch + own.j, sums[r]);
    }
    simt::barrier();
    return true;
  }

  SIMT_DEVICE T* start() const { return p.c + part.b * p.c_bs + part.row * p.ld + part.column; }
  // True if a run of kWide elements of c is aligned, and wholly in the matrix.
  SIMT_DEVICE bool aligned() const {
    return reinterpret_cast<uintptr_t>(start()) % 16 == 0 && p.ld % kWide == 0 && columns % kWide == 0;
  }
  // True of a tile whose elements above the diagonal of the matrix are not computed. Other tiles of a triangle lie
  // below it.
  SIMT_DEVICE bool on_diagonal() const { return p.triangle != Triangle::full && part.row == part.column; }

  // Writes the sums times a number: the fast path of a plain product.
  SIMT_DEVICE void write_plain(const Finish<T>& finish) const {
    const Place own = place<kWide>();
    if (own.j >= columns) return;
    T* c = start() + own.i * p.ld + own.j;
    const int64_t apart = own.step * p.ld;
#pragma unroll 1
    for (int i = own.i; i < rows; i += own.step, c += apart) {
      auto v = simt::get_vector<kWide>(tile + i * Pitch + own.j);
#pragma unroll
      for (int w = 0; w < kWide; ++w) v.v[w] = finish.alpha * v.v[w] + finish.plus;
      simt::store_vector<kWide>(c, v);
    }
  }

  // Writes elements with every option of Product. A thread works on one column, several rows at a time, so that its
  // loads from global memory are issued together.
  SIMT_DEVICE void write(const Finish<T>& finish) const {
    constexpr int kAtOnce = kWide;
    const Place own = place<1>();
    const bool exists = own.j < columns;
    const int first = on_diagonal() ? own.j : 0;  // row from which elements are wanted
    // Row from which they are added to c.
    const int64_t begin = p.accumulate_from - part.row;
    const int old_first = !p.accumulate || begin > Size ? Size : static_cast<int>(begin);
    const T of_column = p.row && exists ? p.row[part.b * p.row_bs + part.column + own.j] : T(0);
    T* c = start() + own.i * p.ld + own.j;
    const int64_t apart = own.step * p.ld;
    double squares = 0;
#pragma unroll 1
    for (int i = own.i; i < rows; i += kAtOnce * own.step, c += kAtOnce * apart) {
      bool wanted[kAtOnce];
      T v[kAtOnce], added[kAtOnce] = {};
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int row = i + u * own.step;
        wanted[u] = exists && row >= first && row < rows;
        v[u] = simt::load_if(wanted[u] && row >= old_first, c + u * apart, T(0));
      }
      if (p.add) finish.add_elements(part.row + i, part.column + own.j, own.step, wanted, added);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        T* const element = tile + (i + u * own.step) * Pitch + own.j;
        v[u] = finish.alpha * simt::get_if(wanted[u], element, T(0)) + v[u];
        if (Maps && p.map_of) v[u] = simt::exponential(finish.map * v[u]);
        v[u] = v[u] + finish.plus + of_column + added[u];
        simt::store_if(wanted[u], c + u * apart, v[u]);
        if (p.triangle == Triangle::both) simt::put_if(wanted[u], element, v[u]);
        if (p.squares.out && wanted[u]) squares += static_cast<double>(v[u]) * static_cast<double>(v[u]);
      }
    }
    if (p.triangle == Triangle::both) mirror();
    if (p.squares.out) add_squares(squares);
  }

  // Mirrors the elements below the diagonal to above it: 4 rows of 8 elements per warp at a time, whole sectors.
  SIMT_DEVICE void mirror() const {
    simt::barrier();
    T* const c = p.c + part.b * p.c_bs + part.column * p.ld + part.row;
    const bool diagonal = on_diagonal();
#pragma unroll 1
    for (int e = simt::warp(); e < kWhole / 32; e += Threads / 32) {
      const int i = e % (Size / 8) * 8 + simt::lane() % 8, j = e / (Size / 8) * 4 + simt::lane() / 8;
      const bool wanted = i < rows && j < columns && (!diagonal || j < i);
      simt::store_if(wanted, c + j * p.ld + i, simt::get_if(wanted, tile + i * Pitch + j, T(0)));
    }
  }

  SIMT_DEVICE void add_squares(double sum) const {
    const Squares<T>& s = p.squares;
    if (!sum_of_blocks<Threads>(sum, s.first + part.tile, s.all, s.parts + part.b * s.all, s.counters + part.b)) return;
    if (simt::thread() == 0) simt::store(s.out + part.b, static_cast<T>(s.factor * sum));
  }

  const Product<T>& p;
  const Tiling& tiling;
  const Part& part;
  T* const tile;
  int rows, columns, bits;  // 2^bits: the least power of two that is not less than the columns
};

}  // namespace ssdd::cuda

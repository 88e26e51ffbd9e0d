// Epilogue of a product: a block has put a tile of sums into shared memory, [row][column] with a given pitch. Sums that
// are not finite are computed again in float, the parts of a split k are added, finished elements are written, a
// triangle is mirrored, and squares are summed. Neighbouring lanes work on neighbouring elements.
#pragma once
#include "join.cuh"

namespace ssdd::cuda {

template <int Threads, int Size, int Pitch, class T>
class TileFinish {
  static constexpr int kWide = 16 / static_cast<int>(sizeof(T)), kWhole = Size * Size;

 public:
  SIMT_DEVICE TileFinish(const Product<T>& product, const Tiling& t, const Part& which, T* sums)
      : p(product), tiling(t), part(which), tile(sums) {
    rows = p.m - part.row < Size ? static_cast<int>(p.m - part.row) : Size;
    columns = p.n - part.column < Size ? static_cast<int>(p.n - part.column) : Size;
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
    const bool plain = p.triangle == Triangle::full && !p.accumulate && !p.map_of && !p.row && !p.add && !p.squares.out;
    if (plain && aligned())
      write_plain(finish);
    else
      write(finish);
  }

 private:
  // How threads cover the runs of Wide columns that exist: a power of two of them side by side. All threads work even
  // if a tile has few columns.
  template <int Wide>
  SIMT_DEVICE int across() const {
    int count = Size / Wide;
    while (count / 2 * Wide >= columns) count /= 2;
    return count;
  }
  // Calls f(row, column) for the first of each run of Wide neighbours in the matrix, AtOnce of them at a time. Each
  // thread keeps its columns.
  template <int Wide, int AtOnce, class F>
  SIMT_DEVICE void each(const F& f) const {
    const int count = across<Wide>(), j = simt::thread() % count * Wide, step = Threads / count;
    if (j >= columns) return;
#pragma unroll AtOnce
    for (int i = simt::thread() / count; i < rows; i += step) f(i, j);
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
    const Source<T> a = p.a[part.b], b = p.b[part.b];
    each<1, 1>([&](int i, int j) {
      T* const place = tile + i * Pitch + j;
      if (simt::finite(simt::get(place))) return;
      T sum = 0;
#pragma unroll 1
      for (int64_t k = part.k_begin; k < part.k_end; ++k)
        sum = simt::fma(a(part.row + i, k), b(k, part.column + j), sum);
      simt::put(place, sum);
    });
  }

  // Adds the sums of all splits of this tile, in their order, in the block that finishes last; true in that block. A
  // split's part lies in memory as [row][column]; elements outside of the matrix are neither written nor read. For a
  // tile of 64 x 64 floats the last block takes about 350 cycles per split, 3.2 us for 16: the cost of a launch.
  SIMT_DEVICE bool join() const {
    const int number = part.b * tiling.tiles + part.tile;
    T* const parts = p.split + static_cast<int64_t>(number) * tiling.splits * kWhole;
    T* const own = parts + static_cast<int64_t>(part.split) * kWhole;
    each<kWide, 1>([&](int i, int j) {
      simt::store_vector<kWide>(own + i * Size + j, simt::get_vector<kWide>(tile + i * Pitch + j));
    });
    if (!last_to_arrive(p.counters + number, tiling.splits)) return false;
    // Many loads at once, since each has the latency of L2.
    constexpr int kRuns = 2, kSplits = 8;
    const int count = across<kWide>(), j = simt::thread() % count * kWide, step = Threads / count;
#pragma unroll 1
    for (int first = simt::thread() / count; first < rows && j < columns; first += kRuns * step) {
      simt::Vector<T, kWide> sums[kRuns] = {};
#pragma unroll 1
      for (int s0 = 0; s0 < tiling.splits; s0 += kSplits) {
        simt::Vector<T, kWide> v[kRuns][kSplits];
#pragma unroll
        for (int r = 0; r < kRuns; ++r)
#pragma unroll
          for (int s = 0; s < kSplits; ++s) {
            const int i = first + r * step;
            v[r][s] = simt::load_vector_if<kWide>(i < rows && s0 + s < tiling.splits,
                                                  parts + static_cast<int64_t>(s0 + s) * kWhole + i * Size + j);
          }
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
        if (first + r * step < rows) simt::put_vector<kWide>(tile + (first + r * step) * Pitch + j, sums[r]);
    }
    simt::barrier();
    return true;
  }

  SIMT_DEVICE T* start() const { return p.c + part.b * p.c_bs + part.row * p.ld + part.column; }
  // True if a run of kWide elements of c is aligned, and wholly in the matrix.
  SIMT_DEVICE bool aligned() const {
    return reinterpret_cast<uintptr_t>(start()) % 16 == 0 && p.ld % kWide == 0 && columns % kWide == 0;
  }

  // Writes the sums times a number: the fast path of a plain product.
  SIMT_DEVICE void write_plain(const Finish<T>& finish) const {
    T* const c = start();
    each<kWide, 1>([&](int i, int j) {
      auto v = simt::get_vector<kWide>(tile + i * Pitch + j);
#pragma unroll
      for (int w = 0; w < kWide; ++w) v.v[w] = finish.alpha * v.v[w] + finish.plus;
      simt::store_vector<kWide>(c + i * p.ld + j, v);
    });
  }

  // Writes elements with every option of Product. A thread works on one column, several rows at a time, so that its
  // loads from global memory are issued together.
  SIMT_DEVICE void write(const Finish<T>& finish) const {
    constexpr int kAtOnce = kWide;
    const int count = across<1>(), j = simt::thread() % count, step = Threads / count;
    const int64_t column = part.column + j;
    T* const c = start() + j;
    double squares = 0;
#pragma unroll 1
    for (int first = simt::thread() / count; first < rows; first += kAtOnce * step) {
      bool wanted[kAtOnce];
      T old[kAtOnce] = {}, added[kAtOnce] = {};
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = first + u * step;
        wanted[u] = i < rows && j < columns && (p.triangle == Triangle::full || column <= part.row + i);
        if (p.accumulate) old[u] = simt::load_if(wanted[u] && part.row + i >= p.accumulate_from, c + i * p.ld, T(0));
        if (p.add && wanted[u]) added[u] = finish.added(part.row + i, column);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = first + u * step;
        T* const place = tile + i * Pitch + j;
        const T v = finish.value(column, wanted[u], simt::get_if(wanted[u], place, T(0)), old[u], added[u]);
        simt::store_if(wanted[u], c + i * p.ld, v);
        if (p.triangle == Triangle::both) simt::put_if(wanted[u], place, v);
        if (p.squares.out && wanted[u]) squares += static_cast<double>(v) * static_cast<double>(v);
      }
    }
    if (p.triangle == Triangle::both) mirror();
    if (p.squares.out) add_squares(squares);
  }

  // Mirrors the elements below the diagonal to above it: 4 rows of 8 elements per warp at a time, whole sectors.
  SIMT_DEVICE void mirror() const {
    simt::barrier();
    T* const c = p.c + part.b * p.c_bs + part.column * p.ld + part.row;
#pragma unroll 1
    for (int e = simt::warp(); e < kWhole / 32; e += Threads / 32) {
      const int i = e % (Size / 8) * 8 + simt::lane() % 8, j = e / (Size / 8) * 4 + simt::lane() / 8;
      const bool wanted = i < rows && j < columns && part.column + j < part.row + i;
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
  int rows, columns;
};

}  // namespace ssdd::cuda

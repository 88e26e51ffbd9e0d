// What a block of the tiled factorisation or solve (factor_large.cu) works with: in shared memory one tile and two
// operands, and in global memory the counter that gives each block its tile and the semaphores that order the tiles.
//
// The protocol of a block:
//   1. The constructor draws the block's work index. Blocks draw increasing indices, and a tile depends only on smaller
//   ones.
//   2. load_tile() starts the copy of the tile.
//   3. wait(semaphore) before the first read of another block's tile. One thread polls, so a barrier must follow before
//   any thread reads the tile; wait_for_copies() contains one.
//   4. subtract() and solve(), or a factorisation, finish the tile in shared memory.
//   5. store_tile() writes it, and post(semaphore) publishes it. failed() is true if any awaited tile had failed.
#pragma once
#include "factor_block.cuh"
#include "tile.cuh"

namespace ssdd::cuda {

// A semaphore is one int in global memory. The block that computes a tile posts it once. Blocks that read the tile wait
// for it.
enum Semaphore : int { kWaiting = 0, kReady = 1, kFailed = 2 };

// A tile of a matrix in global memory; rows and columns are those inside the matrix.
template <class T>
struct GlobalTile {
  T* p;
  int64_t ld;
  int rows, columns;
};

template <class T>
struct TileContext {
  static constexpr int kThreads = Tile<T>::kThreads, kPitch = shared_pitch<T>(kTile), kWhole = kTile * kPitch;
  static_assert(kWhole <= 2 * Tile<T>::kRoom, "a triangle fits in the place of the operands");
  static constexpr int kBytes = (2 * Tile<T>::kRoom + kWhole) * static_cast<int>(sizeof(T)) + 64;
  T *a, *b, *own;  // two operands of a product, and the tile of this block
  int* state;      // the work index, 1 if an awaited tile failed, the pivot that failed here
  SIMT_DEVICE TileContext(simt::Shared& shared, int* counter) {
    SIMT_SHARED(int, numbers, 3);
    a = shared.take<T>(2 * Tile<T>::kRoom);
    b = a + Tile<T>::kRoom;
    own = shared.take<T>(kWhole);
    state = numbers;
    if (simt::thread() == 0) {
      numbers[0] = simt::next_index(counter);
      numbers[1] = 0;
      numbers[2] = 0;
    }
    simt::barrier();
  }
  SIMT_DEVICE int work_index() const { return state[0]; }
  SIMT_DEVICE bool failed() const { return state[1] != 0; }

  // Waits until a tile is written. Thread 0 polls; the others are ordered by the next barrier.
  SIMT_DEVICE void wait(const int* semaphore) const {
    if (simt::thread() == 0 && simt::wait_while(semaphore, kWaiting) == kFailed) state[1] = 1;
  }
  // Posts that this block's tile is written, or that it failed.
  SIMT_DEVICE void post(int* semaphore, Semaphore value) const {
    simt::barrier();
    if (simt::thread() == 0) simt::store_release(semaphore, static_cast<int>(value));
  }
  // Waits for all asynchronous copies of the block. It ends with a barrier.
  SIMT_DEVICE void wait_for_copies() const {
    simt::copy_commit();
    simt::copy_wait<0>();
    simt::barrier();
  }

  // The layout of the tile in `own`: as it is, or transposed.
  struct Layout {
    T* p;
    int row_stride, column_stride;
    SIMT_DEVICE T* at(int row, int column) const { return p + row * row_stride + column * column_stride; }
  };
  SIMT_DEVICE Layout layout(bool transposed) const { return {own, transposed ? 1 : kPitch, transposed ? kPitch : 1}; }

  // Starts copies of a tile to `own`, zero beyond its edges. A warp copies 8 elements along the unit stride of each of
  // 4 lines, without bank conflicts.
  SIMT_DEVICE void load_tile(View<const T> from, int rows, int columns, Layout to) const {
    if (from.rs == 1 && from.cs != 1) {  // the transposed tile
      from = {from.p, from.cs, from.rs};
      to = {to.p, to.column_stride, to.row_stride};
      const int lines = columns;
      columns = rows;
      rows = lines;
    }
    const int r = simt::lane() / 8, c = simt::lane() % 8;
#pragma unroll 1
    for (int unit = simt::warp(); unit < kTile * kTile / 32; unit += kThreads / 32) {
      const int i = unit / (kTile / 8) * 4 + r, j = unit % (kTile / 8) * 8 + c;
      const bool exists = i < rows && j < columns;
      simt::copy_async<sizeof(T)>(to.at(i, j), exists ? from.p + i * from.rs + j * from.cs : from.p,
                                  exists ? static_cast<int>(sizeof(T)) : 0);
    }
  }
  // Writes the part of `own` that is inside the matrix. lower: on and below the diagonal; above it zeros, or nothing.
  SIMT_DEVICE void store_tile(const Layout& from, const GlobalTile<T>& to, bool lower, bool zeros) const {
    constexpr int kAtOnce = sizeof(T) == 4 ? 2 : 1;  // what the size of the kernels allows
    const int r = simt::lane() / 8, c = simt::lane() % 8;
#pragma unroll kAtOnce
    for (int unit = simt::warp(); unit < kTile * kTile / 32; unit += kThreads / 32) {
      const int i = unit / (kTile / 8) * 4 + r, j = unit % (kTile / 8) * 8 + c;
      const bool above = lower && j > i, exists = i < to.rows && j < to.columns && (!above || zeros);
      const T v = simt::get(from.at(i, j));
      simt::store_if(exists, to.p + i * to.ld + j, above ? T(0) : v);
    }
  }
  SIMT_DEVICE void store_zeros(const GlobalTile<T>& to) const {
#pragma unroll 1
    for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
      const int i = e / kTile, j = e % kTile;
      simt::store_if(i < to.rows && j < to.columns, to.p + i * to.ld + j, T(0));
    }
  }
  // own -= the sums of a product.
  SIMT_DEVICE void subtract(Tile<T>& sums, const Layout& from) const {
    sums.each([&](int r, int c, T sum) {
      T* const element = from.at(r, c);
      simt::put(element, simt::get(element) - sum);
    });
  }

  // own <- L^-1 own (back: L^-T own) for L = l, whose copy to shared memory has been started. inverse: memory for 64
  // elements.
  SIMT_DEVICE void solve(const Square<T>& l, T* inverse, bool back) const {
    wait_for_copies();
    if (simt::thread() < l.n)
      simt::put(inverse + simt::thread(), simt::reciprocal(simt::get(l.at(simt::thread(), simt::thread()))));
    simt::barrier();
    const Columns<kTile, T> x{own, kPitch};
    substitute<kThreads>(l, inverse, x, back);
  }
};

}  // namespace ssdd::cuda

// What a block of the tiled factorisation and solve (factor_large.cu) works with: the tile that it makes and two operands in
// shared memory, the ticket that says which tile, the flags by which blocks tell each other.
#pragma once
#include "tile.cuh"
#include "triangle.cuh"

namespace ssdd::cuda {

constexpr int kOwnPitch = shared_pitch(kTile);
enum Flag : int { kWaiting = 0, kReady = 1, kFailed = 2 };

template <class T>
struct Desk {
  static constexpr int kThreads = Tile<T>::kThreads, kSteps = Tile<T>::kSteps, kWhole = kTile * kOwnPitch;
  static constexpr int kInversePitch = kTile + 1;  // of an inverse in the place of both operands
  static_assert(kTile * kInversePitch <= 2 * Tile<T>::kRoom, "it fits there");
  static constexpr int kBytes = (2 * Tile<T>::kRoom + kWhole) * static_cast<int>(sizeof(T)) + 64;
  T *a, *b, *own;  // two operands, and the tile that is made
  int* state;      // the ticket, whether something that it needs failed, the pivot
  SIMT_DEVICE Desk(simt::Shared& shared, int* ticket) {
    SIMT_SHARED(int, numbers, 3);
    a = shared.take<T>(2 * Tile<T>::kRoom);
    b = a + Tile<T>::kRoom;
    own = shared.take<T>(kWhole);
    state = numbers;
    if (simt::thread() == 0) numbers[0] = simt::next_ticket(ticket), numbers[1] = numbers[2] = 0;
    simt::barrier();
  }
  SIMT_DEVICE int ticket() const { return state[0]; }
  // Until the flag is set. One thread waits; a barrier behind it tells the others.
  SIMT_DEVICE void wait_for(const int* flag) const {
    if (simt::thread() != 0) return;
    int seen = simt::load_acquire(flag);
    while (seen == kWaiting) {
      simt::pause();
      seen = simt::load_acquire(flag);
    }
    if (seen == kFailed) state[1] = 1;
  }
  // What the block has written stands before the flag does.
  SIMT_DEVICE void raise(int* flag, Flag value) const {
    simt::barrier();
    if (simt::thread() == 0) simt::store_release(flag, static_cast<int>(value));
  }
  SIMT_DEVICE void arrived() const {
    simt::copy_commit();
    simt::copy_wait<0>();
    simt::barrier();
  }
  // [rows, columns] to `own`, zero beyond.
  SIMT_DEVICE void bring(const T* from, int64_t ld, int rows, int columns) const {
    for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
      const int i = e / kTile, j = e % kTile;
      const bool exists = i < rows && j < columns;
      simt::copy_async<sizeof(T)>(own + i * kOwnPitch + j, exists ? from + i * ld + j : from, exists ? static_cast<int>(sizeof(T)) : 0);
    }
  }
  // The part of `own` that exists; lower: on and below the diagonal.
  SIMT_DEVICE void take_out(T* to, int64_t ld, int rows, int columns, bool lower) const {
    for (int e = simt::thread(); e < kTile * kTile; e += kThreads) {
      const int i = e / kTile, j = e % kTile;
      simt::store_if(i < rows && j < columns && (!lower || j <= i), to + i * ld + j, simt::get(own + i * kOwnPitch + j));
    }
  }
  SIMT_DEVICE T get(int row, int column) const { return simt::get(own + row * kOwnPitch + column); }
  SIMT_DEVICE void put(int row, int column, T v) const { simt::put(own + row * kOwnPitch + column, v); }

  // out = x m (Left: m x) for m [64, 64] in global memory. x: from the tile `from`, or from `own` where that is nullptr.
  template <bool Left, bool MajorM>
  SIMT_DEVICE void times(Tile<T>& out, const View<const T>& m, bool vectors, Tile<T>* from) const {
    out.clear();
#pragma unroll 1
    for (int k = 0; k < kTile; k += kSteps) {
      simt::barrier();  // all are done with the operands
      if (Left)
        Tile<T>::template load<MajorM>(m.from(0, k), kTile, kSteps, vectors, a);
      else
        Tile<T>::template load<MajorM>(m.t().from(0, k), kTile, kSteps, vectors, b);
      const auto hand_in = [&](int r, int c, T x) {
        const int step = (Left ? r : c) - k;
        if (step >= 0 && step < kSteps)
          simt::put(Left ? b + Tile<T>::template place<false>(c, step) : a + Tile<T>::template place<true>(r, step), x);
      };
      if (from)
        from->each(hand_in);
      else
        out.each([&](int r, int c, T) { hand_in(r, c, get(r, c)); });
      arrived();
      if constexpr (Left)
        out.template multiply<MajorM, false>(a, b);
      else
        out.template multiply<true, MajorM>(a, b);
    }
  }
};

SIMT_DEVICE int least(int64_t x, int64_t y) { return static_cast<int>(x < y ? x : y); }

// A diagonal tile's inverse, then L with zeros above.
template <class T>
SIMT_DEVICE void keep(const T* l, int l_pitch, const T* inverse, int pitch, int threads, T* kept) {
  for (int e = simt::thread(); e < kTile * kTile; e += threads) {
    const int r = e / kTile, c = e % kTile;
    simt::store(kept + e, simt::get(inverse + r * pitch + c));
    simt::store(kept + kTile * kTile + e, c <= r ? simt::get(l + r * l_pitch + c) : T(0));
  }
}

}  // namespace ssdd::cuda

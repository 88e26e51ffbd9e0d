// Deliberately wrong kernels, one a run: `simt_faults NAME`. Each must be caught, by the twin or by a sanitizer
// (test_faults.py says by whom and with which words); `right` is the same work done right and must pass everywhere.
#include <cstdio>
#include <cstring>
#include <vector>

#include <simt.cuh>

namespace {

constexpr int kThreads = 64;

// A block reduction, right or without its barrier.
template <bool Barrier>
SIMT_KERNEL(kThreads) reduce(const float* in, float* out) {
  SIMT_SHARED(float, sums, kThreads);
  simt::put(sums + simt::thread(), simt::load(in + simt::thread()));
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (Barrier) simt::barrier();
    if (simt::thread() < half)
      simt::put(sums + simt::thread(), simt::get(sums + simt::thread()) + simt::get(sums + simt::thread() + half));
  }
  if (simt::thread() == 0) simt::store(out, simt::get(sums));
}

// Lanes hand values over through memory: a shuffle between does not order them, a warp barrier does.
template <bool WarpBarrier>
SIMT_KERNEL(32) exchange(const float* in, float* out) {
  SIMT_SHARED(float, values, 32);
  simt::put(values + simt::lane(), simt::load(in + simt::lane()));
  WarpBarrier ? simt::warp_barrier() : static_cast<void>(simt::shuffle(1, 0));
  simt::store(out + simt::lane(), simt::get(values + (simt::lane() ^ 1)));
}

SIMT_KERNEL(kThreads) shared_overrun(float* out) {
  simt::Shared shared;
  float* const first = shared.take<float>(kThreads);
  float* const second = shared.take<float>(kThreads);
  simt::put(first + simt::thread() + 1, 1.0f);  // the last thread reaches beyond `first`
  simt::put(second + simt::thread(), 2.0f);
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(second + simt::thread()));
}

SIMT_KERNEL(kThreads) static_overrun(float* out) {
  SIMT_SHARED(float, values, kThreads);
  simt::put(values + simt::thread() + 1, 1.0f);
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) global_overrun(const float* in, float* out) {
  simt::store(out + simt::thread(), simt::load(in + simt::thread() + 1));
}

SIMT_KERNEL(kThreads) uninitialised(float* out) {
  SIMT_SHARED(float, values, kThreads);
  if (simt::thread() > 0) simt::put(values + simt::thread(), 1.0f);
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) misaligned(float* out) {
  simt::Vector<float, 4> v{{1, 2, 3, 4}};
  if (simt::thread() == 0) simt::store_vector<4>(out + 1, v);
}

// Wait: 0 as it should be, 1 one group too early, 2 never.
template <int Wait>
SIMT_KERNEL(kThreads) copied(const float* in, float* out) {
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);
  simt::copy_commit();
  if (Wait == 0) simt::copy_wait<0>();
  if (Wait == 1) simt::copy_wait<1>();
  const float early = simt::get(values + simt::thread());
  if (Wait == 1) simt::copy_wait<0>();
  simt::store(out + simt::thread(), early);
}

// What another thread copied is there after a barrier behind the wait, not after the wait alone.
SIMT_KERNEL(kThreads) copied_by_another(const float* in, float* out) {
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values + (simt::thread() + 1) % kThreads));
}

SIMT_KERNEL(kThreads) divergent(float* out) {
  if (simt::thread() < 32)
    simt::barrier();
  else
    simt::barrier();
  simt::store(out + simt::thread(), 0.0f);
}

SIMT_KERNEL(kThreads) absent(float* out) {
  if (simt::thread() == 40) return;
  simt::barrier();
  simt::store(out + simt::thread(), 0.0f);
}

SIMT_KERNEL(kThreads) absent_from_warp(float* out) {
  if (simt::thread() == 40) return;
  simt::store(out + simt::thread(), simt::shuffle(1.0f, 0));
}

SIMT_KERNEL(kThreads) divergent_meeting(float* out) {
  float v;
  if (simt::lane() < 16)
    v = simt::shuffle(1.0f, 0);
  else
    v = simt::shuffle(2.0f, 0);
  simt::store(out + simt::thread(), v);
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  std::vector<float> in(kThreads, 1.0f), out(kThreads, 0.0f);
  const float* x = in.data();
  float* y = out.data();
  const auto is = [&](const char* which) { return std::strcmp(name, which) == 0; };
  const int two = 2 * kThreads * int(sizeof(float));
  bool known = true;
  if (is("right")) {
    simt::launch(&reduce<true>, {3}, kThreads, 0, nullptr, x, y);
    if (y[0] != kThreads) return 1;
    simt::launch(&exchange<true>, {1}, 32, 0, nullptr, x, y);
    simt::launch(&copied<0>, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("missing_barrier")) {
    simt::launch(&reduce<false>, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("shuffle_orders_nothing")) {
    simt::launch(&exchange<false>, {1}, 32, 0, nullptr, x, y);
  } else if (is("shared_overrun")) {
    simt::launch(&shared_overrun, {1}, kThreads, two, nullptr, y);
  } else if (is("static_overrun")) {
    simt::launch(&static_overrun, {1}, kThreads, 0, nullptr, y);
  } else if (is("global_overrun")) {
    simt::launch(&global_overrun, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("too_much_shared")) {
    simt::launch(&shared_overrun, {1}, kThreads, two - 16, nullptr, y);
  } else if (is("uninitialised")) {
    simt::launch(&uninitialised, {1}, kThreads, 0, nullptr, y);
  } else if (is("misaligned")) {
    simt::launch(&misaligned, {1}, kThreads, 0, nullptr, y);
  } else if (is("copy_too_early")) {
    simt::launch(&copied<1>, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("copy_never_waited_for")) {
    simt::launch(&copied<2>, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("copy_of_another")) {
    simt::launch(&copied_by_another, {1}, kThreads, 0, nullptr, x, y);
  } else if (is("divergent")) {
    simt::launch(&divergent, {1}, kThreads, 0, nullptr, y);
  } else if (is("absent")) {
    simt::launch(&absent, {1}, kThreads, 0, nullptr, y);
  } else if (is("absent_from_warp")) {
    simt::launch(&absent_from_warp, {1}, kThreads, 0, nullptr, y);
  } else if (is("divergent_meeting")) {
    simt::launch(&divergent_meeting, {1}, kThreads, 0, nullptr, y);
  } else {
    known = false;
  }
  if (!known) {
    std::fprintf(stderr, "no fault named '%s'\n", name);
    return 2;
  }
  for (float v : out)
    if (v != v) {
      std::printf("a result is NaN\n");
      return 3;
    }
  std::printf("nothing found\n");
  return 0;
}

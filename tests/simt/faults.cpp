// Deliberately wrong kernels, one per run: `simt_faults NAME`. The twin or a sanitizer must catch each of them
// (test_faults.py says which one, and with what words), and its message must contain the lines marked `names NAME`, here
// and in the headers of faults. The name `right` does the same work correctly and must pass everywhere.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "cluster_faults.h"
#include "cuda/product.cuh"
#include "order_faults.h"

namespace {

constexpr int kThreads = 64;

// A block reduction, with or without its barrier.
template <bool Barrier>
SIMT_KERNEL(kThreads)
void reduce(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, sums, kThreads);
  simt::put(sums + simt::thread(), simt::load(in + simt::thread()));  // names missing_barrier
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (Barrier) simt::barrier();
    if (simt::thread() >= half) continue;
    const float other = simt::get(sums + simt::thread() + half);  // names missing_barrier
    simt::put(sums + simt::thread(), simt::get(sums + simt::thread()) + other);
  }
  if (simt::thread() == 0) simt::store(out, simt::get(sums));
}

// The last thread at a barrier continues first; its later writes are not ordered before the reads of the others.
SIMT_KERNEL(kThreads) void written_after_a_barrier(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::put(values + simt::thread(), 1.0f);
  simt::barrier();
  if (simt::thread() == kThreads - 1) simt::put(values, 2.0f);  // names written_after_a_barrier
  const float v = simt::get(values);                            // names written_after_a_barrier
  simt::barrier();
  simt::store(out + simt::thread(), v);
}

// Two blocks of one launch, without any order between them.
SIMT_KERNEL(kThreads) void blocks_collide(float* out) {
  simt::wait_for_earlier_launches();
  if (simt::thread() == 0) simt::store(out, float(simt::block().x));  // names blocks_collide
}

// The first block passes its values to the other by a flag. Before: all of its threads have written when it sets the
// flag. Behind: all threads of the other block wait for the flag.
template <bool Before, bool Behind>
SIMT_KERNEL(kThreads)
void publish(float* values, int* numbers, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(int, counter, 1);
  if (simt::thread() == 0) simt::put(counter, simt::next_index(numbers));
  simt::barrier();
  if (simt::get(counter) == 0) {
    simt::store(values + simt::thread(), 1.0f);  // names flag_before_the_barrier names flag_seen_by_one
    if (Before) simt::barrier();
    if (simt::thread() == 0) simt::store_release(numbers + 1, 1);
    return;
  }
  if (simt::thread() == 0) simt::wait_while(numbers + 1, 0);
  if (Behind) simt::barrier();
  const float* from = values + (simt::thread() + 1) % kThreads;
  simt::store(out + simt::thread(), simt::load(from));  // names flag_before_the_barrier names flag_seen_by_one
}

// The last block adds the values of all blocks, in their order, and resets the counter (csrc/cuda/join.cuh). Before:
// all threads of a block have written when it arrives. Ordered: writes before an arrival are visible behind a later
// one. Reset: the counter is as it was before the launch.
template <bool Before, bool Ordered, bool Reset>
SIMT_KERNEL(kThreads)
void join_blocks(float* parts, int* counter, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(int, before, 1);
  const int blocks = static_cast<int>(simt::grid().x), block = static_cast<int>(simt::block().x);
  float* const mine = parts + block * kThreads + simt::thread();
  simt::store(mine, 1.0f);  // names arrived_before_the_barrier names arrival_orders_nothing
  if (Before) simt::barrier();
  if (simt::thread() == 0) simt::put(before, Ordered ? simt::arrive(counter) : simt::next_index(counter));
  simt::barrier();
  if (simt::get(before) != blocks - 1) return;
  float sum = 0;
  for (int b = 0; b < blocks; ++b) {
    const float* from = parts + b * kThreads + (simt::thread() + 1) % kThreads;
    sum += simt::load(from);  // names arrived_before_the_barrier names arrival_orders_nothing
  }
  simt::store(out + simt::thread(), sum);
  if (Reset && simt::thread() == 0) *counter = 0;
}

// Lanes exchange values through memory. A shuffle between does not order them; a warp barrier does.
template <bool WarpBarrier>
SIMT_KERNEL(32)
void exchange(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, 32);
  simt::put(values + simt::lane(), simt::load(in + simt::lane()));  // names shuffle_orders_nothing
  WarpBarrier ? simt::warp_barrier() : static_cast<void>(simt::shuffle(1, 0));
  simt::store(out + simt::lane(), simt::get(values + (simt::lane() ^ 1)));  // names shuffle_orders_nothing
}

SIMT_KERNEL(kThreads) void shared_overrun(float* out) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  float* const first = shared.take<float>(kThreads);
  float* const second = shared.take<float>(kThreads);  // names too_much_shared
  simt::put(first + simt::thread() + 1, 1.0f);         // the last thread reaches beyond `first`; names shared_overrun
  simt::put(second + simt::thread(), 2.0f);
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(second + simt::thread()));
}

// The same accesses inside the arrays, in several blocks.
SIMT_KERNEL(kThreads) void shared_right(float* out) {
  simt::wait_for_earlier_launches();
  simt::Shared shared;
  float* const first = shared.take<float>(kThreads);
  float* const second = shared.take<float>(kThreads);
  simt::put(first + simt::thread(), 1.0f);
  simt::put(second + simt::thread(), 2.0f);
  simt::barrier();
  const float sum = simt::get(first + simt::thread()) + simt::get(second + (simt::thread() + 1) % kThreads);
  if (simt::block().x == 0) simt::store(out + simt::thread(), sum);
}

SIMT_KERNEL(kThreads) void static_overrun(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::put(values + simt::thread() + 1, 1.0f);  // names static_overrun
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) void global_overrun(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread(), simt::load(in + simt::thread() + 1));  // names global_overrun
}

SIMT_KERNEL(kThreads) void global_write_overrun(float* out) {
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread() + 1, 1.0f);  // names global_write_overrun
}

// Reads through a Source, here of 16-bit floats.
SIMT_KERNEL(kThreads) void source_overrun(ssdd::cuda::Source<float> in, float* out) {
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread(), in(0, simt::thread() + 1));  // names source_overrun
}
SIMT_KERNEL(kThreads) void source_race(ssdd::cuda::Source<float> in, float* out) {
  simt::wait_for_earlier_launches();
  if (simt::block().x == 0)
    simt::store(out + simt::thread(), 1.0f);  // names source_race
  else if (in(0, simt::thread()) > 2)         // names source_race
    simt::store(out + simt::thread(), 2.0f);
}

SIMT_KERNEL(kThreads) void vector_overrun(float* out) {
  simt::wait_for_earlier_launches();
  const simt::Vector<float, 4> v{{1, 2, 3, 4}};
  if (simt::thread() == 0) simt::store_vector<4>(out + kThreads, v);  // names vector_overrun
}

SIMT_KERNEL(kThreads) void copy_beyond_the_source(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread() + 1, 4);  // names copy_beyond_the_source
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) void copy_beyond_the_target(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread() + 1, in + simt::thread(), 4);  // names copy_beyond_the_target
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) void index_overflow(float* out) {
  simt::wait_for_earlier_launches();
  const int row = 46341 + simt::thread();
  const int place = row * 46341;  // names index_overflow
  simt::store(out + simt::thread(), place > 0 ? 1.0f : 0.0f);
}

SIMT_KERNEL(kThreads) void uninitialised(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  if (simt::thread() > 0) simt::put(values + simt::thread(), 1.0f);
  simt::barrier();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

SIMT_KERNEL(kThreads) void misaligned(float* out) {
  simt::wait_for_earlier_launches();
  simt::Vector<float, 4> v{{1, 2, 3, 4}};
  if (simt::thread() == 0) simt::store_vector<4>(out + 1, v);  // names misaligned
}

SIMT_KERNEL(kThreads) void misaligned_load(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads + 4);
  simt::put(values + simt::thread(), 1.0f);
  simt::barrier();
  if (simt::thread() == 0) simt::store(out, simt::get_vector<4>(values + 2).v[0]);  // names misaligned_load
}

SIMT_KERNEL(kThreads) void misaligned_copy(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  if (simt::thread() == 0) simt::copy_async<16>(values, in + 1, 16);  // names misaligned_copy
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values));
}

// Wait: 0 is correct, 1 waits one group too early, 2 never waits.
template <int Wait>
SIMT_KERNEL(kThreads)
void copied(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);
  simt::copy_commit();
  if (Wait == 0) simt::copy_wait<0>();
  if (Wait == 1) simt::copy_wait<1>();
  const float early = simt::get(values + simt::thread());
  if (Wait == 1) simt::copy_wait<0>();
  simt::store(out + simt::thread(), early);
}

// A copy of another thread is visible after a barrier behind the wait, not after the wait alone.
SIMT_KERNEL(kThreads) void copied_by_another(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values + (simt::thread() + 1) % kThreads));  // names copy_of_another
}

// A stage of a pipeline is filled again while a neighbour may still read it.
SIMT_KERNEL(kThreads) void copy_into_what_is_read(const float* in, float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  float sum = 0;
  for (int k = 0; k < 2; ++k) {
    // Not named: the report has this line or that of the wait, where the copy lands.
    simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);
    simt::copy_commit();
    simt::copy_wait<0>();
    simt::barrier();
    sum += simt::get(values + (simt::thread() + 1) % kThreads);  // names copy_into_what_is_read
  }
  simt::store(out + simt::thread(), sum);
}

SIMT_KERNEL(kThreads) void divergent(float* out) {
  simt::wait_for_earlier_launches();
  if (simt::thread() < 32)
    simt::barrier();  // names divergent
  else
    simt::barrier();  // names divergent
  simt::store(out + simt::thread(), 0.0f);
}

SIMT_KERNEL(kThreads) void absent(float* out) {
  simt::wait_for_earlier_launches();
  if (simt::thread() == 40) return;
  simt::barrier();  // names absent
  simt::store(out + simt::thread(), 0.0f);
}

SIMT_KERNEL(kThreads) void absent_from_warp(float* out) {
  simt::wait_for_earlier_launches();
  if (simt::thread() == 40) return;
  simt::store(out + simt::thread(), simt::shuffle(1.0f, 0));  // names absent_from_warp
}

SIMT_KERNEL(kThreads) void divergent_collective(float* out) {
  simt::wait_for_earlier_launches();
  float v;
  if (simt::lane() < 16)
    v = simt::shuffle(1.0f, 0);  // names divergent_collective
  else
    v = simt::shuffle(2.0f, 0);  // names divergent_collective
  simt::store(out + simt::thread(), v);
}

// Multiplies rows of a [16, k] with rows of b [8, k] on the matrix unit. Products: 1 rounds the operands to TF32, 3
// splits each into two. Promote: the unit truncates its sums toward zero, so they must not stay in it for long.
template <int Products, bool Promote>
SIMT_KERNEL(32)
void multiply(const float* a, const float* b, int k, float* out) {
  simt::wait_for_earlier_launches();
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float sums[4] = {}, fresh[4] = {};
  for (int k0 = 0; k0 < k; k0 += 8) {
    uint32_t big_a[4], small_a[4], big_b[2], small_b[2];
    for (int e = 0; e < 4; ++e) {
      const float x = simt::load(a + (g + e % 2 * 8) * k + k0 + t + e / 2 * 4);
      big_a[e] = simt::to_tf32(x);
      small_a[e] = simt::to_bits(x - simt::from_bits(big_a[e]));
    }
    for (int e = 0; e < 2; ++e) {
      const float x = simt::load(b + g * k + k0 + t + e * 4);
      big_b[e] = simt::to_tf32(x);
      small_b[e] = simt::to_bits(x - simt::from_bits(big_b[e]));
    }
    if (Products == 3) simt::mma_tf32(fresh, small_a, big_b), simt::mma_tf32(fresh, big_a, small_b);
    simt::mma_tf32(fresh, big_a, big_b);
    if (Promote && k0 % 16 == 8)
      for (int e = 0; e < 4; ++e) {
        sums[e] += fresh[e];
        fresh[e] = 0;
      }
  }
  for (int e = 0; e < 4; ++e) simt::store(out + (g + e / 2 * 8) * 8 + 2 * t + e % 2, sums[e] + fresh[e]);
}

// Prints how much less exact the product is than the same sums in fp32, and fails if that is more than twice.
template <int Products, bool Promote>
int product() {
  const int k = 1024;
  std::vector<float> a(16 * k), b(8 * k), out(16 * 8);
  uint32_t state = 1;
  for (auto* v : {&a, &b})
    for (float& x : *v) x = float((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
  simt::launch(&multiply<Products, Promote>, {1}, 32, 0, nullptr, a.data(), b.data(), k, out.data());
  double ours = 0, plain = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double exact = 0;
      float sum = 0;
      for (int e = 0; e < k; ++e) {
        exact += double(a[size_t(i * k + e)]) * double(b[size_t(j * k + e)]);
        sum = std::fma(a[size_t(i * k + e)], b[size_t(j * k + e)], sum);
      }
      ours += std::pow(double(out[size_t(i * 8 + j)]) - exact, 2);
      plain += std::pow(double(sum) - exact, 2);
    }
  const double times = std::sqrt(ours / plain);
  if (times <= 2) return 0;
  std::printf("%.1f times the error of fp32\n", times);
  return 4;
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  std::vector<float> in(kThreads, 1.0f), out(kThreads, 0.0f);
  const float* x = in.data();
  float* y = out.data();
  constexpr int kTwo = 2 * kThreads * int(sizeof(float));
  const auto run = [&](void (*kernel)(float*), int shared = 0, int threads = kThreads, unsigned blocks = 1) {
    simt::launch(kernel, {blocks}, threads, shared, nullptr, y);
    return 0;
  };
  const auto run_in = [&](void (*kernel)(const float*, float*), int threads = kThreads) {
    simt::launch(kernel, {1}, threads, 0, nullptr, x, y);
    return 0;
  };
  const auto run_two = [&](void (*kernel)(float*, int*, float*)) {
    std::vector<float> values(kThreads);
    std::vector<int> numbers(2);
    simt::launch(kernel, {2}, kThreads, 0, nullptr, values.data(), numbers.data(), y);
    return 0;
  };
  // Runs twice; the second output starts as NaN.
  const auto run_joined = [&](void (*kernel)(float*, int*, float*)) {
    constexpr int kBlocks = 8;
    std::vector<float> parts(kBlocks * kThreads);
    std::vector<int> counter(1);
    for (int time = 0; time < 2; ++time) {
      std::fill(out.begin(), out.end(), NAN);
      simt::launch(kernel, {kBlocks}, kThreads, 0, nullptr, parts.data(), counter.data(), y);
    }
    return y[0] == kBlocks || y[0] != y[0] ? 0 : 1;
  };
  std::vector<uint16_t> bits(kThreads);
  const auto halves = [&] { return reinterpret_cast<const float*>(bits.data()); };
  using Features = ssdd::cuda::Source<float>;
  const auto source = [&](void (*kernel)(Features, float*), const float* from, ssdd::Element element, unsigned blocks) {
    const Features in(ssdd::Batch<const float>{from, 0, kThreads, 1}, element);
    simt::launch(kernel, {blocks}, kThreads, 0, nullptr, in, y);
    return 0;
  };
  const auto run_cluster = [&](void (*kernel)(float*), int cluster = cluster_faults::kBlocks, unsigned blocks = 4) {
    simt::launch_clusters(kernel, {blocks}, cluster, kThreads, 0, nullptr, y);
    return 0;
  };
  const auto right = [&] {
    run_cluster(&cluster_faults::read_the_other<true, false>);
    if (y[0] != 1) return 1;
    for (auto* kernel : {&reduce<true>, &copied<0>}) run_in(kernel);
    run_in(&exchange<true>, 32);
    run(&shared_right, kTwo, kThreads, 3);
    run_two(&publish<true, true>);
    if (run_joined(&join_blocks<true, true, true>)) return 1;
    run_in(&reduce<true>);
    return y[0] == kThreads ? product<3, true>() : 1;
  };
  const std::pair<const char*, std::function<int()>> table[] = {
      {"right", right},
      {"missing_barrier", [&] { return run_in(&reduce<false>); }},
      {"written_after_a_barrier", [&] { return run(&written_after_a_barrier); }},
      {"blocks_collide", [&] { return run(&blocks_collide, 0, kThreads, 2); }},
      {"flag_before_the_barrier", [&] { return run_two(&publish<false, true>); }},
      {"flag_seen_by_one", [&] { return run_two(&publish<true, false>); }},
      {"arrived_before_the_barrier", [&] { return run_joined(&join_blocks<false, true, true>); }},
      {"arrival_orders_nothing", [&] { return run_joined(&join_blocks<true, false, true>); }},
      {"counter_not_reset", [&] { return run_joined(&join_blocks<true, true, false>); }},
      {"shuffle_orders_nothing", [&] { return run_in(&exchange<false>, 32); }},
      {"copy_of_another", [&] { return run_in(&copied_by_another); }},
      {"copy_into_what_is_read", [&] { return run_in(&copy_into_what_is_read); }},
      {"shared_overrun", [&] { return run(&shared_overrun, kTwo); }},
      {"static_overrun", [&] { return run(&static_overrun); }},
      {"global_overrun", [&] { return run_in(&global_overrun); }},
      {"global_write_overrun", [&] { return run(&global_write_overrun); }},
      {"source_overrun", [&] { return source(&source_overrun, halves(), ssdd::Element::bf16, 1); }},
      {"source_race", [&] { return source(&source_race, y, ssdd::Element::own, 2); }},
      {"vector_overrun", [&] { return run(&vector_overrun); }},
      {"copy_beyond_the_source", [&] { return run_in(&copy_beyond_the_source); }},
      {"copy_beyond_the_target", [&] { return run_in(&copy_beyond_the_target); }},
      {"index_overflow", [&] { return run(&index_overflow); }},
      {"too_much_shared", [&] { return run(&shared_overrun, kTwo - 16); }},
      {"more_shared_than_there_is", [&] { return run(&uninitialised, 228 << 10); }},
      {"more_threads_than_there_are", [&] { return run(&uninitialised, 0, 1056); }},
      {"uninitialised", [&] { return run(&uninitialised); }},
      {"misaligned", [&] { return run(&misaligned); }},
      {"misaligned_load", [&] { return run(&misaligned_load); }},
      {"misaligned_copy", [&] { return run_in(&misaligned_copy); }},
      {"copy_too_early", [&] { return run_in(&copied<1>); }},
      {"copy_never_waited_for", [&] { return run_in(&copied<2>); }},
      {"divergent", [&] { return run(&divergent); }},
      {"absent", [&] { return run(&absent); }},
      {"absent_from_warp", [&] { return run(&absent_from_warp); }},
      {"divergent_collective", [&] { return run(&divergent_collective); }},
      {"no_cluster_barrier", [&] { return run_cluster(&cluster_faults::read_the_other<false, false>); }},
      {"written_behind_arrival", [&] { return run_cluster(&cluster_faults::read_the_other<true, true>); }},
      {"returned_too_early", [&] { return run_cluster(&cluster_faults::returned_too_early<0>); }},
      {"read_too_late", [&] { return run_cluster(&cluster_faults::returned_too_early<1>); }},
      {"read_before_the_start", [&] { return run_cluster(&cluster_faults::read_before_the_start); }},
      {"read_outside_the_cluster", [&] { return run_cluster(&cluster_faults::read_outside_the_cluster); }},
      {"arrived_twice", [&] { return run_cluster(&cluster_faults::arrived_twice); }},
      {"waited_without_arrival", [&] { return run_cluster(&cluster_faults::waited_without_arrival); }},
      {"absent_from_the_cluster", [&] { return run_cluster(&cluster_faults::absent_from_the_cluster); }},
      {"block_and_cluster_barriers", [&] { return run_cluster(&cluster_faults::block_and_cluster_barriers); }},
      {"part_of_a_cluster", [&] { return run_cluster(&cluster_faults::arrived_twice, 2, 3); }},
      {"larger_cluster_than_portable", [&] { return run_cluster(&cluster_faults::arrived_twice, 16, 16); }},
      {"loaded_before_the_wait", [&] { return run_in(&order_faults::loaded_before_the_wait); }},
      {"copied_before_the_wait", [&] { return run_in(&order_faults::copied_before_the_wait); }},
      {"arrived_before_the_wait", [&] { return run_two(&order_faults::arrived_before_the_wait); }},
      {"one_thread_waited", [&] { return run(&order_faults::one_thread_waited); }},
      {"returned_without_a_wait", [&] { return run(&order_faults::returned_without_a_wait); }},
      {"one_product_is_no_fp32", [&] { return product<1, true>(); }},
      {"sums_left_in_the_unit", [&] { return product<3, false>(); }},
  };
  for (const auto& [which, start] : table) {
    if (std::strcmp(name, which) != 0) continue;
    if (const int code = start()) return code;
    for (float v : out)
      if (v != v) {
        std::printf("a result is NaN\n");
        return 3;
      }
    std::printf("nothing found\n");
    return 0;
  }
  std::fprintf(stderr, "no fault named '%s'\n", name);
  return 2;
}

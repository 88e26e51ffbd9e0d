// Deliberately wrong kernels of clusters, for faults.cpp.
#pragma once
#include "cuda/product.cuh"

namespace cluster_faults {

constexpr int kThreads = 64, kBlocks = 2;

// Each block reads what the other one wrote. Behind: the barrier between is there. Early: the block arrives before it
// writes.
template <bool Behind, bool Early>
SIMT_KERNEL(kThreads)
void read_the_other(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  const int other = (simt::cluster_rank() + 1) % simt::cluster_size();
  simt::put(values + simt::thread(), 0.0f);
  simt::cluster_arrive();
  simt::cluster_wait();
  if (Early) simt::cluster_arrive();
  simt::put(values + simt::thread(), 1.0f);  // names no_cluster_barrier names written_behind_arrival
  if (Behind && !Early) simt::cluster_arrive();
  if (Behind) simt::cluster_wait();
  const float* const four = values + simt::thread() / 4 * 4;
  const auto v = simt::get_vector_from<4>(other, four);  // names no_cluster_barrier names written_behind_arrival
  simt::cluster_arrive();
  simt::cluster_wait();
  if (simt::block().x == 0) simt::store(out + simt::thread(), v.v[simt::thread() % 4]);
}

// Block Early returns while the other may still read its shared memory.
template <int Early>
SIMT_KERNEL(kThreads)
void returned_too_early(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(double, number, 1);
  if (simt::thread() == 0) *number = 1;
  simt::cluster_arrive();
  simt::cluster_wait();
  const double v = simt::get_from(1 - simt::cluster_rank(), number);  // names returned_too_early names read_too_late
  simt::cluster_arrive();
  if (simt::cluster_rank() != Early) simt::cluster_wait();
  if (simt::block().x == 0) simt::store(out + simt::thread(), static_cast<float>(v));
}

// The other block may not have started yet.
SIMT_KERNEL(kThreads) void read_before_the_start(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(double, number, 1);
  const double v = simt::get_from(1 - simt::cluster_rank(), number);  // names read_before_the_start
  simt::store(out + simt::thread(), static_cast<float>(v));
}

SIMT_KERNEL(kThreads) void read_outside_the_cluster(float* out) {
  simt::wait_for_earlier_launches();
  SIMT_SHARED(float, values, kThreads);
  simt::cluster_arrive();
  simt::cluster_wait();
  const auto v = simt::get_vector_from<4>(simt::cluster_size(), values);  // names read_outside_the_cluster
  simt::store(out + simt::thread(), v.v[0]);
}

SIMT_KERNEL(kThreads) void arrived_twice(float*) {
  simt::wait_for_earlier_launches();
  simt::cluster_arrive();
  simt::cluster_arrive();  // names arrived_twice
  simt::cluster_wait();
}

SIMT_KERNEL(kThreads) void waited_without_arrival(float*) {
  simt::wait_for_earlier_launches();
  simt::cluster_wait();  // names waited_without_arrival
}

SIMT_KERNEL(kThreads) void absent_from_the_cluster(float*) {
  simt::wait_for_earlier_launches();
  if (simt::cluster_rank() == 1 && simt::thread() == 40) return;
  simt::cluster_arrive();
  simt::cluster_wait();  // names absent_from_the_cluster
}

// One block waits for the other at a barrier that the other never reaches.
SIMT_KERNEL(kThreads) void block_and_cluster_barriers(float*) {
  simt::wait_for_earlier_launches();
  if (simt::cluster_rank() == 0) simt::cluster_arrive();
  if (simt::cluster_rank() == 0) simt::cluster_wait();
  if (simt::cluster_rank() == 1 && simt::thread() > 0) simt::barrier();  // names block_and_cluster_barriers
}

}  // namespace cluster_faults

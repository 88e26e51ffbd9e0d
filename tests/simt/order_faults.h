// Kernels that do not wait for earlier launches as they must, for faults.cpp.
#pragma once
#include "cuda/product.cuh"

namespace order_faults {

constexpr int kThreads = 64;

SIMT_KERNEL(kThreads) void loaded_before_the_wait(const float* in, float* out) {
  const float v = simt::load(in + simt::thread());  // names loaded_before_the_wait
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread(), v);
}

// The copy lands behind the wait, but may read at any time.
SIMT_KERNEL(kThreads) void copied_before_the_wait(const float* in, float* out) {
  SIMT_SHARED(float, values, kThreads);
  simt::copy_async<4>(values + simt::thread(), in + simt::thread(), 4);  // names copied_before_the_wait
  simt::copy_commit();
  simt::wait_for_earlier_launches();
  simt::copy_wait<0>();
  simt::store(out + simt::thread(), simt::get(values + simt::thread()));
}

// An earlier launch may still use the counter.
SIMT_KERNEL(kThreads) void arrived_before_the_wait(float*, int* numbers, float* out) {
  if (simt::thread() == 0) simt::arrive(numbers);  // names arrived_before_the_wait
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread(), 1.0f);
}

// The wait of one thread does not order the accesses of another.
SIMT_KERNEL(kThreads) void one_thread_waited(float* out) {
  if (simt::thread() == 0) simt::wait_for_earlier_launches();
  simt::barrier();
  simt::store(out + simt::thread(), 1.0f);  // names one_thread_waited
}

// The next kernel takes the end of this one for the end of all before it.
SIMT_KERNEL(kThreads) void returned_without_a_wait(float* out) {
  if (simt::thread() >= 32) return;
  simt::wait_for_earlier_launches();
  simt::store(out + simt::thread(), 1.0f);
}

}  // namespace order_faults

#include "workers.h"

#include <pthread.h>

#include <atomic>

namespace ssdd::cpu {
namespace {

std::atomic<bool> forked{false};

struct AtFork {
  AtFork() {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
  }
} at_fork;

}  // namespace

bool may_start_threads() { return !forked; }

}  // namespace ssdd::cpu

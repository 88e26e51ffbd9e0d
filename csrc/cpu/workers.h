// Assigns the problems of a batch to threads: one problem per thread, or all threads on one problem.
#pragma once
#include <omp.h>

#include <cstdint>

#include "product.h"

namespace ssdd::cpu {

// False in a child of fork(): GNU's OpenMP cannot start threads there, so the core runs on the calling thread.
bool may_start_threads();

// With fewer multiply-adds than this, a problem is not worth the start of a second thread.
constexpr double kWorthATeam = 3e5;
// The multiply-adds that each barrier adds to that limit. A barrier takes less than a microsecond if every thread has a
// core of its own. If another process uses one of the cores, a barrier lasts until the next time slice, so short
// problems run on one thread.
constexpr double kBarrier = 2e5;
// With more multiply-adds than this, a problem keeps all threads busy, and the batch is solved one problem at a time.
constexpr double kFillsTheTeam = 2e9;

// Runs f() on the whole team. If its multiply-adds cost less than the barriers inside it, rank 0 runs it alone, with
// `team` set to a team of one meanwhile. Returns true if it ran alone; that case ends with a barrier.
template <class F>
bool alone_if_small(Team& team, double multiply_adds, F f) {
  if (team.size == 1 || multiply_adds >= kWorthATeam) {
    f();
    return false;
  }
  const Team all = team;
  if (all.rank == 0) {
    team = Team{};
    f();
    team = all;
  }
  team.barrier();
  return true;
}

struct Workers {
  int count = 1;      // problems in flight
  int team_size = 1;  // threads per problem; one of the two numbers is 1

  Workers(int64_t batch, double multiply_adds, int threads, int barriers) {
    if (threads <= 1 || !may_start_threads()) return;
    if (batch >= threads && multiply_adds < kFillsTheTeam)
      count = static_cast<int>(batch < threads ? batch : threads);
    else if (multiply_adds >= kWorthATeam + barriers * kBarrier)
      team_size = threads;
    else if (batch > 1 && multiply_adds * static_cast<double>(batch) >= kWorthATeam)
      count = static_cast<int>(batch < threads ? batch : threads);
  }

  // Calls solve(team, problem, worker) for every problem. It must not throw, since the other threads would never leave
  // their barrier.
  template <class Solve>
  void run(int64_t batch, Solve solve) const {
    if (count > 1) {
      // A static schedule costs nothing, and the problems of a batch are alike.
#pragma omp parallel num_threads(count)
      {
        const Team all{omp_get_thread_num(), omp_get_num_threads()};
        int64_t begin, end;
        all.share(batch, 1, &begin, &end);
        for (int64_t b = begin; b < end; ++b) solve(Team{}, b, all.rank);
      }
    } else if (team_size > 1) {
#pragma omp parallel num_threads(team_size)
      {
        const Team team{omp_get_thread_num(), omp_get_num_threads()};
        for (int64_t b = 0; b < batch; ++b) {
          solve(team, b, 0);
          team.barrier();
        }
      }
    } else {
      for (int64_t b = 0; b < batch; ++b) solve(Team{}, b, 0);
    }
  }
};

}  // namespace ssdd::cpu

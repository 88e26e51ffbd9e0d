// How the problems of a batch meet the threads: many problems over the threads, or all threads on one problem.
#pragma once
#include <omp.h>

#include <cstdint>

#include "product.h"

namespace ssdd::cpu {

// False in a child of fork(): GNU's OpenMP cannot start threads there, so the core stays on the calling one.
bool may_start_threads();

// Below this many multiply-adds a problem is not worth the start of a second thread.
constexpr double kWorthATeam = 3e5;
// And what each barrier on the way adds to that. One takes less than a microsecond where every thread has a core of its
// own; where another process has one of them, a barrier waits for a time slice, so short problems stay on one thread.
constexpr double kBarrier = 2e5;
// Above this many a problem keeps all threads busy by itself, and a batch is solved one problem at a time.
constexpr double kFillsTheTeam = 2e9;

// f() on the whole team, or, where its multiply-adds cost less than the barriers inside it, by rank 0 alone, with
// `team` a team of one meanwhile. Returns whether it was alone; ends with a barrier then.
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
  int team_size = 1;  // threads on each; one of the two is 1

  Workers(int64_t batch, double multiply_adds, int threads, int barriers) {
    if (threads <= 1 || !may_start_threads()) return;
    if (batch >= threads && multiply_adds < kFillsTheTeam)
      count = static_cast<int>(batch < threads ? batch : threads);
    else if (multiply_adds >= kWorthATeam + barriers * kBarrier)
      team_size = threads;
    else if (batch > 1 && multiply_adds * static_cast<double>(batch) >= kWorthATeam)
      count = static_cast<int>(batch < threads ? batch : threads);
  }

  // solve(team, problem, worker) for every problem; it must not throw (the others would wait for ever).
  template <class Solve>
  void run(int64_t batch, Solve solve) const {
    if (count > 1) {
      // Static shares: scheduling costs nothing, and problems of one batch are alike.
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

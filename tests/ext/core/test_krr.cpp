// krr_forward() and krr_backward(): every plan, kernel, ridge and combination of wanted gradients.
#include "krr_run.h"

using namespace test;

TEST(krr_sizes) {
  bool turn = false;  // every two of s, q, d and c meet
  for (int64_t s : {1, 8, 33})
    for (int64_t d : {1, 5, 40}) {
      everywhere({1, s, 1, d, turn ? 1 : 11}, 1);
      everywhere({1, s, 26, d, turn ? 11 : 1}, 1);
      turn = !turn;
    }
  everywhere({1, 101, 70, 65, 30});  // a team of threads, two diagonal blocks
}

TEST(krr_ridges_and_bias) {
  for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
    for (bool detach : {false, true})
      for (double bias : {0.0, 1.0})
        for (bool tensor : {false, true}) {
          Case c{2, 14, 9, 6, 3};
          c.ridge = ridge;
          c.detach = detach;
          c.bias = bias;
          c.tensor = tensor;
          everywhere(c, 1);
        }
}

TEST(krr_primal_with_a_bias_of_zero) {
  // Its gradient is wanted (a tensor that happens to be 0), so it has its row and column.
  Case c{2, 14, 9, 6, 3, KernelKind::linear, Plan::primal, 0.0};
  c.border = true;
  for (bool tensor : {false, true}) {
    c.tensor = tensor;
    run<float>(c, 2);
    run<double>(c, 2);
  }
}

TEST(krr_layouts) {
  for (Layout x : kLayouts)
    for (Layout y : kLayouts)
      for (bool loss : {false, true}) {
        if (x != Layout::dense && y != Layout::dense && x != y) continue;  // nothing reads both
        Case c{3, 11, 8, 7, 4};
        c.x = x;
        c.y = y;
        c.loss = loss;
        everywhere(c, 1);
      }
}

TEST(krr_batches) {
  for (int64_t batch : {0, 2, 25}) everywhere({batch, 12, 15, 10, 3});
  everywhere({3, 60, 50, 40, 8});  // the batch over the threads
}

TEST(krr_chunks_of_queries) {
  for (int64_t chunk : {1, 5, 16, 100})
    for (bool keep : {false, true}) {
      Case c{2, 13, 16, 9, 4};
      c.chunk = chunk;
      c.keep = keep;
      for (bool loss : {false, true}) {
        c.loss = loss;
        everywhere(c);
      }
    }
}

TEST(krr_clusters_far_apart) {
  for (double far : {1e3, 1e5})
    for (int64_t d : {1, 5, 40, 70})
      for (int64_t s : {2, 33}) {
        Case c{3, s, 26, d, 4, KernelKind::rbf};
        c.far = far;
        c.tensor = s == 33;
        c.chunk = s == 33 ? 10 : 0;
        c.x = s == 33 ? Layout::transposed : Layout::dense;
        run<float>(c, 2);
        run<double>(c, 1);
      }
  Case c{1, 101, 150, 130, 8, KernelKind::rbf};  // a team of threads, many tiles
  c.far = 1e4;
  run<float>(c, 2);
}

TEST(krr_kernel_functions) {
  for (const Case& sizes : {Case{2, 13, 16, 9, 4}, Case{1, 101, 70, 65, 8}})
    for (const Kernel& kernel : kernel_functions(sizes.d)) {
      // Each meets one row per team: all kept or recomputed in chunks, and either ridge whose trace has a gradient.
      static int turn = 0;
      Case c = sizes;
      c.kernel = kernel.kind;
      c.function = kernel;
      c.keep = ++turn % 2;
      c.chunk = c.keep ? 0 : 5 + c.q / 2;
      c.ridge = turn % 4 < 2 ? RidgeKind::trace : RidgeKind::mean_trace;
      c.tensor = turn % 4 == 1;
      if (!ssdd::of_norms(c.kernel)) run<float>(c, 2);
      c.always = c.d == 9;
      run<double>(c, 2);
      c.always = false;
      c.far = c.d == 9 && ssdd::of_distance(c.kernel) ? 1e3 : 0;
      if (c.far > 0) run<float>(c, 1);
    }
}

TEST(krr_wanted_gradients) {
  for (Plan forward : {Plan::dense, Plan::primal})
    for (KernelKind kernel : {KernelKind::linear, KernelKind::rbf}) {
      if (forward == Plan::primal && kernel == KernelKind::rbf) continue;
      Case c{2, 12, 10, 7, 3, kernel, forward};
      Run<double> r(c);
      r.forward();
      for (Plan plan : backward_plans(c))
        for (int wanted = 0; wanted <= kAll; ++wanted)
          if (in_sample()) r.check_backward(plan, wanted);
    }
}

TEST(krr_without_queries) {
  Case c{2, 9, 0, 5, 3};
  c.loss = false;
  c.always = true;
  everywhere(c);
}

TEST(krr_jitter_is_unused_where_all_is_well) {
  Case c{3, 20, 9, 8, 3};
  c.on_failure = OnFailure::jitter;
  everywhere(c);
  everywhere(c);  // the other half fused
}

TEST(krr_bad_problems_stay_alone) {
  // The second problem has a ridge out of range, the third a NaN among its points.
  for (Plan forward : {Plan::dense, Plan::low_rank, Plan::primal}) {
    Case c{4, 6, 5, 3, 2, KernelKind::linear, forward};
    c.tensor = true;
    c.loss = false;
    c.fused = forward == Plan::low_rank;
    Run<float> r(c);
    r.hypers->memory[size_t(r.hypers->hyper.bs) + 2] = -1;
    r.x_s_in->memory[size_t(2 * c.s * c.d)] = std::numeric_limits<float>::quiet_NaN();
    r.forward();
    CHECK(r.status[0] == 0 && r.status[3] == 0, plan_name(forward) << ": a neighbour failed");
    CHECK(r.status[1] == ssdd::kBadParameter && r.status[2] == 1, plan_name(forward)
                                                                      << ": " << r.status[1] << " " << r.status[2]);
    std::vector<Matrix> e{random(5, 2), random(5, 2), random(5, 2), random(5, 2)};
    const Input<float> e_in(e, Layout::dense);
    for (Plan plan : backward_plans(c)) {
      const auto gradients = r.backward(plan, e_in.view, false, kAll);
      for (int64_t b = 0; b < 4; ++b) {
        const bool bad = b == 1 || b == 2;
        const auto check = [&](const char* what, const std::vector<float>& v, int64_t rows, int64_t columns) {
          for (double x : problem(v, b, rows, columns).v)
            CHECK(std::isnan(x) == bad, plan_name(forward) << ", " << plan_name(plan) << ": " << what << " of " << b);
        };
        check("out", r.out, c.q, c.c);
        check("grad_x_s", gradients.x_s, c.s, c.d);
        check("grad_y_s", gradients.y_s, c.s, c.c);
        check("grad_x_q", gradients.x_q, c.q, c.d);
        check("grad_hyper", gradients.hyper, 1, 3);
      }
    }
  }
}

TEST(krr_equal_points_fail_or_get_jitter) {
  for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter})
    for (int which = 0; which < 4; ++which) {
      const KernelKind kernel = which % 2 ? KernelKind::rbf : KernelKind::linear;
      Case c{1, 2, 3, 1, 2, kernel};
      c.fused = which > 1;
      c.ridge = RidgeKind::absolute;
      c.tensor = true;
      c.loss = false;
      c.on_failure = on_failure;
      c.bias = 0;
      Run<double> r(c);
      for (double& x : r.x_s_in->memory) x = 1;
      r.hypers->memory[0] = 1;
      r.hypers->memory[size_t(r.hypers->hyper.count - 1)] = 0;
      r.forward();
      const bool rescued = on_failure == OnFailure::jitter;
      CHECK(r.status[0] == (rescued ? 0 : 2), name(kernel) << ": status " << r.status[0]);
      CHECK((r.jitter[0] > 0) == rescued, name(kernel) << ": jitter " << r.jitter[0]);
      for (double p : r.out) CHECK(std::isnan(p) != rescued, name(kernel) << ": prediction " << p);
    }
}

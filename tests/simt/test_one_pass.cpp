// The loss of a linear kernel by the kernels that read the queries once (one_pass.cuh), against the formula in fp64.
#include "cuda/one_pass.cuh"
#include "krr_run.h"
#include <simt.cuh>

using namespace test;

namespace {

Case sizes(int64_t batch, int64_t s, int64_t q, int64_t d, int64_t c, int64_t parts) {
  Case row{batch, s, q, d, c};
  row.forward = Plan::low_rank;
  row.parts = parts;
  row.tensor = s % 2;
  row.ridge = s % 3 == 0 ? RidgeKind::absolute : s % 3 == 1 ? RidgeKind::trace : RidgeKind::mean_trace;
  return row;
}

// False on the smaller device for larger sizes, where a call takes the products of the plan.
bool fits(const Run<float>& r) { return ssdd::cuda::one_pass_fits(r.shape(Plan::low_rank)); }

void run(const Case& c) {
  if (!in_sample(c.s, c.always)) return;
  Run<float> r(c);
  const int64_t before = simt::launches();
  r.forward();
  const int64_t forward = simt::launches() - before;
  r.check_forward();
  r.check_backward(Plan::low_rank);
  const int64_t backward = (simt::launches() - before - forward) / 2;  // it runs twice
  const std::vector<float> loss = r.loss, parts = r.parts;
  r.forward();
  CHECK(r.loss == loss, r.where(0) << ": different bits the second time");
  if (!fits(r)) return;
  CHECK(r.parts == parts, r.where(0) << ": different parts the second time");
  // The scalars; above 32 support points also K_ss and its factor.
  const int64_t most = c.s <= ssdd::cuda::kOnePassFactors ? 2 : c.fused ? 3 : 4;
  CHECK(forward == most && backward == (c.keep ? 1 : backward),
        r.where(0) << ": " << forward << " and " << backward << " launches");
}

// The gradients of two runs, of which one has gradients that the other does not write.
void check_equal(const Run<float>::Gradients& got, const Run<float>::Gradients& want, int wanted, int64_t where) {
  const auto check = [&](int which, const std::vector<float>& one, const std::vector<float>& other) {
    const bool written = !one.empty() && !std::isnan(one[0]);
    CHECK(written == bool(wanted & which), "wanted " << wanted << " of " << where << ": gradient " << which);
    CHECK(!written || one == other, "wanted " << wanted << " of " << where << ": other bits of gradient " << which);
  };
  check(kXs, got.x_s, want.x_s);
  check(kYs, got.y_s, want.y_s);
  check(kXq, got.x_q, want.x_q);
  check(kHyper, got.hyper, want.hyper);
}

}  // namespace

TEST(one_pass_few) {
  // Every number of support points; tiles that are full, partial, one or several per block; all widths of a group.
  constexpr int64_t d[] = {33, 40, 129, 600, 1}, c[] = {1, 5, 33, 10}, q[] = {1, 19, 70, 8};
  for (int64_t s = 1; s <= 32; ++s) {
    const int64_t queries = q[s % 4], most = (queries + 7) / 8;
    run(sizes(1 + s % 2, s, queries, std::max(s % 7 ? d[s % 5] : s, s), c[s / 2 % 4], std::min(most, 1 + s % 5)));
  }
  Case chunks = sizes(1, 20, 70, 600, 4, 2);  // of features
  chunks.always = true;
  run(chunks);
}

TEST(one_pass_many) {
  for (int64_t s : {33, 64, 100, 128})
    for (int64_t c : {1, 10, 32}) {
      Case row = sizes(2, s, c == 1 ? 37 : 7, 130 + c, c, 1);
      row.parts = c == 1 ? 2 : 1;
      row.fused = c == 10;
      run(row);
    }
}

TEST(one_pass_layouts) {
  for (int64_t s : {9, 40})
    for (Layout x : kLayouts)
      for (Layout y : {x, Layout::dense}) {
        if (x != y && x != Layout::padded) continue;
        Case c = sizes(3, s, 18, 44, 6, 2);
        c.x = x;
        c.y = y;
        run(c);
      }
}

TEST(one_pass_ridges) {
  for (int64_t s : {12, 36})
    for (RidgeKind ridge : {RidgeKind::absolute, RidgeKind::trace, RidgeKind::mean_trace})
      for (bool detach : {false, true})
        for (double bias : {0.0, 1.0}) {
          Case c = sizes(2, s, 9, 40, 3, 2);
          c.ridge = ridge;
          c.detach = detach;
          c.bias = bias;
          c.tensor = detach == (bias == 0);
          run(c);
        }
}

TEST(one_pass_without_a_backward) {
  // No parts are written; a backward that follows after all takes the products.
  for (int64_t s : {9, 40}) {
    Case c = sizes(2, s, 18, 44, 6, 2);
    c.keep = false;
    run(c);
  }
}

TEST(one_pass_many_problems) {
  run(sizes(140, 5, 9, 12, 2, 1));
  run(sizes(70, 33, 9, 34, 1, 2));
}

TEST(one_pass_wanted_gradients) {
  for (int64_t s : {9, 40}) {
    Case c = sizes(2, s, 18, 70, 6, 2);
    c.tensor = true;
    Run<float> r(c);
    r.forward();
    if (!fits(r)) continue;
    const ssdd::Batch<const float> e{r.out.data(), c.q * c.c, c.c, 1};
    const auto all = r.backward(Plan::low_rank, e, true, kAll);
    for (int wanted = 0; wanted <= kAll; ++wanted)
      if (in_sample()) check_equal(r.backward(Plan::low_rank, e, true, wanted), all, wanted, s);
  }
}

TEST(one_pass_bad_problems_stay_alone) {
  // The second problem has a ridge out of range, the third a NaN among its points.
  for (int64_t s : {6, 40}) {
    if (!in_sample(s, true)) continue;
    Case c = sizes(4, s, 19, 41, 2, 2);
    c.tensor = true;
    Run<float> r(c);
    r.hypers->memory[size_t(r.hypers->hyper.bs) + 2] = -1;
    r.x_s_in->memory[size_t(2 * c.s * c.d)] = std::numeric_limits<float>::quiet_NaN();
    r.forward();
    CHECK(r.status[0] == 0 && r.status[3] == 0, "a neighbour failed");
    CHECK(r.status[1] == ssdd::kBadParameter && r.status[2] == 1, r.status[1] << " " << r.status[2]);
    const auto gradients = r.backward(Plan::low_rank, {r.out.data(), c.q * c.c, c.c, 1}, true, kAll);
    for (int64_t b = 0; b < 4; ++b) {
      const bool bad = b == 1 || b == 2;
      const auto check = [&](const char* what, const std::vector<float>& v, int64_t rows, int64_t columns) {
        for (double x : problem(v, b, rows, columns).v) CHECK(std::isnan(x) == bad, "S=" << s << ": " << what << b);
      };
      check("loss of ", r.loss, 1, 1);
      check("out of ", r.out, c.q, c.c);
      check("coefficients of ", r.coef, c.s, c.c);
      check("lambda of ", {r.aux[1], r.aux[4], r.aux[7], r.aux[10]}, 1, 1);
      check("grad_x_s of ", gradients.x_s, c.s, c.d);
      check("grad_y_s of ", gradients.y_s, c.s, c.c);
      check("grad_x_q of ", gradients.x_q, c.q, c.d);
      check("grad_hyper of ", gradients.hyper, 1, 3);
    }
  }
}

TEST(one_pass_factor_is_that_of_other_plans) {
  // L below the diagonal and K_ss above it, and every pivot that fails.
  for (OnFailure on_failure : {OnFailure::nan, OnFailure::jitter})
    for (int64_t equal : {0, 2, 7}) {
      if (!in_sample(0, true)) continue;
      Case c = sizes(2, 9, 10, 20, 3, 2);
      c.ridge = RidgeKind::absolute;
      c.tensor = true;
      c.on_failure = on_failure;
      c.bias = 0;
      Run<float> r(c);
      if (equal) {  // of the first problem: one more than its points, by which no pivot is left
        float* const x = r.x_s_in->memory.data();
        for (int64_t i = 0; i < c.s; ++i)
          for (int64_t k = 0; k < c.d; ++k) x[i * c.d + k] = float(i == k || (i == equal && k == 0));
        for (int64_t k = 1; k < c.d; ++k) x[equal * c.d + k] = 0;
        r.hypers->memory[0] = 1;
        r.hypers->memory[2] = 0;
      }
      r.forward();
      const std::vector<float> factor = r.factor, jitter = r.jitter, aux = r.aux;
      const std::vector<int32_t> status = r.status;
      r.c.parts = 0;
      r.forward();
      const bool fails = equal && on_failure == OnFailure::nan;
      CHECK(status == r.status && status[0] == (fails ? equal + 1 : 0), "status " << status[0] << ", " << r.status[0]);
      for (int64_t b = 0; b < 2; ++b) {
        CHECK(error(problem(jitter, b, 1, 1), problem(r.jitter, b, 1, 1)) < 1e-5, "jitter " << jitter[size_t(b)]);
        if (fails && b == 0) {
          CHECK(std::isnan(aux[1]) && std::isnan(factor[0]) && std::isnan(factor[10]), "a failed factor");
          continue;
        }
        CHECK(error(problem(aux, b, 1, 3), problem(r.aux, b, 1, 3)) < 1e-5, "trace, lambda or jitter");
        const double off = error(problem(factor, b, c.s, c.s), problem(r.factor, b, c.s, c.s));
        CHECK(off < 2e-3, "the factor is off by " << off);
      }
    }
}

// The kernel functions of an angle (../angles.h): applied to a matrix of products x.z, and their slopes. In double only.
#pragma once
#include "../gram.h"
#include "product.cuh"
#include "scalars.cuh"

namespace ssdd::cuda {

// The function, the products x.z [batch, rows, columns], and the squared lengths of the points of both sides.
struct Angles {
  int64_t batch, rows, columns, features;
  KernelKind kind;
  int order;
  const double* scalars;
  const double* arguments;
  int64_t arguments_bs;
  const double* x;  // [rows]
  int64_t x_bs;
  const double* z;  // [columns]
  int64_t z_bs;
  bool square;  // x are the points z: those of the diagonal are one point
};

// out[b, i] = |x_i|^2; out with problems out_bs apart.
void squared_lengths(int64_t batch, int64_t rows, int64_t features, const Source<double>& x, double* out,
                     int64_t out_bs, simt::Stream stream);

// k[b, i, j] = f; may be in place.
void map_angles(const Angles& angles, double* k, int64_t k_bs, simt::Stream stream);

// Turns Kbar [batch, rows, columns] into G = Kbar df/d(x.z). row_sums[b, i] = sum_j Kbar df/d|x_i|^2, and
// z_bar[b, i, j] = Kbar df/d|z_j|^2. sum_ij Kbar df/dp of the hyper-parameters is added to totals [2, batch] (`add`: to
// what is there). Square: k_bar holds 2 Kbar_ss, both triangles. Its row sums contain the slopes in |z|^2 and on the
// diagonal those in x.z and the trace's part; G is 0 on the diagonal, and z_bar is not written.
struct AngleSlopes {
  Angles of;
  int64_t batch, rows;
  double* k_bar;
  int64_t bar_bs;
  double* z_bar;
  int64_t z_bar_bs;
  double *row_sums, *row_parts;  // [batch, rows], [2, batch, rows]
  int* counters;                 // [batch], all 0, before and after
  bool add;
  double* totals;
};
void slope_angles(const AngleSlopes& slopes, simt::Stream stream);

}  // namespace ssdd::cuda

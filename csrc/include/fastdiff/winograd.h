// Winograd's minimal filtering F(4x4, 3x3) (Winograd 1980; Lavin & Gray 2016, Section 4): the three transforms, on
// vectors. The points are 0, +-1/sqrt(2), +-sqrt(2) and infinity, whose rounding errors are about a tenth of those of
// the usual 0, +-1, +-2. For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/conv2d.h"
#include "fastdiff/tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr float kNear = 0.70710678118654752f, kFar = 1.41421356237309505f;  // the points besides 0 and infinity

// Six numbers of the input, `step` apart: their values at the six points.
template <int step>
inline void transform_input_line(const F* d, F* t) {
  const F minus_half = F::broadcast(-0.5f), minus_two = F::broadcast(-2.0f), mean = F::broadcast(-2.5f);
  const F near = F::broadcast(kNear), minus_near = F::broadcast(-kNear), far = F::broadcast(kFar),
          minus_far = F::broadcast(-kFar);
  t[0] = fma(mean, d[2 * step], d[0] + d[4 * step]);
  t[5] = fma(mean, d[3 * step], d[step] + d[5 * step]);
  const F even_near = fma(minus_two, d[2 * step], d[4 * step]), odd_near = fma(minus_two, d[step], d[3 * step]);
  t[1] = fma(near, odd_near, even_near);
  t[2] = fma(minus_near, odd_near, even_near);
  const F even_far = fma(minus_half, d[2 * step], d[4 * step]), odd_far = fma(minus_half, d[step], d[3 * step]);
  t[3] = fma(far, odd_far, even_far);
  t[4] = fma(minus_far, odd_far, even_far);
}

// load(i, j): the pixel in row i and column j of a patch. store(point, value).
template <class Load, class Store>
inline void transform_patch(const Load& load, const Store& store) {
  F rows[36];  // transformed along the columns of a row
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 6; ++i) {
    F d[6];
    FASTDIFF_UNROLL_16
    for (int j = 0; j < 6; ++j) d[j] = load(i, j);
    transform_input_line<1>(d, rows + 6 * i);
  }
  FASTDIFF_UNROLL_16
  for (int j = 0; j < 6; ++j) {
    F t[6];
    transform_input_line<6>(rows + j, t);
    FASTDIFF_UNROLL_16
    for (int i = 0; i < 6; ++i) store(6 * i + j, t[i]);
  }
}

// Three numbers of a filter, `step` apart.
template <int step>
inline void transform_weight_line(const F* g, F* t) {
  const F half = F::broadcast(0.5f), two = F::broadcast(2.0f), by_near = F::broadcast(-2.0f / 3),
          by_far = F::broadcast(1.0f / 6);
  const F near = F::broadcast(kNear), far = F::broadcast(kFar);
  t[0] = g[0];
  t[5] = g[2 * step];
  const F even_near = fma(half, g[2 * step], g[0]), odd_near = near * g[step];
  t[1] = by_near * (even_near + odd_near);
  t[2] = by_near * (even_near - odd_near);
  const F even_far = fma(two, g[2 * step], g[0]), odd_far = far * g[step];
  t[3] = by_far * (even_far + odd_far);
  t[4] = by_far * (even_far - odd_far);
}

// The points of a pair of rows, which are made of the same numbers: point `n` of kPairPoints.
constexpr int kPairs[kPointPairs][2] = {{0, 5}, {1, 2}, {3, 4}};
inline int point_of_pair(int pair, int64_t n) {
  return kPatch * kPairs[pair][n / kPatch] + static_cast<int>(n % kPatch);
}

// g: the nine numbers of a filter, rows first. store(n, value) for the points of a pair of rows.
template <int pair, class Store>
inline void transform_weight_pair(const F* g, const Store& store) {
  F rows[2][3];
  FASTDIFF_UNROLL_16
  for (int j = 0; j < 3; ++j) {
    F t[6];
    transform_weight_line<3>(g + j, t);
    for (int i = 0; i < 2; ++i) rows[i][j] = t[kPairs[pair][i]];
  }
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 2; ++i) {
    F t[6];
    transform_weight_line<1>(rows[i], t);
    FASTDIFF_UNROLL_16
    for (int j = 0; j < 6; ++j) store(6 * i + j, t[j]);
  }
}

// The same for all points: store(point, value).
template <class Store>
inline void transform_weight(const F* g, const Store& store) {
  transform_weight_pair<0>(g, [&](int n, F value) { store(point_of_pair(0, n), value); });
  transform_weight_pair<1>(g, [&](int n, F value) { store(point_of_pair(1, n), value); });
  transform_weight_pair<2>(g, [&](int n, F value) { store(point_of_pair(2, n), value); });
}

// Six sums of products, `step` apart: four numbers of the output, `to_step` apart.
template <int step, int to_step>
inline void transform_output_line(const F* m, F* y) {
  const F half = F::broadcast(0.5f), two = F::broadcast(2.0f), near = F::broadcast(kNear), far = F::broadcast(kFar);
  const F sum_near = m[step] + m[2 * step], difference_near = m[step] - m[2 * step];
  const F sum_far = m[3 * step] + m[4 * step], difference_far = m[3 * step] - m[4 * step];
  y[0] = m[0] + (sum_near + sum_far);
  y[to_step] = fma(near, difference_near, far * difference_far);
  y[2 * to_step] = fma(half, sum_near, two * sum_far);
  y[3 * to_step] = fma(near * half, difference_near, fma(two * far, difference_far, m[5 * step]));
}

// load(point): a sum of products. y: the 16 pixels of the output tile, rows first.
template <class Load>
inline void transform_output(const Load& load, F* y) {
  F rows[24];  // [4 rows of the output][6 columns], transformed down the rows
  FASTDIFF_UNROLL_16
  for (int j = 0; j < 6; ++j) {
    F m[6];
    FASTDIFF_UNROLL_16
    for (int i = 0; i < 6; ++i) m[i] = load(6 * i + j);
    transform_output_line<1, 6>(m, rows + j);
  }
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 4; ++i) transform_output_line<1, 1>(rows + 6 * i, y + 4 * i);
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

// Mean and squared deviations of numbers in memory. For the files that are compiled once an instruction set (see
// simd.h).
#pragma once

#include <float.h>

#include "fastdiff/rows.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {

struct Moments {
  float mean;
  float squares;  // the sum of squared differences from the mean
};

// In two passes, which should find the numbers in the cache. The rounding of the mean is taken out of both: for a mean
// far from 0 nothing is lost but what the numbers themselves have lost. `next` is where numbers as many as these will
// be read from afterwards, of any type: they are fetched into L1 in the second pass, which waits for
// nothing.
template <class T>
inline Moments moments(const float* x, int64_t size, const T* next) {
  const F zero = F::broadcast(0);
  const float share = 1.0f / static_cast<float>(size);
  F s0 = zero, s1 = zero, s2 = zero, s3 = zero;
  int64_t i = 0;
  for (; i + 4 * F::size <= size; i += 4 * F::size) {
    s0 = s0 + load(x + i);
    s1 = s1 + load(x + i + F::size);
    s2 = s2 + load(x + i + 2 * F::size);
    s3 = s3 + load(x + i + 3 * F::size);
  }
  for (; i + F::size <= size; i += F::size) s0 = s0 + load(x + i);
  if (i < size) s1 = s1 + load_some(x + i, size - i);
  const float first = sum((s0 + s1) + (s2 + s3)) * share;

  const F center = F::broadcast(first);
  F q0 = zero, q1 = zero, q2 = zero, q3 = zero;
  s0 = s1 = s2 = s3 = zero;
  const auto add = [center](F value, F& total, F& squares) {
    const F d = value - center;
    total = total + d;
    squares = fma(d, d, squares);
  };
  for (i = 0; i + 4 * F::size <= size; i += 4 * F::size) {
    prefetch<4>(next + i);
    add(load(x + i), s0, q0);
    add(load(x + i + F::size), s1, q1);
    add(load(x + i + 2 * F::size), s2, q2);
    add(load(x + i + 3 * F::size), s3, q3);
  }
  for (; i + F::size <= size; i += F::size) add(load(x + i), s0, q0);
  if (i < size) {
    const F d = keep_first(load_some(x + i, size - i) - center, size - i);
    s1 = s1 + d;
    q1 = fma(d, d, q1);
  }
  const float shift = sum((s0 + s1) + (s2 + s3)) * share;
  return {first + shift, sum((q0 + q1) + (q2 + q3)) - shift * shift * static_cast<float>(size)};
}

// 1 / sqrt(variance + eps). huge is set where the variance is beyond float32's range, or no number.
inline float inverse_deviation(float variance, float eps, bool* huge) {
  if (!(variance <= FLT_MAX)) __atomic_store_n(huge, true, __ATOMIC_RELAXED);
  return 1.0f / __builtin_sqrtf((variance > 0 ? variance : 0) + eps);
}

}  // namespace fastdiff::FASTDIFF_ISA

// Mean and squared deviations of numbers in memory, and the loop over a row that does not fill its last vector.
// For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {

// Calls body(i, n) for the vectors of [0, size): the last one may have n < F::size values.
template <class Body>
inline void for_vectors(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + F::size <= size; i += F::size) body(i, F::size);
  if (i < size) body(i, size - i);
}

template <class T>
inline F get(const T* p, int64_t i, int64_t n) {
  return n == F::size ? load(p + i) : load_some(p + i, n);
}

template <class T>
inline void put(T* p, int64_t i, int64_t n, F value) {
  n == F::size ? store(p + i, value) : store_some(p + i, value, n);
}

struct Moments {
  float mean;
  float squares;  // the sum of squared differences from the mean
};

// In two passes, which should find the numbers in the cache. The rounding of the mean is taken out of both: for a mean far
// from 0 nothing is lost but what the numbers themselves have lost.
template <class T>
inline Moments moments(const T* x, int64_t size) {
  constexpr int kSums = 4;
  F sums[kSums], squares[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = squares[k] = F::broadcast(0);
  const int64_t body = size / (kSums * F::size) * (kSums * F::size);
  for (int64_t i = 0; i < body; i += kSums * F::size)
    for (int k = 0; k < kSums; ++k) sums[k] = sums[k] + load(x + i + k * F::size);
  for_vectors(size - body, [&](int64_t i, int64_t n) { sums[0] = sums[0] + get(x + body, i, n); });
  const float count = static_cast<float>(size);
  const float first = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / count;

  const F center = F::broadcast(first);
  for (int k = 0; k < kSums; ++k) sums[k] = F::broadcast(0);
  for (int64_t i = 0; i < body; i += kSums * F::size)
    for (int k = 0; k < kSums; ++k) {
      const F d = load(x + i + k * F::size) - center;
      sums[k] = sums[k] + d;
      squares[k] = fma(d, d, squares[k]);
    }
  float rest = 0, rest_squares = 0;
  for_vectors(size - body, [&](int64_t i, int64_t n) {
    float lanes[F::size];
    (get(x + body, i, n) - center).store(lanes);
    for (int64_t l = 0; l < n; ++l) {
      rest += lanes[l];
      rest_squares += lanes[l] * lanes[l];
    }
  });
  const float shift = (sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest) / count;
  const float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + rest_squares;
  return {first + shift, total - shift * shift * count};
}

// 1 / sqrt(variance + eps).
inline float inverse_deviation(float variance, float eps) {
  return 1.0f / __builtin_sqrtf((variance > 0 ? variance : 0) + eps);
}

}  // namespace fastdiff::FASTDIFF_ISA

// The arithmetic of weighted sums, for vectors of the CPU, for one number, and for the threads of a GPU.
#pragma once

#include <stdint.h>

#include "fastdiff/device.h"

namespace fastdiff::FASTDIFF_ISA {

// multiply_add(a, b, c) = a * b + c, rounded after each of the two operations, as torch does it: not fused.
FASTDIFF_DEVICE float multiply_add(float a, float b, float c) { return a * b + c; }
FASTDIFF_DEVICE double multiply_add(double a, double b, double c) { return a * b + c; }

template <class V>
struct Broadcast {
  template <class T>
  FASTDIFF_DEVICE static V of(T x) {
    return V::broadcast(x);
  }
};
template <>
struct Broadcast<float> {
  FASTDIFF_DEVICE static float of(float x) { return x; }
};
template <>
struct Broadcast<double> {
  FASTDIFF_DEVICE static double of(double x) { return x; }
};

// sums[m][u] = sum over k of coefficients[k * M + m] * x_k[u], in the order of the inputs. read(k, x) gives x_k.
template <class V, int M, int U, class T, class Read>
FASTDIFF_DEVICE void weighted_sums(V (&sums)[M][U], const T* coefficients, int num_inputs, Read read) {
  FASTDIFF_UNROLL
  for (int m = 0; m < M; ++m)
    for (int u = 0; u < U; ++u) sums[m][u] = Broadcast<V>::of(T{0});
  for (int k = 0; k < num_inputs; ++k) {
    V x[U];
    read(k, x);
    FASTDIFF_UNROLL
    for (int m = 0; m < M; ++m) {
      const V c = Broadcast<V>::of(coefficients[k * M + m]);
      for (int u = 0; u < U; ++u) sums[m][u] = multiply_add(c, x[u], sums[m][u]);
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

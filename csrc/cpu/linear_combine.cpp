// The solver's step: several outputs, each a weighted sum of several inputs, in one pass over memory. And its noise.
// Products and sums are rounded one by one and in the order of the inputs, as in torch: the results are the same bits.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

#include "fastdiff/linear_combine.h"
#include "fastdiff/philox.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// M outputs at U vectors a time, all sums in registers. Returns a value that is NaN if any result is not finite:
// 0 * y is 0 for a finite y and NaN for the others, and a NaN stays in the sum.
template <class T, int M, int U>
int64_t combine_vectors(const T* const* inputs, int num_inputs, T* const* outputs, T* const* copies,
                        const T* coefficients, int64_t size, T* finite) {
  using V = Vec<T>;
  const V zero = V::broadcast(0);
  V check = zero;
  int64_t i = 0;
  for (; i + U * V::size <= size; i += U * V::size) {
    V sums[M][U];
    weighted_sums(sums, coefficients, num_inputs, [&](int k, V(&x)[U]) {
      for (int u = 0; u < U; ++u) x[u] = V::load(inputs[k] + i + u * V::size);
    });
    for (int m = 0; m < M; ++m)
      for (int u = 0; u < U; ++u) {
        sums[m][u].store(outputs[m] + i + u * V::size);
        if (copies[m]) sums[m][u].store(copies[m] + i + u * V::size);
        check = multiply_add(sums[m][u], zero, check);
      }
  }
  T lanes[V::size];
  check.store(lanes);
  for (int l = 0; l < V::size; ++l) *finite += lanes[l];
  return i;
}

template <class T, int M>
bool combine(const T* const* inputs, int num_inputs, T* const* outputs, T* const* copies, const T* coefficients,
             int64_t size) {
  T finite = 0;
  int64_t i = combine_vectors<T, M,
                              (M <= 2   ? 4
                               : M <= 4 ? 2
                                        : 1)>(inputs, num_inputs, outputs, copies, coefficients, size, &finite);
  for (; i < size; ++i) {
    T sums[M][1];
    weighted_sums(sums, coefficients, num_inputs, [&](int k, T(&x)[1]) { x[0] = inputs[k][i]; });
    for (int m = 0; m < M; ++m) {
      outputs[m][i] = sums[m][0];
      if (copies[m]) copies[m][i] = sums[m][0];
      finite += 0 * sums[m][0];
    }
  }
  return finite == 0;
}

template <class T>
bool linear_combine(const T* const* inputs, int num_inputs, T* const* outputs, T* const* copies, int num_outputs,
                    const T* coefficients, int64_t size) {
  switch (num_outputs) {
    case 1:
      return combine<T, 1>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 2:
      return combine<T, 2>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 3:
      return combine<T, 3>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 4:
      return combine<T, 4>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 5:
      return combine<T, 5>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 6:
      return combine<T, 6>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 7:
      return combine<T, 7>(inputs, num_inputs, outputs, copies, coefficients, size);
    case 8:
      return combine<T, 8>(inputs, num_inputs, outputs, copies, coefficients, size);
  }
  return false;
}

}  // namespace

bool linear_combine_f32(const float* const* inputs, int num_inputs, float* const* outputs, float* const* copies,
                        int num_outputs, const float* coefficients, int64_t size) {
  return linear_combine<float>(inputs, num_inputs, outputs, copies, num_outputs, coefficients, size);
}

bool linear_combine_f64(const double* const* inputs, int num_inputs, double* const* outputs, double* const* copies,
                        int num_outputs, const double* coefficients, int64_t size) {
  return linear_combine<double>(inputs, num_inputs, outputs, copies, num_outputs, coefficients, size);
}

void normal(float* out, int64_t first, int64_t count, uint64_t seed, uint64_t sample, uint32_t draw) {
  const int64_t group = first / kNormalGroup;
  for (int64_t g = 0; g * kNormalGroup < count; ++g)
    normal_group(out + g * kNormalGroup, static_cast<uint32_t>(group + g), seed, sample, draw);
}

}  // namespace fastdiff::FASTDIFF_ISA

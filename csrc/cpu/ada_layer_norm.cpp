// adaLN: layer norm, modulation, gate and residual in one pass over memory; a row stays in the cache for its statistics.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
const T* row(const Rows& rows, int64_t batch, int64_t index) {
  return rows.data ? static_cast<const T*>(rows.data) + batch * rows.batch + index * rows.row : nullptr;
}

// Calls body(i, load, n) for the vectors of [0, size): the last one may have n < F::size values.
template <class Body>
void for_vectors(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + F::size <= size; i += F::size) body(i, F::size);
  if (i < size) body(i, size - i);
}

template <class T>
F get(const T* p, int64_t i, int64_t n) {
  return n == F::size ? load(p + i) : load_some(p + i, n);
}

// Mean and 1 / sqrt(variance + eps). The variance is that of the differences from the mean, whose rounding is taken out of
// both: for a mean far from 0 nothing is lost but what x itself has lost.
template <class T>
void statistics(const T* x, int64_t size, float eps, float* mean, float* scale) {
  constexpr int kSums = 4;
  F sums[kSums], squares[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = squares[k] = F::broadcast(0);
  const int64_t body = size / (kSums * F::size) * (kSums * F::size);
  for (int64_t i = 0; i < body; i += kSums * F::size)
    for (int k = 0; k < kSums; ++k) sums[k] = sums[k] + load(x + i + k * F::size);
  for_vectors(size - body, [&](int64_t i, int64_t n) { sums[0] = sums[0] + get(x + body, i, n); });
  const float first = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(size);

  const F center = F::broadcast(first);
  for (int k = 0; k < kSums; ++k) sums[k] = F::broadcast(0);
  for (int64_t i = 0; i < body; i += kSums * F::size)
    for (int k = 0; k < kSums; ++k) {
      const F d = load(x + i + k * F::size) - center;
      sums[k] = sums[k] + d;
      squares[k] = fma(d, d, squares[k]);
    }
  float rest = 0, rest_squares = 0;
  for (int64_t i = body; i < size; i += F::size) {
    const int64_t n = size - i < F::size ? size - i : F::size;
    float lanes[F::size];
    (get(x, i, n) - center).store(lanes);
    for (int64_t l = 0; l < n; ++l) {
      rest += lanes[l];
      rest_squares += lanes[l] * lanes[l];
    }
  }
  const float shift = (sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest) / static_cast<float>(size);
  const float square = (sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + rest_squares) / static_cast<float>(size);
  const float variance = square - shift * shift;
  *mean = first + shift;
  *scale = 1.0f / __builtin_sqrtf((variance > 0 ? variance : 0) + eps);
}

template <class T>
void run(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  const F one = F::broadcast(1);
  const T *weight = static_cast<const T*>(op.weight), *bias = static_cast<const T*>(op.bias);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / op.rows, s = index % op.rows;
    const T *x = row<T>(op.x, b, s), *scale = row<T>(op.scale, b, s), *shift = row<T>(op.shift, b, s);
    const T *gate = row<T>(op.gate, b, s), *residual = row<T>(op.residual, b, s);
    T* out = static_cast<T*>(op.out) + index * op.channels;
    float mean, inverse;
    statistics(x, op.channels, op.eps, &mean, &inverse);
    const F center = F::broadcast(mean), factor = F::broadcast(inverse);
    for_vectors(op.channels, [&](int64_t i, int64_t n) {
      F y = (get(x, i, n) - center) * factor;
      if (weight) y = fma(y, get(weight, i, n), bias ? get(bias, i, n) : F::broadcast(0));
      y = fma(y, one + get(scale, i, n), get(shift, i, n));
      if (gate) y = y * get(gate, i, n);
      if (residual) y = y + get(residual, i, n);
      n == F::size ? store(out + i, y) : store_some(out + i, y, n);
    });
  }
}

}  // namespace

void ada_layer_norm(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32: return run<float>(op, begin, end);
    case Type::bfloat16: return run<bfloat16>(op, begin, end);
    case Type::float16: return run<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

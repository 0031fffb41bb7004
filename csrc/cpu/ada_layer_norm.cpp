// adaLN: layer norm, modulation, gate and residual in one pass over memory; a row stays in the cache meanwhile.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
const T* row(const Rows& rows, int64_t batch, int64_t index) {
  return rows.data ? static_cast<const T*>(rows.data) + batch * rows.batch + index * rows.row : nullptr;
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
    const Moments m = moments(x, op.channels);
    const float variance = m.squares / static_cast<float>(op.channels);
    const F center = F::broadcast(m.mean), factor = F::broadcast(inverse_deviation(variance, op.eps));
    for_vectors(op.channels, [&](int64_t i, int64_t n) {
      F y = (get(x, i, n) - center) * factor;
      if (weight) y = fma(y, get(weight, i, n), bias ? get(bias, i, n) : F::broadcast(0));
      y = fma(y, one + get(scale, i, n), get(shift, i, n));
      if (gate) y = y * get(gate, i, n);
      if (residual) y = y + get(residual, i, n);
      put(out, i, n, y);
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

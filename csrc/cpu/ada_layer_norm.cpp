// adaLN: layer norm, modulation, gate and residual in one pass over memory; a row stays in the cache meanwhile.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"
#include "fastdiff/rows.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
const T* row(const Rows& rows, int64_t batch, int64_t index) {
  return rows.data ? static_cast<const T*>(rows.data) + batch * rows.batch + index * rows.row : nullptr;
}

// What is done to (x - mean) / deviation, as one multiplication and one addition for each channel.
template <class T>
void combine(const AdaLayerNorm& op, int64_t b, int64_t s, float* factor, float* offset) {
  const T *scale = row<T>(op.scale, b, s), *shift = row<T>(op.shift, b, s), *gate = row<T>(op.gate, b, s);
  const T *weight = static_cast<const T*>(op.weight), *bias = static_cast<const T*>(op.bias);
  const F one = F::broadcast(1);
  if (weight) {
    map(factor, op.channels, [=](auto at) { return at.load(weight) * (one + at.load(scale)); });
  } else {
    map(factor, op.channels, [=](auto at) { return one + at.load(scale); });
  }
  if (bias) {
    map(offset, op.channels, [=](auto at) { return fma(at.load(bias), one + at.load(scale), at.load(shift)); });
  } else {
    map(offset, op.channels, [=](auto at) { return at.load(shift); });
  }
  if (gate) {
    map(factor, op.channels, [=](auto at) { return at.load(factor) * at.load(gate); });
    map(offset, op.channels, [=](auto at) { return at.load(offset) * at.load(gate); });
  }
}

template <class T>
void run(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  const Scratch scratch(3, op.channels);
  float *factor = scratch.row(0), *offset = scratch.row(1), *wide = scratch.row(2);
  const bool same_for_rows = op.scale.row == 0 && op.shift.row == 0 && op.gate.row == 0;
  int64_t combined = -1;  // the batch that factor and offset are of
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / op.rows, s = index % op.rows;
    if (!same_for_rows || b != combined) combine<T>(op, b, s, factor, offset);
    combined = b;
    const T *stored = row<T>(op.x, b, s), *residual = row<T>(op.residual, b, s);
    const float* x = widen_row(stored, wide, op.channels);
    const T* next = stored + (s + 1 < op.rows ? op.x.row : 0);
    const Moments m = moments(x, op.channels, next);
    const float variance = m.squares / static_cast<float>(op.channels);
    const F mean = F::broadcast(m.mean), inverse = F::broadcast(inverse_deviation(variance, op.eps));
    T* out = static_cast<T*>(op.out) + index * op.channels;
    const auto modulated = [=](auto at) {
      return fma((at.load(x) - mean) * inverse, at.load(factor), at.load(offset));
    };
    const auto added = [=](auto at) { return modulated(at) + at.load(residual); };
    if (op.stream) {
      residual ? map_stream(out, op.channels, next, added) : map_stream(out, op.channels, next, modulated);
    } else {
      residual ? map(out, op.channels, added) : map(out, op.channels, modulated);
    }
  }
  if (op.stream) stream_fence();
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

// What ada_layer_norm, residual_ada_layer_norm and their gradients share. For the files that are compiled once an
// instruction set (see simd.h).
#pragma once

#include "fastdiff/arena.h"
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"
#include "fastdiff/rows.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
inline const T* row(const Rows& rows, int64_t batch, int64_t index) {
  return rows.data ? static_cast<const T*>(rows.data) + batch * rows.batch + index * rows.row : nullptr;
}

// What is done to (x - mean) / deviation, as one multiplication and one addition for each channel.
template <class T>
inline void combine(const AdaLayerNorm& op, int64_t b, int64_t s, float* factor, float* offset) {
  const T *scale = row<T>(op.scale, b, s), *shift = row<T>(op.shift, b, s);
  const T *weight = static_cast<const T*>(op.weight), *bias = static_cast<const T*>(op.bias);
  const F zero = F::broadcast(0), one = F::broadcast(1);
  const auto scaled = [=](auto at) { return scale ? one + at.load(scale) : one; };
  const auto shifted = [=](auto at) { return shift ? at.load(shift) : zero; };
  if (weight) {
    map(factor, op.channels, [=](auto at) { return at.load(weight) * scaled(at); });
  } else {
    map(factor, op.channels, scaled);
  }
  if (bias) {
    map(offset, op.channels, [=](auto at) { return fma(at.load(bias), scaled(at), shifted(at)); });
  } else {
    map(offset, op.channels, shifted);
  }
}

// Factor and offset of a row's channels, computed again only where they change.
template <class T>
class Modulation {
public:
  Modulation(const AdaLayerNorm& op, Arena& arena)
      : factor(arena.take<float>(op.channels)), offset(arena.take<float>(op.channels)), op_(op) {}

  void move_to(int64_t batch, int64_t index) {
    const bool same_for_rows = op_.scale.row == 0 && op_.shift.row == 0;
    if (!same_for_rows || batch != batch_) combine<T>(op_, batch, index, factor, offset);
    batch_ = batch;
  }

  float *const factor, *const offset;

private:
  const AdaLayerNorm& op_;
  int64_t batch_ = -1;
};

// A row of the result. wide: room for a row; next: the row that is read afterwards.
template <class T>
inline void write_modulated(const AdaLayerNorm& op, const Modulation<T>& modulation, const T* stored, float* wide,
                            const T* next, T* out) {
  const float *x = widen_row(stored, wide, op.channels), *factor = modulation.factor, *offset = modulation.offset;
  const Moments m = moments(x, op.channels, next);
  const float variance = m.squares / static_cast<float>(op.channels);
  const F mean = F::broadcast(m.mean), inverse = F::broadcast(inverse_deviation(variance, op.eps, op.huge));
  const auto modulated = [=](auto at) { return fma((at.load(x) - mean) * inverse, at.load(factor), at.load(offset)); };
  op.stream ? map_stream(out, op.channels, next, modulated) : map_ahead(out, op.channels, next, modulated);
}

}  // namespace fastdiff::FASTDIFF_ISA

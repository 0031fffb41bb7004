// What ada_layer_norm and its gradients share. For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/arena.h"
#include "fastdiff/kernels.h"
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
}

}  // namespace fastdiff::FASTDIFF_ISA

// Gradients of adaLN where the modulation is the same for all rows of a batch. With n the normalized x and d the
// gradient of the result, all of them follow from d and from two sums over rows, of d and of d n: the gradient of a
// factor or an offset of a channel is such a sum times what the channel has in common. Compiled once an instruction set
// (see simd.h).
#include "fastdiff/modulation.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
void run_rows(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  const AdaLayerNorm& forward = op.forward;
  const int64_t channels = forward.channels, parts = (forward.rows + kNormRows - 1) / kNormRows;
  const float share = 1.0f / static_cast<float>(channels);
  Arena arena;
  float *factor = arena.take<float>(channels), *offset = arena.take<float>(channels);
  float *wide_x = arena.take<float>(channels), *wide_d = arena.take<float>(channels);
  int64_t combined = -1;  // the batch that factor is of
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / parts, first = unit % parts * kNormRows;
    const int64_t last = first + kNormRows < forward.rows ? first + kNormRows : forward.rows;
    if (b != combined) combine<T>(forward, b, 0, factor, offset);
    combined = b;
    float *sums = op.sums + unit * 2 * channels, *products = sums + channels;
    map(sums, 2 * channels, [](auto) { return F::broadcast(0); });
    for (int64_t s = first; s < last; ++s) {
      const T* stored = row<T>(forward.x, b, s);
      const float* x = widen_row(stored, wide_x, channels);
      const float* d = widen_row(row<T>(op.gradient, b, s), wide_d, channels);
      const Moments m = moments(x, channels, stored + (s + 1 < forward.rows ? forward.x.row : 0));
      const F mean = F::broadcast(m.mean), inverse = F::broadcast(inverse_deviation(m.squares * share, forward.eps));
      F total = F::broadcast(0), along = F::broadcast(0);  // of the gradient of n, and of its product with n
      each(channels, [&](auto at) {
        const F n = (at.load(x) - mean) * inverse, gradient = at.load(d), scaled = gradient * at.load(factor);
        total = total + scaled;
        along = fma(scaled, n, along);
        at.store(sums, at.load(sums) + gradient);
        at.store(products, fma(gradient, n, at.load(products)));
      });
      const F constant = F::broadcast(sum(total) * share), slope = F::broadcast(-sum(along) * share);
      const T* next = row<T>(op.gradient, b, s + 1 < forward.rows ? s + 1 : s);
      map_ahead(static_cast<T*>(op.x) + (b * forward.rows + s) * channels, channels, next, [=](auto at) {
        const F n = (at.load(x) - mean) * inverse;
        return fma(n, slope, at.load(d) * at.load(factor) - constant) * inverse;
      });
    }
  }
}

template <class T>
void run_parameters(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  const AdaLayerNorm& forward = op.forward;
  const int64_t channels = forward.channels, parts = (forward.rows + kNormRows - 1) / kNormRows;
  const F zero = F::broadcast(0), one = F::broadcast(1);
  const T *weight = static_cast<const T*>(forward.weight), *bias = static_cast<const T*>(forward.bias);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kNormChannels, left = channels - first;
    each(left < kNormChannels ? left : kNormChannels, [&](auto at) {
      at.i += first;
      const F w = weight ? at.load(weight) : one, offset = bias ? at.load(bias) : zero;
      F of_weight = zero, of_bias = zero;
      for (int64_t b = 0; b < op.batch; ++b) {
        F total = zero, product = zero;
        for (int64_t part = 0; part < parts; ++part) {
          const float* sums = op.sums + (b * parts + part) * 2 * channels;
          total = total + at.load(sums);
          product = product + at.load(sums + channels);
        }
        const F scale = one + at.load(row<T>(forward.scale, b, 0));
        if (op.scale) at.store(static_cast<T*>(op.scale) + b * channels, fma(w, product, offset * total));
        if (op.shift) at.store(static_cast<T*>(op.shift) + b * channels, total);
        of_weight = fma(scale, product, of_weight);
        of_bias = fma(scale, total, of_bias);
      }
      if (op.weight) at.store(static_cast<T*>(op.weight), of_weight);
      if (op.bias) at.store(static_cast<T*>(op.bias), of_bias);
    });
  }
}

}  // namespace

#define FASTDIFF_FOR_TYPE(run)              \
  switch (op.forward.type) {                \
    case Type::float32:                     \
      return run<float>(op, begin, end);    \
    case Type::bfloat16:                    \
      return run<bfloat16>(op, begin, end); \
    case Type::float16:                     \
      return run<float16>(op, begin, end);  \
  }
void ada_layer_norm_backward_rows(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  FASTDIFF_FOR_TYPE(run_rows)
}
void ada_layer_norm_backward_parameters(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  FASTDIFF_FOR_TYPE(run_parameters)
}

}  // namespace fastdiff::FASTDIFF_ISA

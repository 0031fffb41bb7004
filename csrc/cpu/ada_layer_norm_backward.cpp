// Gradients of adaLN, and of what it is a part of in residual_ada_layer_norm, where the modulation is the same for all
// rows of a batch. With n the normalized x and d the gradient of the result, all of them follow from d and from two
// sums over rows, of d and of d n: the gradient of a factor or an offset of a channel is such a sum times what the
// channel has in common. Compiled once an instruction set (see simd.h).
#include "fastdiff/modulation.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
const T* next_row(const Rows& rows, int64_t batch, int64_t index, int64_t end) {
  return row<T>(rows, batch, index + 1 < end ? index + 1 : index);
}

// Of a row of h, whose gradient lacks what is added to it: that of the residual, which is the same, and that of the
// branch; gated: sums for the gate's. next: what is read afterwards.
template <class T>
void write_branch(const AdaLayerNormBackward& op, int64_t b, int64_t s, const T* next, float* of_h, float* gated) {
  const int64_t channels = op.forward.channels, start = (b * op.forward.rows + s) * channels;
  const T *added = row<T>(op.added, b, s), *y = row<T>(op.y, b, s), *gate = row<T>(op.gate, b, 0);
  const auto whole = [=](auto at) { return at.load(of_h); };
  if (added) map(of_h, channels, [=](auto at) { return at.load(of_h) + at.load(added); });
  if (op.x) map_ahead(static_cast<T*>(op.x) + start, channels, next, whole);
  if (T* of_y = static_cast<T*>(op.of_y)) {
    const T* then = y ? next_row<T>(op.y, b, s, op.forward.rows) : next;
    gate ? map_ahead(of_y + start, channels, then, [=](auto at) { return at.load(of_h) * at.load(gate); })
         : map_ahead(of_y + start, channels, then, whole);
  }
  if (op.of_gate) each(channels, [=](auto at) { at.store(gated, fma(at.load(y), at.load(of_h), at.load(gated))); });
}

// branch: x is h, the sum of a residual and of a gated branch, which have gradients as well.
template <bool branch, class T>
void run_rows(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  const AdaLayerNorm& forward = op.forward;
  const int64_t channels = forward.channels, parts = (forward.rows + kNormRows - 1) / kNormRows;
  const int64_t sums_size = ada_layer_norm_sums(op);
  const float share = 1.0f / static_cast<float>(channels);
  Arena arena;
  Modulation<T> modulation(forward, arena);
  float *wide_x = arena.take<float>(channels), *wide_d = arena.take<float>(channels);
  float* of_h = branch ? arena.take<float>(channels) : nullptr;
  const float* factor = modulation.factor;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / parts, first = unit % parts * kNormRows;
    const int64_t last = first + kNormRows < forward.rows ? first + kNormRows : forward.rows;
    modulation.move_to(b, 0);
    float *sums = op.sums + unit * sums_size, *products = sums + channels;
    map(sums, sums_size, [](auto) { return F::broadcast(0); });
    for (int64_t s = first; s < last; ++s) {
      const float* x = widen_row(row<T>(forward.x, b, s), wide_x, channels);
      const float* d = widen_row(row<T>(op.gradient, b, s), wide_d, channels);
      const Moments m = moments(x, channels, next_row<T>(forward.x, b, s, forward.rows));
      const F mean = F::broadcast(m.mean);
      const F inverse = F::broadcast(inverse_deviation(m.squares * share, forward.eps, forward.huge));
      F total = F::broadcast(0), along = F::broadcast(0);  // of the gradient of n, and of its product with n
      each(channels, [&](auto at) {
        const F n = (at.load(x) - mean) * inverse, gradient = at.load(d), scaled = gradient * at.load(factor);
        total = total + scaled;
        along = fma(scaled, n, along);
        at.store(sums, at.load(sums) + gradient);
        at.store(products, fma(gradient, n, at.load(products)));
      });
      const F constant = F::broadcast(sum(total) * share), slope = F::broadcast(-sum(along) * share);
      const auto of_x = [=](auto at) {
        const F n = (at.load(x) - mean) * inverse;
        return fma(n, slope, at.load(d) * at.load(factor) - constant) * inverse;
      };
      const T* next = next_row<T>(op.gradient, b, s, forward.rows);
      if constexpr (branch) {
        map(of_h, channels, of_x);
        write_branch<T>(op, b, s, next, of_h, products + channels);
      } else {
        map_ahead(static_cast<T*>(op.x) + (b * forward.rows + s) * channels, channels, next, of_x);
      }
    }
  }
}

template <class T>
void run_any_rows(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  op.branch ? run_rows<true, T>(op, begin, end) : run_rows<false, T>(op, begin, end);
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
      for (int64_t b = 0; b < forward.batch; ++b) {
        F total = zero, product = zero, gated = zero;
        for (int64_t part = 0; part < parts; ++part) {
          const float* sums = op.sums + (b * parts + part) * ada_layer_norm_sums(op);
          total = total + at.load(sums);
          product = product + at.load(sums + channels);
          if (op.of_gate) gated = gated + at.load(sums + 2 * channels);
        }
        const T* scales = row<T>(forward.scale, b, 0);
        const F scale = scales ? one + at.load(scales) : one;
        if (op.scale) at.store(static_cast<T*>(op.scale) + b * channels, fma(w, product, offset * total));
        if (op.shift) at.store(static_cast<T*>(op.shift) + b * channels, total);
        if (op.of_gate) at.store(static_cast<T*>(op.of_gate) + b * channels, gated);
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
  FASTDIFF_FOR_TYPE(run_any_rows)
}
void ada_layer_norm_backward_parameters(const AdaLayerNormBackward& op, int64_t begin, int64_t end) {
  FASTDIFF_FOR_TYPE(run_parameters)
}

}  // namespace fastdiff::FASTDIFF_ISA

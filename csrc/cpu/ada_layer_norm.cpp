// adaLN: layer norm and modulation in one pass over memory; a row stays in the cache meanwhile.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/modulation.h"
#include "fastdiff/moments.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
void run(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  Arena arena;
  float *factor = arena.take<float>(op.channels), *offset = arena.take<float>(op.channels);
  float* wide = arena.take<float>(op.channels);
  const bool same_for_rows = op.scale.row == 0 && op.shift.row == 0;
  int64_t combined = -1;  // the batch that factor and offset are of
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / op.rows, s = index % op.rows;
    if (!same_for_rows || b != combined) combine<T>(op, b, s, factor, offset);
    combined = b;
    const T* stored = row<T>(op.x, b, s);
    const float* x = widen_row(stored, wide, op.channels);
    const T* next = stored + (s + 1 < op.rows ? op.x.row : 0);
    const Moments m = moments(x, op.channels, next);
    const float variance = m.squares / static_cast<float>(op.channels);
    const F mean = F::broadcast(m.mean), inverse = F::broadcast(inverse_deviation(variance, op.eps));
    T* out = static_cast<T*>(op.out) + index * op.channels;
    const auto modulated = [=](auto at) {
      return fma((at.load(x) - mean) * inverse, at.load(factor), at.load(offset));
    };
    op.stream ? map_stream(out, op.channels, next, modulated) : map_ahead(out, op.channels, next, modulated);
  }
  if (op.stream) stream_fence();
}

}  // namespace

void ada_layer_norm(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32:
      return run<float>(op, begin, end);
    case Type::bfloat16:
      return run<bfloat16>(op, begin, end);
    case Type::float16:
      return run<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

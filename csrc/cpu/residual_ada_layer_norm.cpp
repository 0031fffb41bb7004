// The end of one branch of a transformer's block and the norm before the next one, in one pass over memory; a row stays
// in the cache meanwhile. Compiled once an instruction set (see simd.h).
#include "fastdiff/modulation.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
void run(const ResidualAdaLayerNorm& op, int64_t begin, int64_t end) {
  const AdaLayerNorm& norm = op.norm;
  Arena arena;
  Modulation<T> modulation(norm, arena);
  float* wide = arena.take<float>(norm.channels);
  T* near = norm.stream ? arena.take<T>(norm.channels)
                        : nullptr;  // h is read again, and non-temporal stores leave none of it in a cache
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / norm.rows, s = index % norm.rows;
    const bool last = s + 1 == norm.rows;
    modulation.move_to(b, s);
    const T *y = row<T>(op.y, b, s), *residual = row<T>(op.residual, b, s), *gate = row<T>(op.gate, b, s);
    const T *next_y = y + (last ? 0 : op.y.row), *next_residual = residual + (last ? 0 : op.residual.row);
    T *stored = static_cast<T*>(op.h) + index * norm.channels, *h = near ? near : stored;
    const auto added = [=](auto at) { return at.load(residual) + at.load(y); };
    const auto gated = [=](auto at) { return fma(at.load(gate), at.load(y), at.load(residual)); };
    gate ? map_ahead(h, norm.channels, next_y, gated) : map_ahead(h, norm.channels, next_y, added);
    if (near) map_stream(stored, norm.channels, next_y, [=](auto at) { return at.load(near); });
    write_modulated<T>(norm, modulation, h, wide, next_residual, static_cast<T*>(norm.out) + index * norm.channels);
  }
  if (norm.stream) stream_fence();
}

}  // namespace

void residual_ada_layer_norm(const ResidualAdaLayerNorm& op, int64_t begin, int64_t end) {
  switch (op.norm.type) {
    case Type::float32:
      return run<float>(op, begin, end);
    case Type::bfloat16:
      return run<bfloat16>(op, begin, end);
    case Type::float16:
      return run<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

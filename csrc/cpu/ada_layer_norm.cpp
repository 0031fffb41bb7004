// adaLN: layer norm and modulation in one pass over memory; a row stays in the cache meanwhile.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/modulation.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
void run(const AdaLayerNorm& op, int64_t begin, int64_t end) {
  Arena arena;
  Modulation<T> modulation(op, arena);
  float* wide = arena.take<float>(op.channels);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / op.rows, s = index % op.rows;
    modulation.move_to(b, s);
    const T* x = row<T>(op.x, b, s);
    write_modulated(op, modulation, x, wide, x + (s + 1 < op.rows ? op.x.row : 0),
                    static_cast<T*>(op.out) + index * op.channels);
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

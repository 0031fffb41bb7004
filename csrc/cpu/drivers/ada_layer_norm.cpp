// ada_layer_norm, residual_ada_layer_norm and their gradients: a unit is a row, or a part of the rows of a batch.
#include "fastdiff/arena.h"
#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {

void ada_layer_norm(AdaLayerNorm op, int threads) {
  const int64_t numbers = op.batch * op.rows * op.channels;
  op.stream = streams(op.type, numbers);
  run_kernel(kernels().ada_layer_norm, op, op.batch * op.rows, threads_for(numbers, threads));
}

void residual_ada_layer_norm(ResidualAdaLayerNorm op, int threads) {
  AdaLayerNorm& norm = op.norm;
  const int64_t numbers = norm.batch * norm.rows * norm.channels;
  norm.stream = streams(norm.type, numbers);
  run_kernel(kernels().residual_ada_layer_norm, op, norm.batch * norm.rows, threads_for(numbers, threads));
}

void ada_layer_norm_backward(AdaLayerNormBackward op, int threads) {
  const AdaLayerNorm& norm = op.forward;
  const Kernels& all = kernels();
  const int64_t parts = norm.batch * divide_up(norm.rows, kNormRows);
  Arena arena;
  op.sums = arena.take<float>(parts * ada_layer_norm_sums(op));
  run_kernel(all.ada_layer_norm_backward_rows, op, parts, threads_for(norm.batch * norm.rows * norm.channels, threads));
  run_kernel(all.ada_layer_norm_backward_parameters, op, divide_up(norm.channels, kNormChannels),
             threads_for(parts * norm.channels, threads));
}

}  // namespace fastdiff

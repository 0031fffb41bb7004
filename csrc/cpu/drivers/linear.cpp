// A linear layer in two phases: of both factors the one that is shared is packed first.
#include <stdexcept>
#include <string>

#include "fastdiff/arena.h"
#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {

void linear(Linear op, int threads) {
  const Kernels& all = kernels();
  if (!all.linear_multiply) throw std::invalid_argument(std::string(all.isa) + " has no kernel for linear");
  const int64_t rows = linear_row_blocks(op), columns = linear_column_blocks(op);
  op.rows_shared = linear_shares_rows(op);
  Arena arena;
  op.packed = arena.take<uint8_t>(linear_packed_bytes(op));
  run_kernel(all.linear_pack, op, op.rows_shared ? rows : columns, threads);
  run_kernel(all.linear_multiply, op, op.rows_shared ? columns : rows, threads);
}

void low_linear_weight(LowLinear op, int threads) {
  const int64_t blocks = linear_column_blocks(op.layer) * (op.layer.glu ? 2 : 1);
  run_kernel(op.int8 ? kernels().linear_int8_weight : kernels().linear_bfloat16_weight, op, blocks, threads);
}

void low_linear(LowLinear op, int threads) {
  const Kernels& all = kernels();
  const int64_t rows = op.layer.batch * op.layer.rows;
  Arena arena;
  op.rows = arena.take<uint8_t>(rows * low_row_bytes(op.layer.inputs));
  const int few = threads_for(rows * op.layer.inputs, threads);
  run_kernel(op.int8 ? all.linear_int8_rows : all.linear_bfloat16_rows, op, rows, few);
  run_kernel(op.int8 ? all.linear_int8_products : all.linear_bfloat16_products, op, low_linear_units(op.layer),
             threads);
}

}  // namespace fastdiff

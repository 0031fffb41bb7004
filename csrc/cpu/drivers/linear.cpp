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

}  // namespace fastdiff

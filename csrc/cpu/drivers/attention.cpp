#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {

void attention(Attention op, int threads) {
  const Kernels& all = kernels();
  const int64_t products = op.batch * op.heads * op.queries * op.keys * (op.channels + op.value_channels);
  bool doubtful = false;
  op.doubtful = &doubtful;
  run_kernel(all.attention, op, all.attention_units(op), threads_for(products / 16, threads));
  if (!doubtful) return;
  op.in_vectors = true;
  run_kernel(all.attention, op, all.attention_units(op), threads_for(products / 16, threads));
}

}  // namespace fastdiff

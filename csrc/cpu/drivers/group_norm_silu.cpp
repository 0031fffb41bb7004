// group_norm_silu and its gradients: a unit is a group of a sample, or a part of the pixels of one.
#include "fastdiff/arena.h"
#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {
namespace {

int64_t numbers_of(const GroupNorm& op) { return op.samples * op.channels * op.pixels; }

// Whether groups are worked on one by one. That does not depend on the number of threads, and so the result does not
// either.
bool whole_groups(const GroupNorm& op) { return !op.channels_last && op.samples * op.groups >= 8; }

}  // namespace

void group_norm_silu(GroupNorm op, int threads) {
  const int64_t parts = op.samples * divide_up(op.pixels, kNormPart);
  const Kernels& all = kernels();
  op.channels_last = op.channels_last || op.pixels == 1;
  op.stream = streams(op.type, numbers_of(op));
  threads = threads_for(numbers_of(op), threads);
  if (whole_groups(op)) return run_kernel(all.group_norm_groups, op, op.samples * op.groups, threads);
  Arena arena;
  op.partial = arena.take<float>(parts * 2 * op.channels);
  run_kernel(all.group_norm_statistics, op, parts, threads);
  run_kernel(all.group_norm_output, op, parts, threads);
}

void group_norm_silu_backward(GroupNormBackward op, int threads) {
  GroupNorm& norm = op.forward;
  const Kernels& all = kernels();
  norm.channels_last = norm.channels_last || norm.pixels == 1;
  const bool whole = whole_groups(norm);
  if (!whole) op.parts = divide_up(norm.pixels, kNormPart);
  const int64_t parts = norm.samples * op.parts, size = parts * 2 * norm.channels;
  const int many = threads_for(numbers_of(norm), threads);
  Arena arena;
  op.sums = arena.take<float>(size);
  if (whole) {
    run_kernel(all.group_norm_backward_groups, op, norm.samples * norm.groups, many);
  } else {
    norm.partial = arena.take<float>(size);
    run_kernel(all.group_norm_statistics, norm, parts, many);
    run_kernel(all.group_norm_backward_sums, op, parts, many);
    run_kernel(all.group_norm_backward_input, op, parts, many);
  }
  run_kernel(all.group_norm_backward_parameters, op, divide_up(norm.channels, kNormChannels),
             threads_for(parts * norm.channels, threads));
}

}  // namespace fastdiff

// How large the stages are, and where what they share lies.
#include "fastdiff/conv2d_stages.h"

namespace fastdiff {
namespace {

// U is at most so large, and V and M together: in the third cache, with others beside them.
constexpr int64_t kMostWeights = int64_t{48} << 20, kMostTiles = int64_t{24} << 20;
// Of V, in three parts, what a thread multiplies at once stays in its L2.
constexpr int64_t kMostRows = int64_t{1} << 20;

}  // namespace

StagePlan plan_stages(int64_t tiles, int64_t channels, int64_t out_channels, int64_t threads) {
  const int64_t panels = divide_up(out_channels, kStagePanel),
                panel_bytes = 4 * stage_u_stride(channels, kStagePanel) * kPoints;
  const int64_t column_rounds = divide_up(panels, at_least(1, kMostWeights / panel_bytes));
  const int64_t columns = divide_up(panels, column_rounds) * kStagePanel;
  const bool in_place = column_rounds == 1;
  const int64_t v = round_up(channels, kChannelBlock),
                row_bytes = kPoints * 4 * kStagePanel * (in_place ? at_least(v, columns) : v + columns);
  const int64_t rows = divide_up(tiles, kStagePanel), row_rounds = divide_up(rows, at_least(1, kMostTiles / row_bytes));
  const int64_t most = divide_up(rows, row_rounds) * kStagePanel;
  const int64_t step_rows = at_least(1, kMostRows / (round_up(channels, kStageDepth) * 6 * kStagePanel));
  StagePlan plan = {at_most(most, tiles), at_most(columns, out_channels), divide_up(most / kStagePanel, step_rows), 1,
                    in_place};
  // Of more threads than there are points some divide the columns.
  const int64_t units = kPoints * plan.row_parts;
  if (units % threads != 0 && units < 4 * threads) {
    plan.column_parts = at_most(divide_up(columns, kStagePanel), divide_up(4 * threads, units));
    plan.in_place = false;  // all parts read V
  }
  return plan;
}

// The points of V and M with room against addresses that differ by a multiple of 4096 bytes.
ConvStage stage_of(const StagePlan& plan, int64_t channels, float* scratch) {
  ConvStage stage = {};
  const int64_t blocks = divide_up(plan.tiles, kStagePanel);
  stage.row_parts = plan.row_parts, stage.column_parts = plan.column_parts;
  stage.v_block = kStagePanel * round_up(channels, kChannelBlock),
  stage.m_block = kStagePanel * round_up(plan.columns, kStagePanel);
  if (plan.in_place) stage.v_block = stage.m_block = at_least(stage.v_block, stage.m_block);
  stage.v_stride = blocks * stage.v_block + 32, stage.m_stride = blocks * stage.m_block + 32;
  if (!scratch) return stage;
  stage.u = scratch;
  stage.v = stage.u + kPoints * stage_u_stride(channels, plan.columns);
  stage.m = plan.in_place ? stage.v : stage.v + kPoints * stage.v_stride;
  return stage;
}

int64_t stages_scratch(const StagePlan& plan, int64_t channels) {
  const ConvStage stage = stage_of(plan, channels, nullptr);
  return kPoints * (stage_u_stride(channels, plan.columns) + stage.v_stride + (plan.in_place ? 0 : stage.m_stride));
}

}  // namespace fastdiff

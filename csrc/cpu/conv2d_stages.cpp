// The order of the stages, and how large they are.
#include "fastdiff/conv2d_stages.h"

#include "fastdiff/parallel.h"

namespace fastdiff {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// U is at most so large, and V and M together: in the third cache, with others beside them.
constexpr int64_t kMostWeights = int64_t{64} << 20, kMostTiles = int64_t{48} << 20;
// Of V, in three parts, what a thread multiplies at once stays in its second cache.
constexpr int64_t kMostRows = int64_t{1} << 20;

struct Job {
  ConvStage stage;
  ConvStageKernel kernel;
};

void run(Job& job, ConvStageKernel kernel, int64_t units, int num_threads) {
  job.kernel = kernel;
  parallel_for(units, num_threads, [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->stage, begin, end);
  }, &job);
}

}  // namespace

StagePlan plan_stages(int64_t tiles, int64_t channels, int64_t out_channels, int64_t threads) {
  const int64_t panels = divide_up(out_channels, kStagePanel), panel_bytes = stage_u_stride(channels, kStagePanel) * kPoints;
  const int64_t column_rounds = divide_up(panels, at_least(1, kMostWeights / panel_bytes));
  const int64_t columns = divide_up(panels, column_rounds) * kStagePanel;
  const int64_t row_bytes = kPoints * 4 * kStagePanel * (round_up(channels, kChannelBlock) + columns);
  const int64_t rows = divide_up(tiles, kStagePanel), row_rounds = divide_up(rows, at_least(1, kMostTiles / row_bytes));
  const int64_t most = divide_up(rows, row_rounds) * kStagePanel;
  const int64_t step_rows = at_least(1, kMostRows / (round_up(channels, kStageDepth) * 6 * kStagePanel));
  StagePlan plan = {at_most(most, tiles), at_most(columns, out_channels), divide_up(most / kStagePanel, step_rows), 1};
  // Of more threads than there are points some divide the columns.
  const int64_t units = kPoints * plan.row_parts;
  if (units % threads != 0 && units < 4 * threads)
    plan.column_parts = at_most(divide_up(columns, kStagePanel), divide_up(4 * threads, units));
  return plan;
}

int64_t stages_scratch(const StagePlan& plan, int64_t channels) {
  return kPoints * (stage_u_stride(channels, plan.columns) +
                    4 * (stage_v_stride(channels, plan.tiles) + stage_m_stride(plan.tiles, plan.columns)));
}

void conv2d_in_stages(const Conv2d& op, const StagePlan& plan, const ConvStages& stages, void* scratch, int num_threads) {
  const int64_t tiles = op.batch * tiles_of(op.out_height) * tiles_of(op.out_width);
  Job job = {};
  ConvStage& stage = job.stage;
  stage.op = &op, stage.row_parts = plan.row_parts, stage.column_parts = plan.column_parts;
  stage.u = static_cast<uint8_t*>(scratch);
  stage.v = reinterpret_cast<float*>(stage.u + kPoints * stage_u_stride(op.channels, plan.columns));
  stage.m = stage.v + kPoints * stage_v_stride(op.channels, plan.tiles);
  for (stage.column = 0; stage.column < op.out_channels; stage.column += plan.columns) {
    stage.columns = at_most(plan.columns, op.out_channels - stage.column);
    run(job, stages.weights, stage_weights_units(stage), num_threads);
    for (stage.tile = 0; stage.tile < tiles; stage.tile += plan.tiles) {
      stage.tiles = at_most(plan.tiles, tiles - stage.tile);
      const bool there = stage.column > 0 && plan.tiles >= tiles;  // V, from the columns before
      if (!there) run(job, stages.input, stage_input_units(stage), num_threads);
      run(job, stages.products, stage_products_units(stage), num_threads);
      run(job, stages.output, stage_output_units(stage), num_threads);
    }
  }
}

}  // namespace fastdiff

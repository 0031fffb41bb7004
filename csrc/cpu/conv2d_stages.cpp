// The order of the stages, and how large they are.
#include "fastdiff/conv2d_stages.h"

#include "fastdiff/parallel.h"

namespace fastdiff {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// U is at most so large, and V and M together: in the third cache, with others beside them.
constexpr int64_t kMostWeights = int64_t{48} << 20, kMostTiles = int64_t{24} << 20;
// Of V, in three parts, what a thread multiplies at once stays in its second cache.
constexpr int64_t kMostRows = int64_t{1} << 20;

struct Job {
  ConvStage stage;
  ConvStageKernel kernel;
};

void run(Job& job, ConvStageKernel kernel, int64_t units, int num_threads) {
  job.kernel = kernel;
  parallel_for(
      units, num_threads,
      [](void* context, int64_t begin, int64_t end) {
        const Job* job = static_cast<const Job*>(context);
        job->kernel(job->stage, begin, end);
      },
      &job);
}

// Where everything lies; the points of V and M with room against addresses that differ by a multiple of 4096 bytes.
ConvStage stage_of(const StagePlan& plan, int64_t channels, void* scratch) {
  ConvStage stage = {};
  const int64_t blocks = divide_up(plan.tiles, kStagePanel);
  stage.row_parts = plan.row_parts, stage.column_parts = plan.column_parts;
  stage.v_block = kStagePanel * round_up(channels, kChannelBlock),
  stage.m_block = kStagePanel * round_up(plan.columns, kStagePanel);
  if (plan.in_place) stage.v_block = stage.m_block = at_least(stage.v_block, stage.m_block);
  stage.v_stride = blocks * stage.v_block + 32, stage.m_stride = blocks * stage.m_block + 32;
  if (!scratch) return stage;
  stage.u = static_cast<float*>(scratch);
  stage.v = stage.u + kPoints * stage_u_stride(channels, plan.columns);
  stage.m = plan.in_place ? stage.v : stage.v + kPoints * stage.v_stride;
  return stage;
}

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

int64_t stages_scratch(const StagePlan& plan, int64_t channels) {
  const ConvStage stage = stage_of(plan, channels, nullptr);
  return 4 * kPoints * (stage_u_stride(channels, plan.columns) + stage.v_stride + (plan.in_place ? 0 : stage.m_stride));
}

void conv2d_in_stages(const Conv2d& op, const StagePlan& plan, const ConvStages& stages, void* scratch,
                      int num_threads) {
  const int64_t tiles = op.batch * tiles_of(op.out_height) * tiles_of(op.out_width);
  Job job = {};
  ConvStage& stage = job.stage;
  stage = stage_of(plan, op.channels, scratch);
  stage.op = &op;
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

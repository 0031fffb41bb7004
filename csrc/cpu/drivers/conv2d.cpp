// A convolution in one of its ways: its input transformed for all threads first or not, or in stages.
#include <stdexcept>
#include <string>

#include "fastdiff/arena.h"
#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {
namespace {

void in_stages(const Conv2d& op, int threads) {
  const Kernels& all = kernels();
  if (!all.conv2d_stage_products) throw std::invalid_argument(std::string(all.isa) + " has no matrix units");
  const int64_t tiles = tiles_of(op);
  const StagePlan plan = plan_stages(tiles, op.channels, op.out_channels, threads);
  Arena arena;
  ConvStage stage = stage_of(plan, op.channels, arena.take<float>(stages_scratch(plan, op.channels)));
  stage.op = &op;
  for (stage.column = 0; stage.column < op.out_channels; stage.column += plan.columns) {
    stage.columns = at_most(plan.columns, op.out_channels - stage.column);
    run_kernel(all.conv2d_stage_weights, stage, stage_weights_units(stage), threads);
    for (stage.tile = 0; stage.tile < tiles; stage.tile += plan.tiles) {
      stage.tiles = at_most(plan.tiles, tiles - stage.tile);
      const bool there = stage.column > 0 && plan.tiles >= tiles;  // V, from the columns before
      if (!there) run_kernel(all.conv2d_stage_input, stage, stage_input_units(stage), threads);
      run_kernel(all.conv2d_stage_products, stage, stage_products_units(stage), threads);
      run_kernel(all.conv2d_stage_output, stage, stage_output_units(stage), threads);
    }
  }
}

}  // namespace

void conv2d(Conv2d op, int threads) {
  if (op.way == Way::in_stages) return in_stages(op, threads);
  const Kernels& all = kernels();
  const int64_t panel = all.conv2d_panel();
  const ConvPlan plan = op.plan = plan_conv2d(tiles_of(op), op.channels, op.out_channels, panel, op.way, threads);
  Arena arena;
  op.scratch = arena.take<float>(conv2d_scratch(plan, op.channels, panel, op.way));
  if (plan.shared) run_kernel(all.conv2d_input, op, plan.tile_parts * divide_up(op.channels, kChannelBlock), threads);
  run_kernel(all.conv2d_products, op, plan.tile_parts * plan.panel_parts, threads);
}

std::pair<std::map<std::string, int64_t>, int64_t> conv2d_plan(int64_t tiles, int64_t channels, int64_t out_channels,
                                                               Way way, int64_t threads) {
  if (way == Way::in_stages) {
    const StagePlan p = plan_stages(tiles, channels, out_channels, threads);
    return {{{"tiles", p.tiles}, {"columns", p.columns}, {"row_parts", p.row_parts}, {"column_parts", p.column_parts}},
            stages_scratch(p, channels)};
  }
  const int64_t panel = kernels().conv2d_panel();
  const ConvPlan p = plan_conv2d(tiles, channels, out_channels, panel, way, threads);
  return {{{"shared", p.shared},
           {"tile_parts", p.tile_parts},
           {"panel_parts", p.panel_parts},
           {"block", p.block},
           {"group", p.group}},
          conv2d_scratch(p, channels, panel, way)};
}

void conv2d_weights(Conv2dWeights weights, int threads) {
  run_kernel(kernels().conv2d_weights, weights, weights.panels * (weights.channels / kChannelBlock), threads);
}

}  // namespace fastdiff

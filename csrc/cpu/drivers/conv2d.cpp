// A convolution in one of its ways: its input transformed for all threads first or not, or in stages.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "fastdiff/arena.h"
#include "fastdiff/conv2d_wide.h"
#include "fastdiff/drivers.h"
#include "fastdiff/run.h"

namespace fastdiff {
namespace {

constexpr int64_t kSerialTiles = 4096;  // with fewer, threads would be woken for less than their waking takes

// Room for the energies of so many slots; 0 where not all of them are written.
float* take_energies(const Conv2d& op, int64_t slots, Arena& arena) {
  float* energies = arena.take<float>(slots * energies_of(op));
  if (slots > 1) std::fill_n(energies, slots * energies_of(op), 0.0f);
  return energies;
}

// The results of wide tiles, once more and directly.
void mend(const Conv2d& op, int64_t slots, Arena& arena, int threads) {
  const int64_t tiles = tiles_of(op), rows = op.batch * tiles_of(op.out_height);
  bool* wide = arena.take<bool>(tiles);
  parallel_for(rows, tiles > kSerialTiles ? threads : 1,
               [&](int64_t begin, int64_t end) { mark_wide_tiles(op, slots, wide, begin, end); });
  const int64_t count = std::count(wide, wide + tiles, true);
  if (!count) return;
  int64_t* found = arena.take<int64_t>(count);
  for (int64_t tile = 0, next = 0; tile < tiles; ++tile)
    if (wide[tile]) found[next++] = tile;
  const Conv2dDirect direct = {&op, found, count};
  const int64_t vectors = divide_up(op.out_channels, kernels().conv2d_panel() / 2);
  run_kernel(kernels().conv2d_direct, direct, direct_groups(direct) * vectors, threads);
}

void in_stages(Conv2d op, int threads) {
  const Kernels& all = kernels();
  if (!all.conv2d_stage_products) throw std::invalid_argument(std::string(all.isa) + " has no matrix units");
  const int64_t tiles = tiles_of(op);
  const StagePlan plan = plan_stages(tiles, op.channels, op.out_channels, threads);
  Arena arena;
  op.energies = take_energies(op, 1, arena);
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
  mend(op, 1, arena, threads);
}

}  // namespace

void conv2d(Conv2d op, int threads) {
  if (op.way == Way::in_stages) return in_stages(op, threads);
  const Kernels& all = kernels();
  const int64_t panel = all.conv2d_panel();
  const ConvPlan plan = op.plan = plan_conv2d(tiles_of(op), op.channels, op.out_channels, panel, op.way, threads);
  Arena arena;
  op.scratch = arena.take<float>(conv2d_scratch(plan, op.channels, panel, op.way));
  const int64_t blocks = divide_up(op.channels, kChannelBlock), slots = plan.shared ? blocks : 1;
  op.energies = take_energies(op, slots, arena);
  if (plan.shared) run_kernel(all.conv2d_input, op, plan.tile_parts * blocks, threads);
  run_kernel(all.conv2d_products, op, plan.tile_parts * plan.panel_parts, threads);
  mend(op, slots, arena, threads);
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

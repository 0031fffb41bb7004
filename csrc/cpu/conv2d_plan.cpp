// How a convolution is divided among threads, and into blocks that fit L2.
#include "fastdiff/conv2d.h"

namespace fastdiff {
namespace {

constexpr int64_t kFewTiles = 64;  // of a thread: with fewer, its weights are read too often for what is done with them
constexpr int64_t kFewChannels =
    512;  // of input and output: then all of a block stays near, and half as many tiles will do
constexpr int64_t kFlyProducts = 512 << 10;  // bytes of products that stay in L2 beside weights on the fly
constexpr int64_t kManyChannels = 256;       // of input: weights are then read less often, and the block leaves L2

}  // namespace

ConvPlan plan_conv2d(int64_t tiles, int64_t channels, int64_t out_channels, int64_t panel, Way way, int64_t threads) {
  const int64_t panels = divide_up(out_channels, panel);
  const bool on_the_fly = way == Way::on_the_fly;
  threads = at_least(threads, 1);
  const bool few_channels = way == Way::pretransformed && channels + out_channels <= kFewChannels;
  if (!on_the_fly && tiles > (few_channels ? kFewTiles / 2 : kFewTiles) * threads) {
    const int64_t of_part = divide_up(tiles, threads);
    const int64_t wanted = channels < kManyChannels ? 28 : 42;
    const int64_t block = divide_up(of_part, divide_up(of_part, wanted));
    return {false, threads, 1, block, panels};
  }
  // Parts of tiles by parts of panels: as many as there are threads, so that the largest has the least to do; a panel
  // costs about as much as kLoad tiles, for being read.
  constexpr int64_t kLoad = 8;
  ConvPlan best = {true, 1, 1, tiles, panels};
  int64_t least = -1;
  for (int64_t panel_parts = 1; panel_parts <= at_most(threads, panels); ++panel_parts) {
    const int64_t tile_parts = on_the_fly ? 1 : at_least(1, at_most(threads / panel_parts, tiles));
    const int64_t block = divide_up(tiles, tile_parts);
    const int64_t group = divide_up(panels, panel_parts);
    const int64_t cost = group * (block + kLoad);
    if (least < 0 || cost < least) {
      least = cost;
      best = {true, tile_parts, panel_parts, block,
              on_the_fly ? at_most(group, at_least(1, kFlyProducts / (kPoints * 4 * panel * block))) : group};
    }
  }
  return best;
}

int64_t conv2d_scratch(const ConvPlan& plan, int64_t channels, int64_t panel, Way way) {
  const int64_t v = plan.tile_parts * kPoints * input_stride(channels, plan.block);
  const int64_t m = kPoints * product_stride(panel, plan.group, plan.block);
  const int64_t u = way == Way::on_the_fly ? fly_scratch(panel, plan.block) : 0;
  return v + plan.tile_parts * plan.panel_parts * (m + u);
}

}  // namespace fastdiff

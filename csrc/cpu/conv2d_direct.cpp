// Tiles of a 3x3 convolution by the sum as it is written: for those that Winograd's algorithm is too coarse for, see
// conv2d_wide.h. Compiled once an instruction set (see simd.h).
#include "fastdiff/arena.h"
#include "fastdiff/conv2d_filters.h"
#include "fastdiff/conv2d_tiles.h"
#include "fastdiff/conv2d_wide.h"
#include "fastdiff/kernels.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kResults = kOutTile * kOutTile;

// What `channels` channels of a patch from `channel` on add to the sums of a tile.
FASTDIFF_NOINLINE void add_block(const Patch& patch, int64_t channel, int64_t channels, const F* filters, float* sums) {
  F y[kResults];
  FASTDIFF_UNROLL_16
  for (int64_t i = 0; i < kResults; ++i) y[i] = F::broadcast(0);
  for (int64_t c = 0; c < channels; ++c, filters += kTaps) {
    FASTDIFF_UNROLL_16
    for (int64_t i = 0; i < kPatch; ++i) {
      FASTDIFF_UNROLL_16
      for (int64_t j = 0; j < kPatch; ++j) {
        const float* pixel = patch.pixel[i * kPatch + j];
        const F x = F::broadcast(pixel ? pixel[channel + c] : 0.0f);
        FASTDIFF_UNROLL_16
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const int64_t row = i - tap / 3, column = j - tap % 3;
          if (row >= 0 && row < kOutTile && column >= 0 && column < kOutTile)
            y[row * kOutTile + column] = fma(x, filters[tap], y[row * kOutTile + column]);
        }
      }
    }
  }
  FASTDIFF_UNROLL_16
  for (int64_t i = 0; i < kResults; ++i) (F::load(sums + i * kLanes) + y[i]).store(sums + i * kLanes);
}

}  // namespace

void conv2d_direct(const Conv2dDirect& direct, int64_t begin, int64_t end) {
  const Conv2d& op = *direct.op;
  const int64_t groups = direct_groups(direct), tile_sums = kResults * kLanes;
  F filters[kChannelBlock * kTaps];
  Arena arena;
  float* sums = arena.take<float>(kDirectTiles * tile_sums);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t column = unit / groups * kLanes, first = unit % groups * kDirectTiles, left = direct.count - first,
                  count = left < kDirectTiles ? left : kDirectTiles;
    const int64_t* tiles = direct.tiles + first;
    for (int64_t i = 0; i < count * tile_sums; i += kLanes) F::broadcast(0).store(sums + i);
    int64_t before = 0;  // channels of the images before
    for (int n = 0; n < op.num_inputs; before += op.x[n++].channels)
      for (int64_t channel = 0; channel < op.x[n].channels; channel += kChannelBlock) {
        const int64_t more = op.x[n].channels - channel, channels = more < kChannelBlock ? more : kChannelBlock;
        gather_filters<kChannelBlock>(op, column, before + channel, filters);
        for (int64_t t = 0; t < count; ++t)
          add_block(patch_of(op, op.x[n], tile_at(op, tiles[t])), channel, channels, filters, sums + t * tile_sums);
      }
    for (int64_t t = 0; t < count; ++t) {
      F y[kResults];
      for (int64_t i = 0; i < kResults; ++i) y[i] = F::load(sums + t * tile_sums + i * kLanes);
      const Tile tile = tile_at(op, tiles[t]);
      op.silu ? write_tile<true>(op, tile, column, y) : write_tile<false>(op, tile, column, y);
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

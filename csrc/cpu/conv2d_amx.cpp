// 3x3 convolution by Winograd's algorithm (see winograd.h) with the products on AMX, to float32's precision (see
// amx.h), in stages (see conv2d_stages.h). The weights are read as they are and transformed in every call: for many
// tiles this takes less time than reading 36 numbers for 9 from memory would.
#include "fastdiff/amx.h"
#include "fastdiff/arena.h"
#include "fastdiff/conv2d_filters.h"
#include "fastdiff/conv2d_stages.h"
#include "fastdiff/conv2d_tiles.h"
#include "fastdiff/kernels.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16, kTerms = 3;
constexpr int64_t kStep = kTerms * kTileBytes;  // of 32 channels of 16 rows or columns

static_assert(kStageDepth == amx::kDepth && kStagePanel == 2 * kSide, "tiles of AMX");

int64_t steps_of(int64_t channels) { return (channels + kStageDepth - 1) / kStageDepth; }

// V of rows [first, first + rows), in terms, as left factors.
FASTDIFF_NOINLINE void pack_rows(const ConvStage& stage, int64_t point, int64_t first, int64_t rows, uint8_t* to) {
  const int64_t channels = round_up(stage.op->channels, kChannelBlock), steps = steps_of(channels);
  const float* from = stage.v + point * stage.v_stride;
  const __m512i upper_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                                27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int64_t r = 0; r < round_up(rows, kStagePanel); ++r) {
    uint8_t* line = to + r / kSide * steps * kStep + r % kSide * 64;
    const int64_t tile = first + r;
    const float* x =
        tile < stage.tiles ? from + tile / kStagePanel * stage.v_block + tile % kStagePanel * channels : nullptr;
    for (int64_t c = 0; c < channels; c += kStageDepth, line += kStep) {
      const Terms left = split<kTerms>((x ? F::load(x + c) : F::broadcast(0)).v);
      const Terms right = split<kTerms>((x && c + kLanes < channels ? F::load(x + c + kLanes) : F::broadcast(0)).v);
      for (int i = 0; i < kTerms; ++i)
        _mm512_store_si512(line + i * kTileBytes, _mm512_permutex2var_epi16(left.term[i], upper_halves, right.term[i]));
    }
  }
}

// U of a panel of columns in terms, as right factors, a few pairs of channels at a time: the vectors work while the
// matrix unit does.
struct ColumnPacker {
  const float* u;
  uint8_t* to;
  int64_t left;  // pairs of channels of 16 columns, of which 16 make a step
  FASTDIFF_INLINE void pack(int64_t pairs) {
    for (; pairs > 0 && left > 0; --pairs, u += 2 * kSide) {
      const Terms even = split<kTerms>(F::load(u).v), odd = split<kTerms>(F::load(u + kSide).v);
      for (int i = 0; i < kTerms; ++i) _mm512_store_si512(to + i * kTileBytes, pair_lanes(even.term[i], odd.term[i]));
      prefetch_line(u + kAhead);
      prefetch_line(u + kAhead + kSide);
      to += --left % kSide ? 64 : kStep - (kSide - 1) * 64;
    }
  }
  static constexpr int64_t kAhead = 32 * 2 * kSide;  // floats: U comes from the third cache
};

}  // namespace

void conv2d_stage_weights(const ConvStage& stage, int64_t begin, int64_t end) {
  const Conv2d& op = *stage.op;
  const int64_t steps = steps_of(op.channels), stride = stage_u_stride(op.channels, stage.columns);
  alignas(64) F filters[kStageDepth * kTaps];
  for (int64_t unit = begin; unit < end; ++unit) {
    gather_filters<kStageDepth>(op, stage.column + unit / steps * kSide, unit % steps * kStageDepth, filters);
    float* to = stage.u + unit * kStageDepth * kSide;
    for (int64_t channel = 0; channel < kStageDepth; ++channel, to += kSide)
      transform_weight(filters + channel * kTaps, [&](int point, F value) {
        prefetch_to_write(to + point * stride + 2 * kSide);
        value.store(to + point * stride);
      });
  }
}

void conv2d_stage_input(const ConvStage& stage, int64_t begin, int64_t end) {
  const int64_t channels = round_up(stage.op->channels, kChannelBlock);
  transform_tiles(*stage.op, stage.tile + begin, end - begin, 0, channels / kChannelBlock, stage.op->energies,
                  [&](int point, int64_t tile, int64_t channel, F value) {
                    tile += begin;
                    float* to = stage.v + point * stage.v_stride + tile / kStagePanel * stage.v_block +
                                tile % kStagePanel * channels + channel;
                    prefetch_to_write(to + kLanes);
                    value.store(to);
                  });
}

void conv2d_stage_products(const ConvStage& stage, int64_t begin, int64_t end) {
  const TileRegisters registers;
  const int64_t steps = steps_of(stage.op->channels);
  const int64_t panels = round_up(stage.columns, kStagePanel) / kStagePanel,
                blocks = round_up(stage.tiles, kStagePanel) / kStagePanel;
  const int64_t most = (blocks + stage.row_parts - 1) / stage.row_parts, side = steps * kStep;
  Arena arena;
  uint8_t* columns = arena.take<uint8_t>(4 * side);  // two panels, in turn
  uint8_t* rows = arena.take<uint8_t>(most * 2 * side);
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit / stage.column_parts, point = part / stage.row_parts;
    const int64_t first = part_begin(blocks, stage.row_parts, part % stage.row_parts);
    const int64_t last = part_begin(blocks, stage.row_parts, part % stage.row_parts + 1);
    if (packed != part) pack_rows(stage, point, first * kStagePanel, (last - first) * kStagePanel, rows);
    packed = part;
    const float* u = stage.u + point * stage_u_stride(stage.op->channels, stage.columns);
    float* m = stage.m + point * stage.m_stride;
    const int64_t left = part_begin(panels, stage.column_parts, unit % stage.column_parts);
    const int64_t right = part_begin(panels, stage.column_parts, unit % stage.column_parts + 1);
    const int64_t size = steps * kStageDepth * kStagePanel, pairs = steps * kStagePanel;  // of a panel
    const int64_t turn = (pairs - 1) / ((last - first) * steps * 6) + 1;  // `multiply` has six turns a step
    ColumnPacker packer = {u + left * size, columns + left % 2 * 2 * side, pairs};
    packer.pack(pairs);
    for (int64_t panel = left; panel < right; ++panel) {
      const uint8_t* now = columns + panel % 2 * 2 * side;
      packer = {u + (panel + 1) * size, columns + (panel + 1) % 2 * 2 * side, panel + 1 < right ? pairs : 0};
      for (int64_t block = first; block < last; ++block) {
        float* sums = m + block * stage.m_block + panel * kStagePanel * kStagePanel;
        const float *written = sums, *end = sums + kStagePanel * kStagePanel;
        multiply(rows + (block - first) * 2 * side, side, now, side, steps, sums, [&] {
          packer.pack(turn);
          for (int i = 0; i < 4 && written < end; ++i, written += kLanes) prefetch_to_write(written);
        });
      }
    }
  }
}

void conv2d_stage_output(const ConvStage& stage, int64_t begin, int64_t end) {
  const Conv2d& op = *stage.op;
  const int64_t panels = round_up(stage.columns, kStagePanel) / kStagePanel;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / panels, panel = unit % panels, first = block * kStagePanel;
    const int64_t channel = stage.column + panel * kStagePanel;
    const float* m = stage.m + block * stage.m_block + panel * kStagePanel * kStagePanel;
    for (int64_t t = 0; t < kStagePanel && first + t < stage.tiles; ++t) {
      const Tile tile = tile_at(op, stage.tile + first + t);
      for (int64_t part = 0; part < kStagePanel && channel + part < op.out_channels; part += kLanes) {
        const float* from = m + t * kStagePanel + part;
        F y[kOutTile * kOutTile];
        transform_output(
            [&](int point) {
              prefetch_line(from + point * stage.m_stride + 2 * kStagePanel);  // of the tile after the next one
              return F::load(from + point * stage.m_stride);
            },
            y);
        op.silu ? write_tile<true>(op, tile, channel + part, y) : write_tile<false>(op, tile, channel + part, y);
      }
    }
  }
}

}  // namespace fastdiff::amx

// 3x3 convolution by Winograd's algorithm (see conv2d.cpp) with the products on AMX, to float32's precision: see amx.h.
//
// V: [point][tiles / 16][channels / 32][3 parts] of AMX tiles, 16 tiles of the image by 32 channels. U: [point][panel][channels / 32]
// [3 parts][2 vectors of output channels]. M: as there, with room for whole AMX tiles.
#include "fastdiff/amx.h"
#include "fastdiff/conv2d_tiles.h"
#include "fastdiff/kernels.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16, kParts = 3;
constexpr int64_t kStep = kParts * kTileBytes;  // bytes of kDepth channels: of 16 tiles, and of a vector of output channels
constexpr int64_t kChunk = 128;                 // channels whose weights, of a panel, stay in the first cache

int64_t steps_of(int64_t channels) { return (channels + kDepth - 1) / kDepth; }

FASTDIFF_NOINLINE void transform_input(const Conv2d& op, int64_t first, int64_t count, int64_t begin, int64_t end, int64_t room, uint8_t* v) {
  const int64_t steps = steps_of(op.channels), stride = tiled_input_stride(op.channels, room);
  const auto place = [&](int64_t tile, int64_t channel) {
    return v + (tile / kSide * steps + channel / kDepth) * kStep + tile % kSide * 64 + channel % kDepth * 2;
  };
  transform_tiles(op, first, count, begin, end, [&](int point, int64_t tile, int64_t channel, F value) {
    uint8_t* to = place(tile, channel) + point * stride;
    // The lines of the next step, which come from the third cache to be written.
    for (int i = 0; i < kParts && channel % kDepth == 0; ++i)
      _mm_prefetch(reinterpret_cast<const char*>(to + kStep + i * kTileBytes), _MM_HINT_T1);
    const Parts parts = split<kParts>(value.v);
    for (int i = 0; i < kParts; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(to + i * kTileBytes), narrow(parts.part[i]));
  });
  const int64_t blocks = round_up(op.channels, kChannelBlock) / kChannelBlock;
  if (blocks % 2 == 0 || end < blocks) return;
  for (int64_t tile = 0; tile < count; ++tile)  // the other half of the last step
    for (int64_t point = 0; point < kPoints; ++point)
      for (int64_t i = 0; i < kParts; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(place(tile, blocks * kChannelBlock) + point * stride + i * kTileBytes),
                           _mm256_setzero_si256());
}

// The tiles of the right factor that a step reads: those of part i of vector j at b + (2 * i + j) * kTileBytes.
#define FASTDIFF_LOAD_RIGHT(part)                                      \
  FASTDIFF_TILE_LOAD(6, b + (2 * (part)) * kTileBytes, 64);            \
  FASTDIFF_TILE_LOAD(7, b + (2 * (part) + 1) * kTileBytes, 64)
#define FASTDIFF_MULTIPLY_UPPER   \
  FASTDIFF_TILE_MULTIPLY(0, 4, 6); \
  FASTDIFF_TILE_MULTIPLY(1, 4, 7)
#define FASTDIFF_MULTIPLY_LOWER   \
  FASTDIFF_TILE_MULTIPLY(2, 5, 6); \
  FASTDIFF_TILE_MULTIPLY(3, 5, 7)

// What will be read soon, and comes from memory or the third cache: `lines` lines are asked for with each step.
struct Ahead {
  const uint8_t* data;
  int64_t lines;
  void ask() {
    for (const uint8_t* end = data + lines * 64; data < end; data += 64)
      _mm_prefetch(reinterpret_cast<const char*>(data), _MM_HINT_T1);
  }
};

// M (+)= A B of 32 rows (of 16 where not both) and a panel. lower: bytes from the upper 16 rows of A to the others.
template <bool both>
void multiply_rows(const uint8_t* a, int64_t lower, const uint8_t* b, int64_t steps, bool add, Ahead& next_b, Ahead& next_a,
                   float* m) {
  constexpr int64_t row = kPanel * sizeof(float);
  float* m_lower = m + kSide * kPanel;
  if (add) {
    FASTDIFF_TILE_LOAD(0, m, row);
    FASTDIFF_TILE_LOAD(1, m + kSide, row);
    if (both) {
      FASTDIFF_TILE_LOAD(2, m_lower, row);
      FASTDIFF_TILE_LOAD(3, m_lower + kSide, row);
    }
  } else {
    FASTDIFF_TILE_ZERO(0);
    FASTDIFF_TILE_ZERO(1);
    FASTDIFF_TILE_ZERO(2);
    FASTDIFF_TILE_ZERO(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += kStep, b += 2 * kStep) {
    next_b.ask();
    next_a.ask();
    FASTDIFF_TILE_LOAD(4, a, 64);
    FASTDIFF_LOAD_RIGHT(2);
    if (both) FASTDIFF_TILE_LOAD(5, a + lower, 64);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_MULTIPLY_LOWER;
    }
    FASTDIFF_LOAD_RIGHT(1);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_MULTIPLY_LOWER;
    }
    FASTDIFF_LOAD_RIGHT(0);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_MULTIPLY_LOWER;
    }
    FASTDIFF_TILE_LOAD(4, a + 2 * kTileBytes, 64);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_TILE_LOAD(5, a + lower + 2 * kTileBytes, 64);
      FASTDIFF_MULTIPLY_LOWER;
    }
    FASTDIFF_TILE_LOAD(4, a + kTileBytes, 64);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_TILE_LOAD(5, a + lower + kTileBytes, 64);
      FASTDIFF_MULTIPLY_LOWER;
    }
    FASTDIFF_LOAD_RIGHT(1);
    FASTDIFF_MULTIPLY_UPPER;
    if (both) {
      FASTDIFF_MULTIPLY_LOWER;
    }
  }
  FASTDIFF_TILE_STORE(0, m, row);
  FASTDIFF_TILE_STORE(1, m + kSide, row);
  if (both) {
    FASTDIFF_TILE_STORE(2, m_lower, row);
    FASTDIFF_TILE_STORE(3, m_lower + kSide, row);
  }
}

// M of panels [begin, end) from V of `groups` times 16 tiles.
FASTDIFF_NOINLINE void multiply(const Conv2d& op, const uint8_t* v, int64_t room, int64_t groups, int64_t begin, int64_t end, int64_t m_stride, float* m) {
  const TileRegisters registers;
  const int64_t steps = steps_of(op.channels), panels = (op.out_channels + kPanel - 1) / kPanel;
  const int64_t v_stride = tiled_input_stride(op.channels, room), panel_size = steps * 2 * kStep;
  const int64_t chunks = (op.channels + kChunk - 1) / kChunk, pairs = (groups + 1) / 2;
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(op.weights);
  for (int64_t point = 0; point < kPoints; ++point) {
    const int64_t lines = groups * kStep / 64, turns = (end - begin) * pairs;  // of a step; how often a step is multiplied
    Ahead next_a = {v + (point + 1) * v_stride, point + 1 < kPoints ? (lines + turns - 1) / turns : 0};
    for (int64_t panel = begin; panel < end; ++panel) {
      const uint8_t* u = weights + (point * panels + panel) * panel_size;
      float* to = m + point * m_stride + (panel - begin) * room * kPanel;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t first = steps * chunk / chunks, count = steps * (chunk + 1) / chunks - first;
        const uint8_t* b = u + first * 2 * kStep;
        Ahead next_b = {b + count * 2 * kStep, (2 * kStep / 64 + pairs - 1) / pairs};
        for (int64_t group = 0; group < groups; group += 2) {
          const uint8_t* a = v + point * v_stride + (group * steps + first) * kStep;
          float* rows = to + group * kSide * kPanel;
          group + 1 < groups ? multiply_rows<true>(a, steps * kStep, b, count, chunk > 0, next_b, next_a, rows)
                             : multiply_rows<false>(a, 0, b, count, chunk > 0, next_b, next_a, rows);
        }
      }
    }
  }
}

}  // namespace

void conv2d_weights(const float* filters, int64_t channels, int64_t panels, float* weights, int64_t begin, int64_t end) {
  const int64_t steps = steps_of(channels), stride = panels * steps * 2 * kStep;
  for (int64_t unit = begin; unit < end; ++unit) {  // a step of a panel
    const int64_t panel = unit / steps, c = unit % steps * kDepth;
    uint8_t* to = reinterpret_cast<uint8_t*>(weights) + (panel * steps + unit % steps) * 2 * kStep;
    for (int64_t pair = 0; pair < kDepth; pair += 2)
      for (int64_t vector = 0; vector < 2; ++vector) {
        F transformed[2][kPoints];
        for (int64_t i = 0; i < 2; ++i) {
          F g[9];
          for (int64_t j = 0; j < 9; ++j)
            g[j] = c + pair < channels ? F::load(filters + ((panel * channels + c + pair + i) * 9 + j) * kPanel + vector * kLanes)
                                       : F::broadcast(0);
          transform_weight(g, [&](int point, F value) { transformed[i][point] = value; });
        }
        for (int64_t point = 0; point < kPoints; ++point) {
          const Parts left = split<kParts>(transformed[0][point].v), right = split<kParts>(transformed[1][point].v);
          for (int64_t i = 0; i < kParts; ++i)
            _mm512_store_si512(to + point * stride + (2 * i + vector) * kTileBytes + pair / 2 * 64,
                               pair_lanes(left.part[i], right.part[i]));
        }
      }
  }
}

void conv2d_input(const Conv2d& op, int64_t begin, int64_t end) {
  const int64_t tiles = op.batch * tiles_of(op.out_height) * tiles_of(op.out_width);
  const int64_t blocks = round_up(op.channels, kChannelBlock) / kChannelBlock;
  const int64_t size = kPoints * tiled_input_stride(op.channels, op.plan.block);
  for (int64_t unit = begin; unit < end;) {
    const int64_t part = unit / blocks, block = unit % blocks;
    const int64_t stop = end - unit < blocks - block ? block + end - unit : blocks;
    const int64_t first = part_begin(tiles, op.plan.tile_parts, part), last = part_begin(tiles, op.plan.tile_parts, part + 1);
    transform_input(op, first, last - first, block, stop, op.plan.block, reinterpret_cast<uint8_t*>(op.scratch) + part * size);
    unit += stop - block;
  }
}

void conv2d_products(const Conv2d& op, int64_t begin, int64_t end) {
  const ConvPlan& plan = op.plan;
  const int64_t tiles = op.batch * tiles_of(op.out_height) * tiles_of(op.out_width);
  const int64_t panels = (op.out_channels + kPanel - 1) / kPanel, blocks = round_up(op.channels, kChannelBlock) / kChannelBlock;
  const int64_t v_size = kPoints * tiled_input_stride(op.channels, plan.block);  // bytes
  const int64_t m_stride = product_stride(kPanel, plan.group, plan.block), m_size = kPoints * m_stride;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit / plan.panel_parts;
    uint8_t* v = reinterpret_cast<uint8_t*>(op.scratch) + part * v_size;
    float* m = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(op.scratch) + plan.tile_parts * v_size) + unit * m_size;
    const int64_t first = part_begin(tiles, plan.tile_parts, part), last = part_begin(tiles, plan.tile_parts, part + 1);
    const int64_t left = part_begin(panels, plan.panel_parts, unit % plan.panel_parts);
    const int64_t right = part_begin(panels, plan.panel_parts, unit % plan.panel_parts + 1);
    for (int64_t tile = first; tile < last; tile += plan.block) {
      const int64_t count = last - tile < plan.block ? last - tile : plan.block;
      if (!plan.shared) transform_input(op, tile, count, 0, blocks, plan.block, v);
      for (int64_t panel = left; panel < right; panel += plan.group) {
        const int64_t stop = panel + plan.group < right ? panel + plan.group : right;
        multiply(op, v, plan.block, (count + kSide - 1) / kSide, panel, stop, m_stride, m);
        transform_products(op, tile, count, panel, stop, plan.block, m_stride, m);
      }
    }
  }
}

}  // namespace fastdiff::amx

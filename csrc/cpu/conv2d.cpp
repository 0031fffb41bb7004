// 3x3 convolution by Winograd's algorithm (see winograd.h), channels last: patches of the input are transformed,
// multiplied with transformed weights at each of 36 points, and transformed back, with what follows a convolution in a
// network added on the way out. Compiled once an instruction set (see simd.h).
//
// V, the transformed input of a block of tiles: [point][channels / 16][tiles][16]. U, the transformed weights:
// [point][panel][channels][kPanel]. M, their products: [point][panel][tiles][kPanel].
#include "fastdiff/conv2d_tiles.h"
#include "fastdiff/kernels.h"
#include "fastdiff/panels.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kAheadOfProduct =
    9 * kChannelBlock * kPanel / kPoints;  // numbers of the next filters for a product on the fly

// V of the tiles [first, first + count) and the blocks of channels [begin, end). room: tiles that V has space for.
FASTDIFF_NOINLINE void transform_input(const Conv2d& op, int64_t first, int64_t count, int64_t begin, int64_t end,
                                       int64_t room, float* v) {
  const int64_t stride = input_stride(op.channels, room);
  float* energies = op.energies + begin * energies_of(op);
  transform_tiles(op, first, count, begin, end, energies, [&](int point, int64_t tile, int64_t channel, F value) {
    const int64_t inside = channel % kChannelBlock;
    value.store(v + point * stride + (channel - inside) * room + tile * kChannelBlock + inside);
  });
}

// body(nine vectors, where they go in [channels][kPanel]) for filters [channels][9][kPanel].
template <class Body>
FASTDIFF_INLINE void each_filter(const float* filters, int64_t channels, const Body& body) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t part = 0; part < kPanel; part += kLanes) {
      F g[9];
      for (int i = 0; i < 9; ++i) g[i] = F::load(filters + (c * 9 + i) * kPanel + part);
      body(g, c * kPanel + part);
    }
}

// U of a block of channels of a panel, `stride` floats between points.
FASTDIFF_NOINLINE void transform_filters(const float* filters, int64_t stride, float* u) {
  each_filter(filters, kChannelBlock, [&](const F* g, int64_t to) {
    transform_weight(g, [&](int point, F value) { value.store(u + point * stride + to); });
  });
}

// The same for the points of a pair of rows only.
template <int pair>
FASTDIFF_NOINLINE void transform_filters_pair(const float* filters, int64_t stride, float* u) {
  each_filter(filters, kChannelBlock, [&](const F* g, int64_t to) {
    transform_weight_pair<pair>(g, [&](int n, F value) { value.store(u + n * stride + to); });
  });
}

// M of panels [begin, end) from V of `count` tiles.
FASTDIFF_NOINLINE void multiply(const Conv2d& op, const float* v, int64_t room, int64_t count, int64_t begin,
                                int64_t end, int64_t m_stride, float* m) {
  const int64_t channels = round_up(op.channels, kChannelBlock), panels = (op.out_channels + kPanel - 1) / kPanel;
  const int64_t v_stride = input_stride(op.channels, room), panel_size = channels * kPanel;
  for (int64_t point = 0; point < kPoints; ++point)
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* u = op.weights + (point * panels + panel) * panel_size;
      const float* next = panel + 1 < end ? u + panel_size : u + (panels - (end - begin) + 1) * panel_size;
      multiply_panel(v + point * v_stride, room, count, u, channels, next,
                     m + point * m_stride + (panel - begin) * room * kPanel);
    }
}

// What channels [first, last) of a panel add to the points of a pair of rows of M, which the first channels begin. The
// weights of a block of channels are transformed here, and stay in L1 with the sums of their products.
// ahead: filters that come next, from memory, of which each product asks for a part.
template <int pair>
FASTDIFF_NOINLINE void multiply_pair(const Conv2d& op, const float* v, int64_t room, int64_t count,
                                     const float* filters, int64_t first, int64_t last, const float* ahead,
                                     int64_t m_stride, float* scratch, float* m) {
  const int64_t v_stride = input_stride(op.channels, room), u_stride = fly_stride(kPanel),
                sum_stride = product_stride(kPanel, 1, room);
  float *u = scratch, *sums = u + kPairPoints * u_stride;
  for (int64_t c = first; c < last; c += kChannelBlock) {
    transform_filters_pair<pair>(filters + c * 9 * kPanel, u_stride, u);
    const bool done = c + kChannelBlock == last;
    for (int64_t n = 0; n < kPairPoints; ++n, ahead += kAheadOfProduct) {
      for (int64_t i = 0; i < kAheadOfProduct; i += 64 / sizeof(float)) prefetch_far(ahead + i);
      const int64_t point = point_of_pair(pair, n);
      float* sum = sums + n * sum_stride;
      multiply_block(v + point * v_stride + c * room, room, count, u + n * u_stride, c > first ? sum : nullptr,
                     done && first > 0, done ? m + point * m_stride : sum);
    }
  }
}

// M as above, to the bit, with weights that are transformed in passing, for few tiles.
FASTDIFF_NOINLINE void multiply_on_the_fly(const Conv2d& op, const float* v, int64_t room, int64_t count, int64_t begin,
                                           int64_t end, int64_t m_stride, float* scratch, float* m) {
  const int64_t channels = round_up(op.channels, kChannelBlock), parts = sums_of(channels);
  // Channels outside, so that what is read of V stays near for all panels.
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = sum_begin(channels, parts, part), last = sum_begin(channels, parts, part + 1);
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* filters = op.weights + panel * channels * 9 * kPanel;
      const float* ahead = panel + 1 < end ? filters + (channels + first) * 9 * kPanel
                                           : op.weights + (begin * channels + last) * 9 * kPanel;
      const int64_t share = (last - first) * 3 * kPanel;  // of a pair of rows
      float* to = m + (panel - begin) * room * kPanel;
      multiply_pair<0>(op, v, room, count, filters, first, last, ahead, m_stride, scratch, to);
      multiply_pair<1>(op, v, room, count, filters, first, last, ahead + share, m_stride, scratch, to);
      multiply_pair<2>(op, v, room, count, filters, first, last, ahead + 2 * share, m_stride, scratch, to);
    }
  }
}

// The outputs of tiles [first, first + count) and panels [begin, end) from their products, which have room for `room`
// tiles.
FASTDIFF_NOINLINE void transform_products(const Conv2d& op, int64_t first, int64_t count, int64_t begin, int64_t end,
                                          int64_t room, int64_t stride, const float* m) {
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = tile_at(op, first + t);
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t part = 0; part < kPanel && panel * kPanel + part < op.out_channels; part += kLanes) {
        const float* from = m + ((panel - begin) * room + t) * kPanel + part;
        F y[kOutTile * kOutTile];
        transform_output(
            [&](int point) {
              prefetch_line(from + point * stride + 2 * kPanel);  // of the tile after the next one
              return F::load(from + point * stride);
            },
            y);
        const int64_t channel = panel * kPanel + part;
        op.silu ? write_tile<true>(op, tile, channel, y) : write_tile<false>(op, tile, channel, y);
      }
  }
}

}  // namespace

int64_t conv2d_panel() { return kPanel; }

void conv2d_weights(const Conv2dWeights& weights, int64_t begin, int64_t end) {
  const int64_t channels = weights.channels, blocks = channels / kChannelBlock;
  for (int64_t unit = begin; unit < end; ++unit) {  // a block of channels of a panel
    const int64_t panel = unit / blocks, c = unit % blocks * kChannelBlock;
    transform_filters(weights.filters + (panel * channels + c) * 9 * kPanel, weights.panels * channels * kPanel,
                      weights.u + (panel * channels + c) * kPanel);
  }
}

void conv2d_input(const Conv2d& op, int64_t begin, int64_t end) {
  const int64_t tiles = tiles_of(op);
  const int64_t blocks = divide_up(op.channels, kChannelBlock);
  const int64_t size = kPoints * input_stride(op.channels, op.plan.block);
  for (int64_t unit = begin; unit < end;) {
    const int64_t part = unit / blocks, block = unit % blocks;
    const int64_t stop = end - unit < blocks - block ? block + end - unit : blocks;
    const int64_t first = part_begin(tiles, op.plan.tile_parts, part),
                  last = part_begin(tiles, op.plan.tile_parts, part + 1);
    transform_input(op, first, last - first, block, stop, op.plan.block, op.scratch + part * size);
    unit += stop - block;
  }
}

void conv2d_products(const Conv2d& op, int64_t begin, int64_t end) {
  const ConvPlan& plan = op.plan;
  const int64_t tiles = tiles_of(op);
  const int64_t panels = (op.out_channels + kPanel - 1) / kPanel,
                blocks = round_up(op.channels, kChannelBlock) / kChannelBlock;
  const int64_t v_size = kPoints * input_stride(op.channels, plan.block);
  const int64_t m_stride = product_stride(kPanel, plan.group, plan.block), m_size = kPoints * m_stride;
  const int64_t u_size = op.way == Way::on_the_fly ? fly_scratch(kPanel, plan.block) : 0;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t part = unit / plan.panel_parts;
    float* v = op.scratch + part * v_size;
    float* m = op.scratch + plan.tile_parts * v_size + unit * (m_size + u_size);
    const int64_t first = part_begin(tiles, plan.tile_parts, part), last = part_begin(tiles, plan.tile_parts, part + 1);
    const int64_t left = part_begin(panels, plan.panel_parts, unit % plan.panel_parts);
    const int64_t right = part_begin(panels, plan.panel_parts, unit % plan.panel_parts + 1);
    const int64_t rounds = (last - first + plan.block - 1) / plan.block;
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t tile = first + part_begin(last - first, rounds, round);
      const int64_t count = first + part_begin(last - first, rounds, round + 1) - tile;
      if (!plan.shared) transform_input(op, tile, count, 0, blocks, plan.block, v);
      for (int64_t panel = left; panel < right; panel += plan.group) {
        const int64_t stop = panel + plan.group < right ? panel + plan.group : right;
        op.way == Way::on_the_fly ? multiply_on_the_fly(op, v, plan.block, count, panel, stop, m_stride, m + m_size, m)
                                  : multiply(op, v, plan.block, count, panel, stop, m_stride, m);
        transform_products(op, tile, count, panel, stop, plan.block, m_stride, m);
      }
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

// Products of tall matrices with panels of packed columns, in float32: what Winograd's algorithm spends its time with.
// For the files that are compiled once an instruction set (see simd.h).
//
// A: [channels / 16][tiles][16]. B: [channels][kPanel], the columns of a panel. M: [tiles][kPanel].
#pragma once

#include "fastdiff/conv2d_tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// R rows. a_block: floats from one block of channels to the next. next: what the next call reads of B, of which `Lines`
// lines are prefetched with every channel; the processor would not see them coming, and they come from memory. before:
// null, or sums that are gone on with. add: to what is in m.
template <int R, int Lines>
FASTDIFF_NOINLINE void panel_product(const float* a, int64_t a_block, const float* b, int64_t channels,
                                     const float* next, const float* before, bool add, float* m) {
  F sums[R][2];
  FASTDIFF_UNROLL_16
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 2; ++c) sums[r][c] = before ? F::load(before + r * kPanel + c * kLanes) : F::broadcast(0);
  for (int64_t block = 0; block < channels; block += kChannelBlock, a += a_block) {
    FASTDIFF_UNROLL_2
    for (int64_t k = 0; k < kChannelBlock; ++k, b += kPanel, next += Lines * kLanes) {
      if (Lines > 0 && (kLanes == 16 || k % 2 == 0)) {
        prefetch_line(next);
        if (Lines > 1) prefetch_line(next + kLanes);
      }
      const F left = F::load(b), right = F::load(b + kLanes);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < R; ++r) {
        const F x = F::broadcast(a[r * kChannelBlock + k]);
        sums[r][0] = fma(x, left, sums[r][0]);
        sums[r][1] = fma(x, right, sums[r][1]);
      }
    }
  }
  FASTDIFF_UNROLL_16
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 2; ++c) {
      float* to = m + r * kPanel + c * kLanes;
      (add ? F::load(to) + sums[r][c] : sums[r][c]).store(to);
    }
}

using PanelProduct = void (*)(const float* a, int64_t a_block, const float* b, int64_t channels, const float* next,
                              const float* before, bool add, float* m);
struct PanelProducts {
  PanelProduct of[kRows<2> + 1][3];  // by rows and lines
};
template <int R>
constexpr void fill(PanelProducts& products) {
  products.of[R][0] = panel_product<R, 0>;
  products.of[R][1] = panel_product<R, 1>;
  products.of[R][2] = panel_product<R, 2>;
  if constexpr (R > 1) fill<R - 1>(products);
}
constexpr PanelProducts panel_products() {
  PanelProducts products = {};
  fill<kRows<2>>(products);
  return products;
}
constexpr PanelProducts kPanelProducts = panel_products();

// M (+)= A B for `tiles` tiles and `channels` channels, a multiple of 16. a has room for `room` tiles in a block. next:
// the panel after this one.
inline void multiply_panel(const float* a, int64_t room, int64_t tiles, const float* b, int64_t channels,
                           const float* next, float* m) {
  const Tiles<2> rows(tiles);
  const int64_t parts = sums_of(channels);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = sum_begin(channels, parts, part), end = sum_begin(channels, parts, part + 1);
    // Of equal size as the part at hand: beyond the end of the next panel, where that is shorter, nothing is lost.
    const float* after = part + 1 < parts ? b + end * kPanel : next;
    const float* a_part = a + begin * room;
    for (int64_t tile = 0; tile < rows.count; ++tile) {
      const int64_t first = rows.begin(tile), count = rows.begin(tile + 1) - first;
      const int lines = rows.count == 1 ? 2 : tile < 2 ? 1 : 0;
      kPanelProducts.of[count][lines](a_part + first * kChannelBlock, room * kChannelBlock, b + begin * kPanel,
                                      end - begin, after + (tile == 1 ? (end - begin) * kLanes : 0), nullptr, part > 0,
                                      m + first * kPanel);
    }
  }
}

// The same for one block of channels, of which nothing need be prefetched: the products go on with the sums at
// `before`, or begin, and go to m, added to what is there or not.
inline void multiply_block(const float* a, int64_t room, int64_t tiles, const float* b, const float* before, bool add,
                           float* m) {
  const Tiles<2> rows(tiles);
  for (int64_t tile = 0; tile < rows.count; ++tile) {
    const int64_t first = rows.begin(tile), count = rows.begin(tile + 1) - first;
    kPanelProducts.of[count][0](a + first * kChannelBlock, room * kChannelBlock, b, kChannelBlock, b,
                                before ? before + first * kPanel : nullptr, add, m + first * kPanel);
  }
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

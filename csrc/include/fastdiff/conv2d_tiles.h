// Where the patches of a 3x3 convolution come from, and what is made of the products on the way out: shared by the ways
// to multiply. For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/conv2d.h"
#include "fastdiff/conv2d_wide.h"
#include "fastdiff/winograd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kPanel = 2 * kLanes;                // output channels that are computed at once
constexpr int64_t kVectors = kChannelBlock / kLanes;  // of a block of channels

struct Tile {
  int64_t sample, row, column;  // of the output
};
Tile tile_at(const Conv2d& op, int64_t index) {
  const int64_t across = tiles_of(op.out_width), down = tiles_of(op.out_height);
  return {index / (across * down), index / across % down * kOutTile, index % across * kOutTile};
}

// The pixels of a patch, null where it lies in the padding.
struct Patch {
  const float* pixel[kPoints];
  bool whole;
};
Patch patch_of(const Conv2d& op, const Image& x, const Tile& tile) {
  Patch patch;
  patch.whole = true;
  for (int64_t i = 0; i < kPatch; ++i)
    for (int64_t j = 0; j < kPatch; ++j) {
      const int64_t row = tile.row + i - op.padding, column = tile.column + j - op.padding;
      const bool inside = row >= 0 && row < op.height && column >= 0 && column < op.width;
      patch.whole = patch.whole && inside;
      patch.pixel[i * kPatch + j] =
          inside ? x.data + tile.sample * x.batch + (row >> op.upsample) * x.row + (column >> op.upsample) * x.column
                 : nullptr;
    }
  return patch;
}

// The energies over channels [from, to) of an image, of the pixels that no tile to the right or below has in its patch
// too. more: to what is there.
[[maybe_unused]] FASTDIFF_NOINLINE void put_energies(const Conv2d& op, const Tile& tile, const Patch& patch,
                                                     int64_t from, int64_t to, bool more, float* energies) {
  const int64_t rows = tile.row + kOutTile < op.out_height ? kOutTile : kPatch,
                columns = tile.column + kOutTile < op.out_width ? kOutTile : kPatch, width = energy_columns(op);
  float* corner = energies + (tile.sample * energy_rows(op) + tile.row) * width + tile.column;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const float* pixel = patch.pixel[i * kPatch + j];
      float energy = 0;
      if (pixel) {
        F squares = F::broadcast(0);
        int64_t c = from;
        for (; c + kLanes <= to; c += kLanes) {
          const F x = F::load(pixel + c);
          squares = fma(x, x, squares);
        }
        if (c < to) {
          const F x = load_some(pixel + c, to - c);
          squares = fma(x, x, squares);
        }
        energy = sum(squares);
      }
      corner[i * width + j] = more ? corner[i * width + j] + energy : energy;
    }
}

// Transforms the patches of tiles [first, first + count) and the blocks of channels [begin, end): store(point, tile,
// channel, vector), the tile counted from first. energies: of the slot of these channels.
template <class Store>
void transform_tiles(const Conv2d& op, int64_t first, int64_t count, int64_t begin, int64_t end, float* energies,
                     const Store& store_vector) {
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = tile_at(op, first + t);
    bool more = false;
    int64_t before = 0;  // channels of the images before
    for (int n = 0; n < op.num_inputs; before += op.x[n++].channels) {
      const Image& x = op.x[n];
      const int64_t from = begin * kChannelBlock - before, to = end * kChannelBlock - before;
      if (to <= 0 || from >= x.channels) continue;
      const Patch patch = patch_of(op, x, tile);
      put_energies(op, tile, patch, from > 0 ? from : 0, to < x.channels ? to : x.channels, more, energies);
      more = true;
      for (int64_t c = from > 0 ? from : 0; c < to && c < x.channels; c += kChannelBlock)
        for (int64_t part = 0; part < kVectors; ++part) {
          const int64_t channel = c + part * kLanes, left = x.channels - channel;
          const auto store = [&](int point, F value) { store_vector(point, t, before + channel, value); };
          if (left <= 0) {
            for (int point = 0; point < kPoints; ++point) store(point, F::broadcast(0));
          } else if (patch.whole && left >= kLanes) {
            transform_patch([&](int i, int j) { return F::load(patch.pixel[i * kPatch + j] + channel); }, store);
          } else {
            const int64_t size = left < kLanes ? left : kLanes;
            transform_patch(
                [&](int i, int j) {
                  const float* p = patch.pixel[i * kPatch + j];
                  return p ? load_up_to(p + channel, size) : F::broadcast(0);
                },
                store);
          }
        }
    }
  }
}

// What is added to a vector of channels of the output, and where it goes.
template <bool silu_after>
void write_tile(const Conv2d& op, const Tile& tile, int64_t channel, const F* y) {
  const int64_t left = op.out_channels - channel, size = left < kLanes ? left : kLanes;
  F bias = F::broadcast(0);
  if (op.bias) bias = load_up_to(op.bias + channel, size);
  if (op.channel_bias) bias = bias + load_up_to(op.channel_bias + tile.sample * op.channel_bias_row + channel, size);
  const F scale = F::broadcast(op.scale);
  const int64_t rows = op.out_height - tile.row < kOutTile ? op.out_height - tile.row : kOutTile;
  const int64_t columns = op.out_width - tile.column < kOutTile ? op.out_width - tile.column : kOutTile;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      F value = y[i * kOutTile + j] + bias;
      const int64_t row = tile.row + i, column = tile.column + j;
      if (op.residual.data)
        value = value + load_up_to(op.residual.data + tile.sample * op.residual.batch + row * op.residual.row +
                                       column * op.residual.column + channel,
                                   size);
      if (silu_after) value = silu(value);
      value = value * scale;
      float* to = op.out + ((tile.sample * op.out_height + row) * op.out_width + column) * op.out_channels + channel;
      size == kLanes ? value.store(to) : store_some(to, value, size);
    }
}

inline int64_t part_begin(int64_t count, int64_t parts, int64_t part) { return count * part / parts; }

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

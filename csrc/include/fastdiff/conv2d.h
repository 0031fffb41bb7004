// 3x3 convolutions by Winograd's algorithm: what the kernels are given, and how the work is divided. Raw pointers and
// sizes.
#pragma once

#include <stdint.h>

#include "fastdiff/sizes.h"

namespace fastdiff {

// F(4x4, 3x3): an output tile of 4x4 pixels comes from 6x6 pixels, by 36 products of matrices [tiles, C] x [C, K].
constexpr int64_t kOutTile = 4, kPatch = 6, kPoints = kPatch * kPatch;
// Points whose weights are transformed together on the fly: two rows of the six by six.
constexpr int64_t kPointPairs = 3, kPairPoints = kPoints / kPointPairs;
// Input channels are stored in blocks of this many, whatever the instruction set.
constexpr int64_t kChannelBlock = 16;
// Sums over more channels than this are made in parts, so that their rounding errors do not grow with the number of
// channels.
constexpr int64_t kDepth = 64;
constexpr int kMaxConcatenated = 2;

// Pixels of contiguous channels; strides in numbers.
struct Image {
  const float* data;
  int64_t channels, batch, row, column;
};

// Who multiplies, and with what: vectors, with weights that were transformed ahead or that are transformed in passing;
// or AMX, in stages of which the first transforms the weights: see conv2d_stages.h.
enum class Way { pretransformed, on_the_fly, in_stages };

// How the work is divided. shared: all tiles are transformed first, then part (i, j) of tile_parts x panel_parts
// multiplies tile part i with panel part j; otherwise each of tile_parts does all for its tiles, `block` of them at a
// time.
struct ConvPlan {
  bool shared;
  int64_t tile_parts, panel_parts;
  int64_t block;  // most tiles that are multiplied at once
  int64_t group;  // most panels of output channels that are multiplied before their outputs are transformed
};

// out = scale * activation(conv(x) + bias + channel_bias + residual), stride 1. x: up to kMaxConcatenated images, whose
// channels follow each other, each but the last with a multiple of kChannelBlock; nearest upsampling by 2^upsample
// comes first. height and width are those after the upsampling. out is contiguous with channels last.
struct Conv2d {
  Image x[kMaxConcatenated];
  int num_inputs;
  int64_t batch, channels, height, width, upsample, padding;
  int64_t out_channels, out_height, out_width;
  const float* weights;  // as the way's kernel for weights writes them, or, on the fly, as it reads them; not in stages
  const float* filters;  // as they are
  int64_t filter_out, filter_in, filter_tap;  // strides of an output channel, an input channel and one of nine taps
  Way way;
  const float *bias, *channel_bias;  // may be null; of each output channel, and also of each sample
  int64_t channel_bias_row;
  Image residual;  // data may be null
  bool silu;
  float scale;
  float* out;
  ConvPlan plan;  // not in stages
  float* scratch;
  float* energies = nullptr;  // see conv2d_wide.h
};

static inline int64_t tiles_of(int64_t pixels) { return divide_up(pixels, kOutTile); }
static inline int64_t tiles_of(const Conv2d& op) { return op.batch * tiles_of(op.out_height) * tiles_of(op.out_width); }
// The sums that one over so many channels, a multiple of kChannelBlock, is made of, and the first channel of each.
static inline int64_t sums_of(int64_t channels) { return (channels + kDepth - 1) / kDepth; }
static inline int64_t sum_begin(int64_t channels, int64_t sums, int64_t sum) {
  return channels / kChannelBlock * sum / sums * kChannelBlock;
}

// Floats between the matrices of two points, with room against addresses that differ by a multiple of 4096 bytes.
static inline int64_t input_stride(int64_t channels, int64_t tiles) {
  return round_up(channels, kChannelBlock) * tiles + 16;
}
static inline int64_t product_stride(int64_t panel, int64_t panels, int64_t tiles) {
  return panel * panels * tiles + 16;
}
// On the fly: floats between two points of the weights of a block of channels and a panel.
static inline int64_t fly_stride(int64_t panel) { return kChannelBlock * panel + 16; }
// Floats that a thread needs besides, for these weights and for sums of products with them.
static inline int64_t fly_scratch(int64_t panel, int64_t tiles) {
  return kPairPoints * (fly_stride(panel) + product_stride(panel, 1, tiles));
}

// panel: the output channels that a kernel computes at once.
ConvPlan plan_conv2d(int64_t tiles, int64_t channels, int64_t out_channels, int64_t panel, Way way, int64_t threads);
// Floats of scratch that the plan needs.
int64_t conv2d_scratch(const ConvPlan& plan, int64_t channels, int64_t panel, Way way);

}  // namespace fastdiff

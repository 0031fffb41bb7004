// The weights of a 3x3 convolution where they are, turned so that output channels are in the lanes. For the files that
// are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/conv2d.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kTaps = 9;

// The weights of `depth` input channels from `channel` on for as many output channels from `column` on as there are
// lanes: [channel][tap]. Those that are not there are 0.
template <int64_t depth>
void gather_filters(const Conv2d& op, int64_t column, int64_t channel, F* filters) {
  const int64_t columns = op.out_channels - column,
                channels = op.channels - channel < depth ? op.channels - channel : depth;
  const float* from = op.filters + column * op.filter_out + channel * op.filter_in;
  const auto turn = [&](const float* first, int64_t n, F* rows) {  // n numbers of each row
    for (int64_t i = 0; i < kLanes; ++i) {
      rows[i] = n > 0 && i < columns ? load_up_to(first + i * op.filter_out, n) : F::broadcast(0);
      if (n > 0 && i < columns) prefetch_line(first + i * op.filter_out + depth * kTaps);
    }
    transpose(rows);
  };
  const auto up_to_lanes = [](int64_t n) { return n < kLanes ? n : kLanes; };
  if (op.filter_tap == 1) {
    for (int64_t k = 0; k < depth * kTaps; k += kLanes) turn(from + k, up_to_lanes(channels * kTaps - k), filters + k);
    return;
  }
  F rows[kLanes];
  for (int64_t tap = 0; tap < kTaps; ++tap)
    for (int64_t c = 0; c < depth; c += kLanes) {
      turn(from + tap * op.filter_tap + c, up_to_lanes(channels - c), rows);
      for (int64_t i = 0; i < kLanes; ++i) filters[(c + i) * kTaps + tap] = rows[i];
    }
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

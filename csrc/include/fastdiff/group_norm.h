// What group_norm_silu and its gradients share: statistics of groups, and what a channel's numbers are multiplied by.
// Statistics are those of blocks that stay in the cache for two passes, merged exactly (Chan et al. 1983), so that a
// mean far from 0 costs no digits. For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/arena.h"
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int64_t kBlock = 4096;    // numbers: 16 KiB of float32, which stay in L1
constexpr int64_t kNear = 1 << 19;  // bytes of a group that L2 holds while another is read and one is written

// Of a growing number of values; double, for there are few merges.
struct Total {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double other_mean, double other_squares) {
    if (n == 0) return;
    const double delta = other_mean - mean;
    squares += other_squares + delta * delta * count * n / (count + n);
    mean += delta * n / (count + n);
    count += n;
  }
};

// Mean and 1 / deviation of contiguous numbers.
template <class T>
inline void contiguous_statistics(const GroupNorm& op, const T* x, int64_t size, float* wide, float* mean,
                                  float* inverse) {
  Total total;
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = size - i < kBlock ? size - i : kBlock;
    const Moments m = moments(widen_row(x + i, wide, n), n, x + (i + n < size ? i + n : i));
    total.add(static_cast<double>(n), m.mean, m.squares);
  }
  *mean = static_cast<float>(total.mean);
  *inverse = inverse_deviation(static_cast<float>(total.squares / total.count), op.eps, op.huge);
}

// The same of a group of a sample, from the statistics of its parts, in their order.
inline void group_statistics(const GroupNorm& op, int64_t sample, int64_t group, float* mean, float* inverse) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, width = op.channels / op.groups;
  Total total;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kNormPart, pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    const float* means = op.partial + (sample * parts + part) * 2 * op.channels + group * width;
    const float* squares = means + op.channels;
    double sum = 0, within = 0, between = 0;  // double: a mean far from 0 leaves float32 few digits for the deviations
    for (int64_t c = 0; c < width; ++c) {
      sum += means[c];
      within += squares[c];
    }
    const double center = sum / static_cast<double>(width), count = static_cast<double>(pixels);
    for (int64_t c = 0; c < width; ++c) between += (means[c] - center) * (means[c] - center);
    total.add(count * static_cast<double>(width), center, within + count * between);
  }
  *mean = static_cast<float>(total.mean);
  *inverse = inverse_deviation(static_cast<float>(total.squares / total.count), op.eps, op.huge);
}

template <class T>
inline float at(const void* values, int64_t i, float otherwise) {
  return values ? value(static_cast<const T*>(values) + i) : otherwise;
}

template <class T>
inline float at(const Rows& rows, int64_t sample, int64_t channel) {
  return rows.data ? value(static_cast<const T*>(rows.data) + sample * rows.batch + channel) : 0;
}

// What a channel's numbers are multiplied by after the mean is subtracted, and what is added then.
template <class T>
inline void factors(const GroupNorm& op, int64_t sample, int64_t channel, float inverse, float* factor, float* offset) {
  const float adapt = 1.0f + at<T>(op.scale, sample, channel);
  *factor = inverse * at<T>(op.weight, channel, 1) * adapt;
  *offset = at<T>(op.bias, channel, 0) * adapt + at<T>(op.shift, sample, channel);
}

// For channels [begin, end) of a sample, which are whole groups, from the statistics of its parts: mean, 1 / deviation
// (not if null), factor and offset.
template <class T>
inline void channel_table(const GroupNorm& op, int64_t sample, int64_t begin, int64_t end, float* means,
                          float* inverses, float* scales, float* offsets) {
  const int64_t width = op.channels / op.groups;
  for (int64_t g = begin / width; g * width < end; ++g) {
    float mean, inverse;
    group_statistics(op, sample, g, &mean, &inverse);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      means[c] = mean;
      if (inverses) inverses[c] = inverse;
      factors<T>(op, sample, c, inverse, &scales[c], &offsets[c]);
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

// Group norm with SiLU and an adaptive scale and shift: statistics in one pass over memory, the output in another.
// Statistics are those of blocks that stay in the cache for two passes, merged exactly (Chan et al. 1983), so that a mean far
// from 0 costs no digits. Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"
#include "fastdiff/rows.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // numbers: 16 KiB of float32, which stay in the first cache
constexpr int64_t kNear = 1 << 19;  // bytes of a group that the second cache holds while another is read and one is written
// Channels last, statistics are those of this many pixels by this many vectors of channels, which stay in the first cache.
constexpr int64_t kPixels = 64;
constexpr int kColumns = 4;

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

template <class T>
void add_contiguous(const T* x, int64_t size, float* wide, Total* total) {
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = size - i < kBlock ? size - i : kBlock;
    const Moments m = moments(widen_row(x + i, wide, n), n, x + (i + n < size ? i + n : i));
    total->add(static_cast<double>(n), m.mean, m.squares);
  }
}

template <class T>
float at(const void* values, int64_t i, float otherwise) {
  return values ? value(static_cast<const T*>(values) + i) : otherwise;
}

template <class T>
float at(const Rows& rows, int64_t sample, int64_t channel) {
  return rows.data ? value(static_cast<const T*>(rows.data) + sample * rows.batch + channel) : 0;
}

// What a channel's numbers are multiplied by after the mean is subtracted, and what is added then.
template <class T>
void factors(const GroupNorm& op, int64_t sample, int64_t channel, float inverse, float* factor, float* offset) {
  const float adapt = 1.0f + at<T>(op.scale, sample, channel);
  *factor = inverse * at<T>(op.weight, channel, 1) * adapt;
  *offset = at<T>(op.bias, channel, 0) * adapt + at<T>(op.shift, sample, channel);
}

template <class T>
void write_channel(const GroupNorm& op, const T* x, T* out, int64_t size, const T* next, float mean, float factor,
                   float offset) {
  const F m = F::broadcast(mean), a = F::broadcast(factor), b = F::broadcast(offset);
  const auto normalized = [=](auto at) { return fma(at.load(x) - m, a, b); };
  const auto activated = [=](auto at) { return silu(normalized(at)); };
  if (op.stream) {
    op.silu ? map_stream(out, size, next, activated) : map_stream(out, size, next, normalized);
  } else {
    op.silu ? map_ahead(out, size, next, activated) : map_ahead(out, size, next, normalized);
  }
}

template <class T>
void run_groups(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t width = op.channels / op.groups;
  const Scratch scratch(1, kBlock);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / op.groups, first = unit % op.groups * width;
    const int64_t start = (sample * op.channels + first) * op.pixels;
    const T* x = static_cast<const T*>(op.x) + start;
    T* out = static_cast<T*>(op.out) + start;
    const int64_t size = width * op.pixels;
    const int64_t to_next = unit + 1 < end && size <= kNear / static_cast<int64_t>(sizeof(T)) ? size : 0;
    Total total;
    add_contiguous(x, size, scratch.row(0), &total);
    const float mean = static_cast<float>(total.mean);
    const float inverse = inverse_deviation(static_cast<float>(total.squares / total.count), op.eps);
    for (int64_t c = 0; c < width; ++c) {
      float factor, offset;
      factors<T>(op, sample, first + c, inverse, &factor, &offset);
      const T* channel = x + c * op.pixels;
      write_channel(op, channel, out + c * op.pixels, op.pixels, channel + to_next, mean, factor, offset);
    }
  }
  if (op.stream) stream_fence();
}

// Adds `count` pixels to the means and squared deviations of `vectors` vectors of channels, which are those of `before` pixels.
// x: the first of these channels in the first pixel, `stride` numbers from that in the next one.
template <int vectors, class At, class T, class Put>
void add_pixels(const T* x, int64_t stride, int64_t before, int64_t count, float* means, float* squares, At at, Put put) {
  const F share = F::broadcast(1.0f / static_cast<float>(count));
  F sum[vectors], mean[vectors], rest[vectors], square[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = rest[v] = square[v] = F::broadcast(0);
  for (int64_t p = 0; p < count; ++p)
    for (int v = 0; v < vectors; ++v) sum[v] = sum[v] + at.load(x + p * stride + v * F::size);
  for (int v = 0; v < vectors; ++v) mean[v] = sum[v] * share;
  for (int64_t p = 0; p < count; ++p)
    for (int v = 0; v < vectors; ++v) {
      const F d = at.load(x + p * stride + v * F::size) - mean[v];
      rest[v] = rest[v] + d;
      square[v] = fma(d, d, square[v]);
    }
  const float all = static_cast<float>(before + count), part = static_cast<float>(count) / all;
  const F weight = F::broadcast(part), both = F::broadcast(static_cast<float>(before) * part);
  for (int v = 0; v < vectors; ++v) {
    const F rounding = rest[v] * share;
    F exact = mean[v] + rounding;
    F deviations = square[v] - rounding * rest[v];
    if (before) {
      const F old = at.load(means + v * F::size), delta = exact - old;
      exact = fma(delta, weight, old);
      deviations = deviations + fma(delta * delta, both, at.load(squares + v * F::size));
    }
    put(means + v * F::size, exact);
    put(squares + v * F::size, deviations);
  }
}

// partial[(unit * 2 + 0) * channels + c]: the mean of channel c in the unit's pixels, [(unit * 2 + 1) ...]: its squares.
template <class T>
void run_statistics(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels;
  const Scratch scratch(1, kNormPart);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    float *means = op.partial + unit * 2 * channels, *squares = means + channels;
    if (!op.channels_last) {
      for (int64_t c = 0; c < channels; ++c) {
        const T* x = static_cast<const T*>(op.x) + (sample * channels + c) * op.pixels + first;
        const Moments m = moments(widen_row(x, scratch.row(0), pixels), pixels, x + (c + 1 < channels ? op.pixels : 0));
        means[c] = m.mean;
        squares[c] = m.squares;
      }
      continue;
    }
    const T* x = static_cast<const T*>(op.x) + (sample * op.pixels + first) * channels;
    const auto put_whole = [](float* p, F v) { store(p, v); };
    for (int64_t p = 0; p < pixels; p += kPixels) {
      const int64_t n = pixels - p < kPixels ? pixels - p : kPixels;
      const T* block = x + p * channels;
      int64_t c = 0;
      for (; c + kColumns * F::size <= channels; c += kColumns * F::size)
        add_pixels<kColumns>(block + c, channels, p, n, means + c, squares + c, Whole{0}, put_whole);
      for (; c + F::size <= channels; c += F::size)
        add_pixels<1>(block + c, channels, p, n, means + c, squares + c, Whole{0}, put_whole);
      if (const int64_t left = channels - c) {
        const auto put_part = [left](float* p, F v) { store_some(p, v, left); };
        add_pixels<1>(block + c, channels, p, n, means + c, squares + c, Part{0, left}, put_part);
      }
    }
  }
}

// Mean and 1 / deviation of every group of a sample, from the statistics of its parts, in their order.
void group_statistics(const GroupNorm& op, int64_t sample, int64_t group, float* mean, float* inverse) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, width = op.channels / op.groups;
  Total total;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kNormPart, pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    const float* means = op.partial + (sample * parts + part) * 2 * op.channels + group * width;
    for (int64_t c = 0; c < width; ++c) total.add(static_cast<double>(pixels), means[c], means[op.channels + c]);
  }
  *mean = static_cast<float>(total.mean);
  *inverse = inverse_deviation(static_cast<float>(total.squares / total.count), op.eps);
}

template <class T>
void write_pixels(const GroupNorm& op, const T* x, T* out, int64_t pixels, const float* means, const float* factors,
                  const float* offsets) {
  for (int64_t p = 0; p < pixels; ++p) {
    const T* from = x + p * op.channels;
    T* to = out + p * op.channels;
    const T* next = from + (p + 1 < pixels ? op.channels : 0);
    const auto normalized = [=](auto at) {
      return fma(at.load(from) - at.load(means), at.load(factors), at.load(offsets));
    };
    const auto activated = [=](auto at) { return silu(normalized(at)); };
    if (op.stream) {
      op.silu ? map_stream(to, op.channels, next, activated) : map_stream(to, op.channels, next, normalized);
    } else {
      op.silu ? map_ahead(to, op.channels, next, activated) : map_ahead(to, op.channels, next, normalized);
    }
  }
}

template <class T>
void run_output(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels, width = channels / op.groups;
  const Scratch scratch(3, channels);  // of one sample: mean, factor and offset of every channel
  float *means = scratch.row(0), *scales = scratch.row(1), *offsets = scratch.row(2);
  int64_t of_sample = -1;
  for (int64_t unit = end - 1; unit >= begin; --unit) {  // the parts that were read last are still in the cache
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    if (sample != of_sample) {
      for (int64_t g = 0; g < op.groups; ++g) {
        float mean, inverse;
        group_statistics(op, sample, g, &mean, &inverse);
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          means[c] = mean;
          factors<T>(op, sample, c, inverse, &scales[c], &offsets[c]);
        }
      }
      of_sample = sample;
    }
    if (op.channels_last) {
      const int64_t start = (sample * op.pixels + first) * channels;
      write_pixels(op, static_cast<const T*>(op.x) + start, static_cast<T*>(op.out) + start, pixels, means, scales, offsets);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t start = (sample * channels + c) * op.pixels + first;
      const T* x = static_cast<const T*>(op.x) + start;
      write_channel(op, x, static_cast<T*>(op.out) + start, pixels, x + (c + 1 < channels ? op.pixels : 0), means[c], scales[c],
                    offsets[c]);
    }
  }
  if (op.stream) stream_fence();
}

}  // namespace

#define FASTDIFF_FOR_TYPE(run)                                       \
  switch (op.type) {                                                 \
    case Type::float32: return run<float>(op, begin, end);           \
    case Type::bfloat16: return run<bfloat16>(op, begin, end);       \
    case Type::float16: return run<float16>(op, begin, end);         \
  }
void group_norm_groups(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_groups) }
void group_norm_statistics(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_statistics) }
void group_norm_output(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_output) }

}  // namespace fastdiff::FASTDIFF_ISA

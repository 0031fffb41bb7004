// Group norm with SiLU and an adaptive scale and shift: statistics in one pass over memory, the output in another.
// Compiled once an instruction set (see simd.h).
#include "fastdiff/group_norm.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// Channels last, statistics are those of this many pixels by this many vectors of channels, which stay in the first
// cache.
constexpr int64_t kPixels = 64;
constexpr int kColumns = 4;
// The output of about so many bytes at a time is written from the last pixels to the first, those that were read last
// being in L2 still.
constexpr int64_t kFew = 1 << 17;
constexpr int64_t kWriteAhead = 4096;  // bytes, whole pixels: lines of the result are asked for so long before

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
  Arena arena;
  float* wide = arena.take<float>(kBlock);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / op.groups, first = unit % op.groups * width;
    const int64_t start = (sample * op.channels + first) * op.pixels;
    const T* x = static_cast<const T*>(op.x) + start;
    T* out = static_cast<T*>(op.out) + start;
    const int64_t size = width * op.pixels;
    const int64_t to_next = unit + 1 < end && size <= kNear / static_cast<int64_t>(sizeof(T)) ? size : 0;
    float mean, inverse;
    contiguous_statistics(op, x, size, wide, &mean, &inverse);
    for (int64_t c = 0; c < width; ++c) {
      float factor, offset;
      factors<T>(op, sample, first + c, inverse, &factor, &offset);
      const T* channel = x + c * op.pixels;
      write_channel(op, channel, out + c * op.pixels, op.pixels, channel + to_next, mean, factor, offset);
    }
  }
  if (op.stream) stream_fence();
}

// Adds `count` pixels to the means and squared deviations of `vectors` vectors of channels, which are those of `before`
// pixels. x: the first of these channels in the first pixel, `stride` numbers from that in the next one. next: the same
// of what is read afterwards, which is fetched meanwhile.
template <int vectors, class At, class T, class Put>
void add_pixels(const T* x, int64_t stride, int64_t before, int64_t count, float* means, float* squares, const T* next,
                At at, Put put) {
  const F share = F::broadcast(1.0f / static_cast<float>(count));
  F sum[vectors], mean[vectors], rest[vectors], square[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = rest[v] = square[v] = F::broadcast(0);
  for (int64_t p = 0; p < count; ++p)
    for (int v = 0; v < vectors; ++v) sum[v] = sum[v] + at.load(x + p * stride + v * F::size);
  for (int v = 0; v < vectors; ++v) mean[v] = sum[v] * share;
  for (int64_t p = 0; p < count; ++p) {
    prefetch<vectors>(next + p * stride);
    for (int v = 0; v < vectors; ++v) {
      const F d = at.load(x + p * stride + v * F::size) - mean[v];
      rest[v] = rest[v] + d;
      square[v] = fma(d, d, square[v]);
    }
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

// Means and squares of channels [begin, end) in a part of a sample's pixels, x being its first pixel.
template <class T>
void channel_statistics(const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end, float* means,
                        float* squares) {
  const auto put_whole = [](float* p, F v) { store(p, v); };
  for (int64_t p = 0; p < pixels; p += kPixels) {
    const int64_t n = pixels - p < kPixels ? pixels - p : kPixels;
    const T* block = x + p * channels;
    const T* next = block + begin + (p + kPixels < pixels ? kPixels * channels : 0);
    int64_t c = begin;
    for (; c + kColumns * F::size <= end; c += kColumns * F::size) {
      const T* then = c + 2 * kColumns * F::size <= end ? block + c + kColumns * F::size : next;
      add_pixels<kColumns>(block + c, channels, p, n, means + c, squares + c, then, Whole{0}, put_whole);
    }
    for (; c + F::size <= end; c += F::size)
      add_pixels<1>(block + c, channels, p, n, means + c, squares + c, next, Whole{0}, put_whole);
    if (const int64_t left = end - c) {
      const auto put_part = [left](float* p, F v) { store_some(p, v, left); };
      add_pixels<1>(block + c, channels, p, n, means + c, squares + c, next, Part{0, left}, put_part);
    }
  }
}

// partial[(unit * 2 + 0) * channels + c]: the mean of channel c in the unit's pixels, [(unit * 2 + 1) ...]: its
// squares.
template <class T>
void run_statistics(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels;
  Arena arena;
  float* wide = arena.take<float>(kNormPart);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    float *means = op.partial + unit * 2 * channels, *squares = means + channels;
    if (op.channels_last) {
      const T* x = static_cast<const T*>(op.x) + (sample * op.pixels + first) * channels;
      channel_statistics(x, channels, pixels, 0, channels, means, squares);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const T* x = static_cast<const T*>(op.x) + (sample * channels + c) * op.pixels + first;
      const Moments m = moments(widen_row(x, wide, pixels), pixels, x + (c + 1 < channels ? op.pixels : 0));
      means[c] = m.mean;
      squares[c] = m.squares;
    }
  }
}

// before: how many pixels that come before these in memory are written next, 0 for none.
template <class T>
void write_pixels(const GroupNorm& op, const T* x, T* out, int64_t pixels, int64_t before, const float* means,
                  const float* factors, const float* offsets) {
  const int64_t pixel = op.channels * static_cast<int64_t>(sizeof(T)), ahead = (kWriteAhead + pixel - 1) / pixel;
  const auto later = [=](int64_t p) { return (p < pixels ? p : p - pixels - before) * op.channels; };
  for (int64_t p = 0; p < pixels; ++p) {
    const T* from = x + p * op.channels;
    T* to = out + p * op.channels;
    const T* next = x + later(p + 2);
    const T* written = out + later(p + ahead);
    const auto normalized = [=](auto at) {
      return fma(at.load(from) - at.load(means), at.load(factors), at.load(offsets));
    };
    const auto activated = [=](auto at) { return silu(normalized(at)); };
    if (op.stream) {
      op.silu ? map_stream(to, op.channels, next, activated) : map_stream(to, op.channels, next, normalized);
    } else {
      op.silu ? map_before(to, op.channels, written, next, activated)
              : map_before(to, op.channels, written, next, normalized);
    }
  }
}

template <class T>
void run_output(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels;
  const int64_t pixel = channels * static_cast<int64_t>(sizeof(T)), near = pixel < kFew ? kFew / pixel : 1;
  Arena arena;  // of one sample: mean, factor and offset of every channel
  float *means = arena.take<float>(channels), *scales = arena.take<float>(channels);
  float* offsets = arena.take<float>(channels);
  int64_t of_sample = -1;
  for (int64_t unit = end - 1; unit >= begin; --unit) {  // the parts that were read last are still in the cache
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    if (sample != of_sample) {
      channel_table<T>(op, sample, 0, channels, means, nullptr, scales, offsets);
      of_sample = sample;
    }
    if (op.channels_last) {
      const T* x = static_cast<const T*>(op.x) + sample * op.pixels * channels;
      T* out = static_cast<T*>(op.out) + sample * op.pixels * channels;
      for (int64_t done = (pixels - 1) / near * near; done >= 0; done -= near) {
        const int64_t start = (first + done) * channels, n = pixels - done < near ? pixels - done : near;
        write_pixels(op, x + start, out + start, n, done || unit > begin ? near : 0, means, scales, offsets);
      }
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t start = (sample * channels + c) * op.pixels + first;
      const T* x = static_cast<const T*>(op.x) + start;
      write_channel(op, x, static_cast<T*>(op.out) + start, pixels, x + (c + 1 < channels ? op.pixels : 0), means[c],
                    scales[c], offsets[c]);
    }
  }
  if (op.stream) stream_fence();
}

}  // namespace

#define FASTDIFF_FOR_TYPE(run)              \
  switch (op.type) {                        \
    case Type::float32:                     \
      return run<float>(op, begin, end);    \
    case Type::bfloat16:                    \
      return run<bfloat16>(op, begin, end); \
    case Type::float16:                     \
      return run<float16>(op, begin, end);  \
  }
void group_norm_groups(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_groups) }
void group_norm_statistics(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_statistics) }
void group_norm_output(const GroupNorm& op, int64_t begin, int64_t end) { FASTDIFF_FOR_TYPE(run_output) }

}  // namespace fastdiff::FASTDIFF_ISA

// Group norm with SiLU and an adaptive scale and shift: statistics in one pass over memory, the output in another.
// Statistics are those of blocks that stay in the cache for two passes, merged exactly (Chan et al. 1983), so that a mean far
// from 0 costs no digits. Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/moments.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // numbers: 16 KiB of float32, which stay in the first cache

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
void add_contiguous(const T* x, int64_t size, Total* total) {
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = size - i < kBlock ? size - i : kBlock;
    const Moments m = moments(x + i, n);
    total->add(static_cast<double>(n), m.mean, m.squares);
  }
}

template <class T>
float at(const void* values, int64_t i, float otherwise) {
  if (!values) return otherwise;
  float lanes[F::size];
  load_some(static_cast<const T*>(values) + i, 1).store(lanes);
  return lanes[0];
}

template <class T>
float at(const Rows& rows, int64_t sample, int64_t channel) {
  return rows.data ? at<T>(static_cast<const T*>(rows.data) + sample * rows.batch, channel, 0) : 0;
}

// What a channel's numbers are multiplied by after the mean is subtracted, and what is added then.
template <class T>
void factors(const GroupNorm& op, int64_t sample, int64_t channel, float inverse, float* factor, float* offset) {
  const float adapt = 1.0f + at<T>(op.scale, sample, channel);
  *factor = inverse * at<T>(op.weight, channel, 1) * adapt;
  *offset = at<T>(op.bias, channel, 0) * adapt + at<T>(op.shift, sample, channel);
}

template <bool Silu, class T>
void write_channel(const T* x, T* out, int64_t size, float mean, float factor, float offset) {
  const F m = F::broadcast(mean), a = F::broadcast(factor), b = F::broadcast(offset);
  for_vectors(size, [&](int64_t i, int64_t n) {
    const F y = fma(get(x, i, n) - m, a, b);
    put(out, i, n, Silu ? silu(y) : y);
  });
}

template <class T>
void run_groups(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t width = op.channels / op.groups;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / op.groups, first = unit % op.groups * width;
    const int64_t start = (sample * op.channels + first) * op.pixels;
    const T* x = static_cast<const T*>(op.x) + start;
    T* out = static_cast<T*>(op.out) + start;
    Total total;
    add_contiguous(x, width * op.pixels, &total);
    const float mean = static_cast<float>(total.mean);
    const float inverse = inverse_deviation(static_cast<float>(total.squares / total.count), op.eps);
    for (int64_t c = 0; c < width; ++c) {
      float factor, offset;
      factors<T>(op, sample, first + c, inverse, &factor, &offset);
      const int64_t at = c * op.pixels;
      op.silu ? write_channel<true>(x + at, out + at, op.pixels, mean, factor, offset)
              : write_channel<false>(x + at, out + at, op.pixels, mean, factor, offset);
    }
  }
}

// partial[(unit * 2 + 0) * channels + c]: the mean of channel c in the unit's pixels, [(unit * 2 + 1) ...]: its squares.
template <class T>
void run_statistics(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    float *means = op.partial + unit * 2 * channels, *squares = means + channels;
    if (!op.channels_last) {
      for (int64_t c = 0; c < channels; ++c) {
        const Moments m = moments(static_cast<const T*>(op.x) + (sample * channels + c) * op.pixels + first, pixels);
        means[c] = m.mean;
        squares[c] = m.squares;
      }
      continue;
    }
    const T* x = static_cast<const T*>(op.x) + (sample * op.pixels + first) * channels;
    // Blocks of pixels that stay in the cache; of each, vectors of channels.
    const int64_t rows = channels < kBlock ? kBlock / channels : 1;
    for (int64_t p = 0; p < pixels; p += rows) {
      const int64_t n = pixels - p < rows ? pixels - p : rows;
      const F count = F::broadcast(static_cast<float>(n)), before = F::broadcast(static_cast<float>(p));
      const F all = F::broadcast(static_cast<float>(p + n));
      for_vectors(channels, [&](int64_t c, int64_t lanes) {
        const T* column = x + p * channels + c;
        F total = F::broadcast(0);
        for (int64_t r = 0; r < n; ++r) total = total + get(column, r * channels, lanes);
        const F mean = total / count;
        F square = F::broadcast(0), rest = F::broadcast(0);
        for (int64_t r = 0; r < n; ++r) {
          const F d = get(column, r * channels, lanes) - mean;
          square = fma(d, d, square);
          rest = rest + d;
        }
        const F rounding = rest / count, exact = mean + rounding;
        square = square - rounding * rest;
        if (p == 0) {
          put(means, c, lanes, exact);
          put(squares, c, lanes, square);
          return;
        }
        const F delta = exact - get(means, c, lanes);
        put(means, c, lanes, fma(delta, count / all, get(means, c, lanes)));
        put(squares, c, lanes, get(squares, c, lanes) + fma(delta * delta, before * count / all, square));
      });
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

template <bool Silu, class T>
void write_pixels(const T* x, T* out, int64_t pixels, int64_t channels, const float* table) {
  const float *means = table, *factors = table + channels, *offsets = table + 2 * channels;
  for (int64_t p = 0; p < pixels; ++p)
    for_vectors(channels, [&](int64_t c, int64_t n) {
      const F y = fma(get(x, p * channels + c, n) - get(means, c, n), get(factors, c, n), get(offsets, c, n));
      put(out, p * channels + c, n, Silu ? silu(y) : y);
    });
}

template <class T>
void run_output(const GroupNorm& op, int64_t begin, int64_t end) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart, channels = op.channels, width = channels / op.groups;
  float* table = new float[3 * channels];  // of one sample: mean, factor and offset of every channel
  int64_t of_sample = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    const int64_t pixels = op.pixels - first < kNormPart ? op.pixels - first : kNormPart;
    if (sample != of_sample) {
      for (int64_t g = 0; g < op.groups; ++g) {
        float mean, inverse;
        group_statistics(op, sample, g, &mean, &inverse);
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          table[c] = mean;
          factors<T>(op, sample, c, inverse, &table[channels + c], &table[2 * channels + c]);
        }
      }
      of_sample = sample;
    }
    if (op.channels_last) {
      const int64_t start = (sample * op.pixels + first) * channels;
      const T* x = static_cast<const T*>(op.x) + start;
      T* out = static_cast<T*>(op.out) + start;
      op.silu ? write_pixels<true>(x, out, pixels, channels, table) : write_pixels<false>(x, out, pixels, channels, table);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t start = (sample * channels + c) * op.pixels + first;
      const T* x = static_cast<const T*>(op.x) + start;
      T* out = static_cast<T*>(op.out) + start;
      const float mean = table[c], factor = table[channels + c], offset = table[2 * channels + c];
      op.silu ? write_channel<true>(x, out, pixels, mean, factor, offset)
              : write_channel<false>(x, out, pixels, mean, factor, offset);
    }
  }
  delete[] table;
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

// Gradients of group norm with SiLU. With n the normalized x and d the gradient before the activation, all of them
// follow from d and from two sums over the pixels of each channel, of d and of d n. d is computed again from x where it
// is needed: for the sums and for dx. Compiled once an instruction set (see simd.h).
#include "fastdiff/group_norm.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// One channel, or one vector of channels: value -> (value - mean) * factor + offset -> act.
struct Channel {
  F mean, factor, offset;
};

// The gradient before the activation, from that of the result and x - mean.
template <bool Silu>
F before_activation(F gradient, F distance, const Channel& c) {
  return Silu ? gradient * silu_slope(fma(distance, c.factor, c.offset)) : gradient;
}

// Sums of d and of d (x - mean) over contiguous numbers, in blocks, so that a long sum does not lose digits. d itself
// is stored in kept if that is wanted.
template <bool Silu, bool Keep, class T>
void add_channel(const T* x, const T* gradient, T* kept, int64_t size, const Channel& c, double* total,
                 double* product) {
  for (int64_t i = 0; i < size; i += kBlock) {
    F sums = F::broadcast(0), products = F::broadcast(0);
    each(size - i < kBlock ? size - i : kBlock, [&](auto at) {
      at.i += i;
      const F distance = at.load(x) - c.mean, d = before_activation<Silu>(at.load(gradient), distance, c);
      if (Keep) at.store(kept, d);
      sums = sums + d;
      products = fma(d, distance, products);
    });
    *total += sum(sums);
    *product += sum(products);
  }
}

// dx of contiguous numbers: d * factor + (x - mean) * slope + constant. `next` is where x is read from afterwards.
template <bool Silu, class T>
void write_channel(const T* x, const T* gradient, T* out, int64_t size, const T* next, const Channel& c, F slope,
                   F constant) {
  map_ahead(out, size, next, [=](auto at) {
    const F distance = at.load(x) - c.mean, d = before_activation<Silu>(at.load(gradient), distance, c);
    return fma(d, c.factor, fma(distance, slope, constant));
  });
}

// What every number of a group gets beside its own gradient: (x - mean) * slope + constant. total and product: of the
// sums of d and of d n in each channel, times the channel's factor; count: numbers in the group.
void group_part(double total, double product, double inverse, double count, float* slope, float* constant) {
  *slope = static_cast<float>(-inverse * product / count);
  *constant = static_cast<float>(-total / count);
}

template <bool Silu, bool Keep, class T>
void run_whole_groups(const GroupNormBackward& op, int64_t begin, int64_t end) {
  const GroupNorm& forward = op.forward;
  const int64_t width = forward.channels / forward.groups, pixels = forward.pixels, size = width * pixels;
  Arena arena;
  float *wide = arena.take<float>(kBlock), *factor = arena.take<float>(width), *offset = arena.take<float>(width);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / forward.groups, first = unit % forward.groups * width;
    const int64_t start = (sample * forward.channels + first) * pixels;
    const T *x = static_cast<const T*>(forward.x) + start, *gradient = static_cast<const T*>(op.gradient) + start;
    T* out = static_cast<T*>(op.x) + start;
    const int64_t to_next = unit + 1 < end && size <= kNear / static_cast<int64_t>(sizeof(T)) ? size : 0;
    float mean, inverse, slope, constant;
    contiguous_statistics(forward, x, size, wide, &mean, &inverse);
    const F center = F::broadcast(mean);
    float *sums = op.sums + sample * 2 * forward.channels + first, *products = sums + forward.channels;
    double group_total = 0, group_product = 0;
    for (int64_t c = 0; c < width; ++c) {
      factors<T>(forward, sample, first + c, inverse, &factor[c], &offset[c]);
      const Channel channel = {center, F::broadcast(factor[c]), F::broadcast(offset[c])};
      double total = 0, product = 0;
      add_channel<Silu, Keep>(x + c * pixels, gradient + c * pixels, out + c * pixels, pixels, channel, &total,
                              &product);
      product *= inverse;
      sums[c] = static_cast<float>(total);
      products[c] = static_cast<float>(product);
      group_total += factor[c] * total;
      group_product += factor[c] * product;
    }
    group_part(group_total, group_product, inverse, static_cast<double>(size), &slope, &constant);
    for (int64_t c = 0; c < width; ++c) {
      const Channel channel = {center, F::broadcast(factor[c]), F::broadcast(offset[c])};
      const T* from = x + c * pixels;
      T* to = out + c * pixels;
      if (Keep) {
        write_channel<false>(from, to, to, pixels, from + to_next, channel, F::broadcast(slope),
                             F::broadcast(constant));
      } else {
        write_channel<Silu>(from, gradient + c * pixels, to, pixels, from + to_next, channel, F::broadcast(slope),
                            F::broadcast(constant));
      }
    }
  }
}

// d of a group is kept in the place of its dx while both passes over it stay in the cache, if no digits are lost by
// that.
template <bool Silu, class T>
void run_groups(const GroupNormBackward& op, int64_t begin, int64_t end) {
  constexpr bool exact = Silu && sizeof(T) == sizeof(float);
  const int64_t bytes = op.forward.channels / op.forward.groups * op.forward.pixels * static_cast<int64_t>(sizeof(T));
  return exact && bytes <= kNear ? run_whole_groups<Silu, exact, T>(op, begin, end)
                                 : run_whole_groups<Silu, false, T>(op, begin, end);
}

// What is known of the channels of a sample, as rows of numbers.
struct Table {
  explicit Table(int64_t channels) {
    for (float** row : {&mean, &inverse, &factor, &offset, &slope, &constant, &block_sums, &block_products})
      *row = arena.take<float>(channels);
  }

  template <class At>
  Channel channel(At at) const {
    return {at.load(mean), at.load(factor), at.load(offset)};
  }
  Channel channel(int64_t c) const { return {F::broadcast(mean[c]), F::broadcast(factor[c]), F::broadcast(offset[c])}; }

  Arena arena;
  float *mean, *inverse, *factor, *offset, *slope, *constant, *block_sums, *block_products;
};

// body(sample, its part, offset of the part's first number, pixels of the part) for the units of [begin, end) from the
// last to the first, those of the last phase that are still in the cache coming first; prepare(sample) before those of
// a sample.
template <class Prepare, class Body>
void for_parts(const GroupNorm& op, int64_t begin, int64_t end, Prepare prepare, Body body) {
  const int64_t parts = (op.pixels + kNormPart - 1) / kNormPart;
  int64_t of_sample = -1;
  for (int64_t unit = end - 1; unit >= begin; --unit) {
    const int64_t sample = unit / parts, first = unit % parts * kNormPart;
    if (sample != of_sample) prepare(sample);
    of_sample = sample;
    const int64_t start = sample * op.channels * op.pixels + first * (op.channels_last ? op.channels : 1);
    body(unit, start, op.pixels - first < kNormPart ? op.pixels - first : kNormPart);
  }
}

template <bool Silu, class T>
void run_sums(const GroupNormBackward& op, int64_t begin, int64_t end) {
  constexpr int64_t kShort = 32;  // pixels that are summed up before they are added to the sum of a part
  const GroupNorm& forward = op.forward;
  const int64_t channels = forward.channels;
  const Table table(channels);
  const auto prepare = [&](int64_t sample) {
    channel_table<T>(forward, sample, 0, channels, table.mean, table.inverse, table.factor, table.offset);
  };
  for_parts(forward, begin, end, prepare, [&](int64_t unit, int64_t start, int64_t pixels) {
    const T *x = static_cast<const T*>(forward.x) + start, *gradient = static_cast<const T*>(op.gradient) + start;
    float *sums = op.sums + unit * 2 * channels, *products = sums + channels;
    if (!forward.channels_last) {
      for (int64_t c = 0; c < channels; ++c) {
        double total = 0, product = 0;
        const int64_t at = c * forward.pixels;
        add_channel<Silu, false, T>(x + at, gradient + at, nullptr, pixels, table.channel(c), &total, &product);
        sums[c] = static_cast<float>(total);
        products[c] = static_cast<float>(product * table.inverse[c]);
      }
      return;
    }
    map(sums, 2 * channels, [](auto) { return F::broadcast(0); });
    for (int64_t p = 0; p < pixels; p += kShort) {
      float *some = table.block_sums, *some_products = table.block_products;
      each(channels, [&](auto at) {
        at.store(some, F::broadcast(0));
        at.store(some_products, F::broadcast(0));
      });
      for (int64_t q = p; q < pixels && q < p + kShort; ++q) {
        const T *from = x + q * channels, *from_gradient = gradient + q * channels;
        each(channels, [&](auto at) {
          const Channel channel = table.channel(at);
          const F distance = at.load(from) - channel.mean;
          const F d = before_activation<Silu>(at.load(from_gradient), distance, channel);
          at.store(some, at.load(some) + d);
          at.store(some_products, fma(d, distance, at.load(some_products)));
        });
      }
      each(channels, [&](auto at) {
        at.store(sums, at.load(sums) + at.load(some));
        at.store(products, fma(at.load(some_products), at.load(table.inverse), at.load(products)));
      });
    }
  });
}

template <bool Silu, class T>
void run_input(const GroupNormBackward& op, int64_t begin, int64_t end) {
  const GroupNorm& forward = op.forward;
  const int64_t channels = forward.channels, width = channels / forward.groups;
  const Table table(channels);
  const auto prepare = [&](int64_t sample) {
    channel_table<T>(forward, sample, 0, channels, table.mean, table.inverse, table.factor, table.offset);
    for (int64_t first = 0; first < channels; first += width) {
      double total = 0, product = 0;
      for (int64_t part = 0; part < op.parts; ++part) {
        const float* sums = op.sums + (sample * op.parts + part) * 2 * channels;
        for (int64_t c = first; c < first + width; ++c) {
          total += static_cast<double>(table.factor[c]) * sums[c];
          product += static_cast<double>(table.factor[c]) * sums[channels + c];
        }
      }
      float slope, constant;
      group_part(total, product, table.inverse[first], static_cast<double>(width * forward.pixels), &slope, &constant);
      for (int64_t c = first; c < first + width; ++c) {
        table.slope[c] = slope;
        table.constant[c] = constant;
      }
    }
  };
  for_parts(forward, begin, end, prepare, [&](int64_t, int64_t start, int64_t pixels) {
    const T *x = static_cast<const T*>(forward.x) + start, *gradient = static_cast<const T*>(op.gradient) + start;
    T* out = static_cast<T*>(op.x) + start;
    if (!forward.channels_last) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = c * forward.pixels;
        const T* next = x + at + (c + 1 < channels ? forward.pixels : 0);
        write_channel<Silu>(x + at, gradient + at, out + at, pixels, next, table.channel(c),
                            F::broadcast(table.slope[c]), F::broadcast(table.constant[c]));
      }
      return;
    }
    for (int64_t p = 0; p < pixels; ++p) {
      const T *from = x + p * channels, *from_gradient = gradient + p * channels;
      map_ahead(out + p * channels, channels, from + (p + 1 < pixels ? channels : 0), [&](auto at) {
        const Channel channel = table.channel(at);
        const F distance = at.load(from) - channel.mean;
        const F d = before_activation<Silu>(at.load(from_gradient), distance, channel);
        return fma(d, channel.factor, fma(distance, at.load(table.slope), at.load(table.constant)));
      });
    }
  });
}

template <bool, class T>
void run_parameters(const GroupNormBackward& op, int64_t begin, int64_t end) {
  const GroupNorm& forward = op.forward;
  const int64_t channels = forward.channels;
  const F zero = F::broadcast(0), one = F::broadcast(1);
  const T *weight = static_cast<const T*>(forward.weight), *bias = static_cast<const T*>(forward.bias);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kNormChannels, left = channels - first;
    each(left < kNormChannels ? left : kNormChannels, [&](auto at) {
      at.i += first;
      const F w = weight ? at.load(weight) : one, offset = bias ? at.load(bias) : zero;
      F of_weight = zero, of_bias = zero;
      for (int64_t sample = 0; sample < forward.samples; ++sample) {
        F total = zero, product = zero;
        for (int64_t part = 0; part < op.parts; ++part) {
          const float* sums = op.sums + (sample * op.parts + part) * 2 * channels;
          total = total + at.load(sums);
          product = product + at.load(sums + channels);
        }
        const T* scales = static_cast<const T*>(forward.scale.data);
        const F scale = scales ? one + at.load(scales + sample * forward.scale.batch) : one;
        if (op.scale) at.store(static_cast<T*>(op.scale) + sample * channels, fma(w, product, offset * total));
        if (op.shift) at.store(static_cast<T*>(op.shift) + sample * channels, total);
        of_weight = fma(scale, product, of_weight);
        of_bias = fma(scale, total, of_bias);
      }
      if (op.weight) at.store(static_cast<T*>(op.weight), of_weight);
      if (op.bias) at.store(static_cast<T*>(op.bias), of_bias);
    });
  }
}

}  // namespace

#define FASTDIFF_FOR_TYPE(run, silu)              \
  switch (op.forward.type) {                      \
    case Type::float32:                           \
      return run<silu, float>(op, begin, end);    \
    case Type::bfloat16:                          \
      return run<silu, bfloat16>(op, begin, end); \
    case Type::float16:                           \
      return run<silu, float16>(op, begin, end);  \
  }
#define FASTDIFF_FOR_BOTH(run)    \
  if (op.forward.silu) {          \
    FASTDIFF_FOR_TYPE(run, true)  \
  } else {                        \
    FASTDIFF_FOR_TYPE(run, false) \
  }
void group_norm_backward_groups(const GroupNormBackward& op, int64_t begin, int64_t end) {
  FASTDIFF_FOR_BOTH(run_groups)
}
void group_norm_backward_sums(const GroupNormBackward& op, int64_t begin, int64_t end) { FASTDIFF_FOR_BOTH(run_sums) }
void group_norm_backward_input(const GroupNormBackward& op, int64_t begin, int64_t end) { FASTDIFF_FOR_BOTH(run_input) }
void group_norm_backward_parameters(const GroupNormBackward& op, int64_t begin, int64_t end) {
  FASTDIFF_FOR_TYPE(run_parameters, false)
}

}  // namespace fastdiff::FASTDIFF_ISA

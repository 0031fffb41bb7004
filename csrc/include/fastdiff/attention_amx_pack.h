// The factors of attention's two products on AMX (see factors.h): scores = keys x queries, and the result, transposed,
// = values x weights. The weights come from attention_amx_softmax.h.
#pragma once

#include "fastdiff/factors.h"
#include "fastdiff/scores.h"

namespace fastdiff::amx {
namespace {

// Keys, a left factor, up to the end of the last 16.
template <int N, class T>
FASTDIFF_NOINLINE void pack_keys(const Depth<N, N>& channels, const T* k, int64_t row, int64_t keys, uint8_t* to) {
  for (int64_t key = 0; key < ceil_divide(keys, kSide) * kSide; ++key) {
    if (key + 8 < keys) prefetch_rows(k + (key + 8) * row, row, 1, channels.size);
    put_row_of<split<N, true>>(channels, key < keys ? k + key * row : nullptr, left_row(channels, to, key));
  }
}

// Values, transposed, as a left factor whose rows are channels, up to the end of the last 16. depth: the keys, in whole
// steps. transposed: room for 32 numbers per channel.
template <int N, int W, class T>
FASTDIFF_NOINLINE void pack_values(const Depth<N, W>& depth, const T* v, int64_t row, int64_t keys, int64_t channels,
                                   float* transposed, uint8_t* to) {
  const Depth<N, W> step(kDepth);
  for (int64_t key = 0; key < keys; key += kDepth, to += step.left_bytes()) {
    for (int64_t start = key; start < key + kDepth; start += kSide) {
      const T* first = v + start * row;
      const int64_t after = keys - start - kSide;
      if (after > 0) prefetch_rows(first + kSide * row, row, after < kSide ? after : kSide, channels);
      transpose_in<1>(channels, keys - start, transposed + (start - key) * channels,
                      [&](int64_t i, int64_t c, int64_t n) { return load_up_to(first + i * row + c, n); });
    }
    for (int64_t c = 0; c < ceil_divide(channels, kSide) * kSide; ++c) {
      const auto vector = [&](int64_t i) __attribute__((always_inline)) {
        return c < channels ? F::load(transposed + (i * channels + c) * kSide) : F::broadcast(0);
      };
      put_row<split<N, true>>(step, vector, left_row(depth, to, c));
    }
  }
}

// 32 queries, of which `count` exist, as 32 columns of a right factor. transposed: room for 16 numbers per channel.
template <int N, class T>
FASTDIFF_NOINLINE void pack_queries(const Depth<N, N>& channels, const T* q, int64_t row, int64_t count,
                                    float* transposed, uint8_t* to) {
  for (int64_t start = 0; start < kBlock; start += kSide, to += channels.right_bytes())
    put_transposed(
        channels, count - start,
        [&](int64_t i, int64_t c, int64_t n) { return load_up_to(q + (start + i) * row + c, n); }, transposed, to);
}

}  // namespace
}  // namespace fastdiff::amx

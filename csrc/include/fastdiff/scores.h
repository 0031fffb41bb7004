// What the kernels of attention share: where a head is, and what a mask adds to a block of scores.
// For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr float kLowest = -3.402823466e38f, kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

template <class T>
const T* head_of(const Heads& heads, int64_t b, int64_t h) {
  return static_cast<const T*>(heads.data) + b * heads.batch + h * heads.head;
}

// `rows` rows of `size` numbers, which will be read or written before long.
template <class T>
void prefetch_rows(const T* data, int64_t row, int64_t rows, int64_t size) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < size + kLine - 1; c += kLine) prefetch_line(data + i * row + c);
}

template <class T>
RowPrefetcher prefetcher_of(const Heads& heads, int64_t b, int64_t h, int64_t row, int64_t rows, int64_t size) {
  constexpr int64_t kBytes = static_cast<int64_t>(sizeof(T));
  return RowPrefetcher(head_of<T>(heads, b, h) + row * heads.row, heads.row * kBytes, rows, size * kBytes);
}

// What is added to the scores of keys [first, first + keys) of the queries of a block: bias[key][lane].
template <int C, class T>
void load_bias(const Attention& op, int64_t b, int64_t h, int64_t query, int64_t count, int64_t first, int64_t keys,
               float* bias) {
  const int64_t start = b * op.mask.batch + h * op.mask.head + query * op.mask.row + first * op.mask_column;
  const float nothing = -__builtin_inff();
  if (op.mask_type == Mask::boolean) {
    const uint8_t* mask = static_cast<const uint8_t*>(op.mask.data) + start;
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = 0; i < C * kLanes; ++i)
        bias[j * C * kLanes + i] = i < count && !mask[i * op.mask.row + j * op.mask_column] ? nothing : 0.0f;
    return;
  }
  const T* mask = static_cast<const T*>(op.mask.data) + start;
  transpose_in<C>(keys, count, bias, [&](int64_t i, int64_t j, int64_t n) {
    const T* p = mask + i * op.mask.row + j * op.mask_column;
    if (op.mask_column) return load_up_to(p, n);
    float lanes[kLanes];
    load_some(p, 1).store(lanes);
    return F::broadcast(lanes[0]);
  });
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

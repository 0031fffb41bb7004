// Products of the factors of factors.h, in blocks of two tiles of rows by two of columns where there are two of both.
// Each function writes sums[row][column], `row` floats from one row to the next; meanwhile() is what else is done, once
// after each product of two terms of a step.
#pragma once

#include "fastdiff/factors.h"

namespace fastdiff::amx {
namespace {

struct Nothing {
  void operator()() const {}
};

// 32 rows by 32 columns. add: to what is in sums.
template <int L, int R, class Meanwhile = Nothing>
FASTDIFF_INLINE void multiply_2x2(const Depth<L, R>& depth, const uint8_t* left, const uint8_t* right, float* sums,
                                  int64_t row, bool add = false, const Meanwhile& meanwhile = {}) {
  const uint8_t* second = right + depth.right_bytes();
  add ? load_sums(sums, row) : zero_sums();
  for (int64_t s = 0; s < depth.steps;
       ++s, left += 2 * L * kTileBytes, right += R * kTileBytes, second += R * kTileBytes)
    add_products<L, R>(
        [&](int i) {
          FASTDIFF_TILE_LOAD(4, left + 2 * i * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(5, left + (2 * i + 1) * kTileBytes, 64);
        },
        [&](int i) {
          FASTDIFF_TILE_LOAD(6, right + i * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(7, second + i * kTileBytes, 64);
        },
        meanwhile);
  for (int64_t t = 0; t < depth.shared; ++t, left += 2 * kTileBytes, right += kTileBytes, second += kTileBytes) {
    FASTDIFF_TILE_LOAD(4, left, 64);
    FASTDIFF_TILE_LOAD(6, right, 64);
    FASTDIFF_TILE_MULTIPLY(0, 4, 6);
    FASTDIFF_TILE_LOAD(7, second, 64);
    FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    FASTDIFF_TILE_LOAD(5, left + kTileBytes, 64);
    FASTDIFF_TILE_MULTIPLY(2, 5, 6);
    FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    meanwhile();
  }
  store_sums(sums, row);
}

// Where there is one tile of rows or of columns, products go to two pairs of sums alternately, because an instruction
// waits for the one before it on its sum. add(left, right, odd) adds the product of a pair of tiles.
template <int L, int R, class Add>
FASTDIFF_INLINE void multiply_alternately(const Depth<L, R>& depth, const uint8_t* left, const uint8_t* right,
                                          const Add& add) {
  constexpr TermProducts<L, R> products;
  zero_sums();
  int64_t count = 0;
  for (int64_t s = 0; s < depth.steps; ++s, left += 2 * L * kTileBytes, right += R * kTileBytes)
    for (int i = products.count - 1; i >= 0; --i)
      add(left + 2 * products.left[i] * kTileBytes, right + products.right[i] * kTileBytes, count++ % 2 != 0);
  for (int64_t t = 0; t < depth.shared; ++t, left += 2 * kTileBytes, right += kTileBytes)
    add(left, right, count++ % 2 != 0);
}

// 32 rows by 16 columns, in two halves, side by side, whose sum is the result.
template <int L, int R>
FASTDIFF_INLINE void multiply_2x1(const Depth<L, R>& depth, const uint8_t* left, const uint8_t* right, float* sums,
                                  int64_t row) {
  const auto add = [&](const uint8_t* l, const uint8_t* r, bool odd) __attribute__((always_inline)) {
    if (!odd) {
      FASTDIFF_TILE_LOAD(4, l, 64);
      FASTDIFF_TILE_LOAD(6, r, 64);
      FASTDIFF_TILE_MULTIPLY(0, 4, 6);
      FASTDIFF_TILE_LOAD(5, l + kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(2, 5, 6);
    } else {
      FASTDIFF_TILE_LOAD(4, l, 64);
      FASTDIFF_TILE_LOAD(7, r, 64);
      FASTDIFF_TILE_MULTIPLY(1, 4, 7);
      FASTDIFF_TILE_LOAD(5, l + kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    }
  };
  multiply_alternately(depth, left, right, add);
  store_sums(sums, row);
}

// 16 rows by 32 columns, one row after the other. add: to what is in sums.
template <int L, int R, class Meanwhile>
FASTDIFF_INLINE void multiply_1x2(const Depth<L, R>& depth, const uint8_t* left, const uint8_t* right, float* sums,
                                  bool add, const Meanwhile& meanwhile) {
  const int64_t to_second = depth.right_bytes();
  const auto add_product = [&](const uint8_t* l, const uint8_t* r, bool odd) __attribute__((always_inline)) {
    if (odd) {
      FASTDIFF_TILE_LOAD(4, l, 64);
      FASTDIFF_TILE_LOAD(6, r, 64);
      FASTDIFF_TILE_MULTIPLY(0, 4, 6);
      FASTDIFF_TILE_LOAD(7, r + to_second, 64);
      FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    } else {
      FASTDIFF_TILE_LOAD(5, l, 64);
      FASTDIFF_TILE_LOAD(6, r, 64);
      FASTDIFF_TILE_MULTIPLY(2, 5, 6);
      FASTDIFF_TILE_LOAD(7, r + to_second, 64);
      FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    }
    meanwhile();
  };
  multiply_alternately(depth, left, right, add_product);
  alignas(64) float halves[2 * kSide * kBlock];
  store_sums(halves);
  for (int64_t i = 0; i < kSide * kBlock; i += kLanes) {
    const F sum = F::load(halves + i) + F::load(halves + kSide * kBlock + i);
    (add ? sum + F::load(sums + i) : sum).store(sums + i);
  }
}

}  // namespace
}  // namespace fastdiff::amx

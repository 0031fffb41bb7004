// Factors of a product of float32 matrices on AMX (see amx.h), of which the
// left one is read and written as it lies, a row at a time: the order of the
// numbers that are summed is free, so two vectors of a row, lane by lane side
// by side, are a row of a tile.
#pragma once

#include "fastdiff/amx.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16; // of a tile of results
constexpr int64_t kBlock =
    2 * kSide; // rows of the left factor that are multiplied together

inline int64_t tiles_of(int64_t size, int64_t side) {
  return (size + side - 1) / side;
}

// The products of L parts of a left number and R parts of a right one that
// matter: number i is of parts left[i] and right[i].
template <int L, int R> struct Slots {
  int count = 0, left[6] = {}, right[6] = {};
  constexpr Slots() {
    for (int r = 0; r < R; ++r)
      for (int l = 0; l < L && l + r < (L > R ? L : R); ++l)
        left[count] = l, right[count] = r, ++count;
  }
};
template <int L, int R> constexpr Slots<L, R> kSlots{};

// How `size` numbers that are multiplied and summed lie in tiles. 32 at a time
// are a step, with a tile for each part: numbers i and 16 + i are pair i. Up to
// 16 that are left come with a slot of 8 or 16 lanes for each product of two
// parts, side by side, left as [l0 | l1 | l2 | l0 | l1 | l0] and right as [r0 |
// r0 | r0 | r1 | r1 | r2], so that less is filled up with zeros.
template <int L, int R> struct Depth {
  int64_t size, steps, rest, width,
      shared; // steps of 32; numbers in slots; lanes of a slot; tiles of slots
  explicit Depth(int64_t n)
      : size(n), steps(n / kDepth), rest(n % kDepth),
        width(rest <= kSide / 2 ? kSide / 2 : kSide), shared(0) {
    if (rest > kSide)
      ++steps, rest = 0;
    if (rest)
      shared = tiles_of(kSlots<L, R>.count * width, kDepth);
  }
  int64_t left_tiles() const { return L * steps + shared; }
  int64_t right_tiles() const { return R * steps + shared; }
  int64_t products() const { return kSlots<L, R>.count * steps + shared; }
};

// The parts of the left numbers are cut off and not rounded: what the products
// that are left out lack has the sign of a right part, which is rounded, and is
// at most 2^-22 of a product. Two operations a part instead of three. The lower
// half of each is not used.
template <int count> inline Terms cut(__m512 x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Terms result;
  for (int i = 0; i < count; ++i) {
    result.term[i] = _mm512_castps_si512(x);
    if (i + 1 < count)
      x = _mm512_sub_ps(
          x, _mm512_castsi512_ps(_mm512_and_si512(result.term[i], upper)));
  }
  return result;
}
// The same as pair_lanes in one instruction, on the unit that has less to do
// here.
inline __m512i pair_upper(__m512i first, __m512i second) {
  const __m512i from =
      _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a, 0x07060706, 0x03020302);
  return _mm512_mask_shuffle_epi8(second, 0x3333333333333333, first, from);
}

// Lane i: the sum (or the largest) of the lanes of row i.
template <class Two> FASTDIFF_INLINE F across(const F *rows, const Two &two) {
  __m512 a[8], b[4], c[2];
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 8; ++i)
    a[i] = two(F{_mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v)},
               F{_mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v)})
               .v;
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]),
                  y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = two(F{_mm512_castpd_ps(_mm512_unpacklo_pd(x, y))},
               F{_mm512_castpd_ps(_mm512_unpackhi_pd(x, y))})
               .v;
  }
  for (int i = 0; i < 2; ++i)
    c[i] = two(F{_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88)},
               F{_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd)})
               .v;
  return two(F{_mm512_shuffle_f32x4(c[0], c[1], 0x88)},
             F{_mm512_shuffle_f32x4(c[0], c[1], 0xdd)});
}

// A row of the left factor, whose vector i is vector(i), into tiles that lie in
// turn with those of 16 other rows. whole: see split.
template <int L, int R, bool whole, class Vector>
FASTDIFF_INLINE void put_row(const Depth<L, R> &depth, const Vector &vector,
                             uint8_t *to) {
  constexpr Slots<L, R> slots;
  const auto parts = [](__m512 x) __attribute__((always_inline)) {
    if constexpr (whole)
      return cut<L>(x);
    else
      return split<L, false>(x);
  };
  for (int64_t s = 0; s < depth.steps; ++s) {
    const Terms a = parts(vector(2 * s).v), b = parts(vector(2 * s + 1).v);
    for (int p = 0; p < L; ++p, to += 2 * kTileBytes)
      _mm512_store_si512(to, pair_upper(a.term[p], b.term[p]));
  }
  if (!depth.rest)
    return;
  const __m512i zero = _mm512_setzero_si512();
  if (depth.width == kSide) {
    const Terms x = parts(vector(2 * depth.steps).v);
    FASTDIFF_UNROLL_16
    for (int i = 0; i < slots.count; i += 2, to += 2 * kTileBytes)
      _mm512_store_si512(
          to,
          pair_upper(x.term[slots.left[i]],
                     i + 1 < slots.count ? x.term[slots.left[i + 1]] : zero));
  } else {
    const __m512 x = vector(2 * depth.steps).v;
    const Terms twice = parts(_mm512_shuffle_f32x4(x, x, 0x44));
    const auto two = [&](int i) __attribute__((always_inline)) {
      if (i >= slots.count)
        return zero;
      return _mm512_mask_mov_epi32(
          twice.term[slots.left[i]], 0xff00,
          i + 1 < slots.count ? twice.term[slots.left[i + 1]] : zero);
    };
    FASTDIFF_UNROLL_16
    for (int i = 0; i < slots.count; i += 4, to += 2 * kTileBytes)
      _mm512_store_si512(to, pair_upper(two(i), two(i + 2)));
  }
}

// Sixteen columns of the right factor: number(i) has number i of each.
template <int L, int R, class Number>
FASTDIFF_INLINE void put_columns(const Depth<L, R> &depth, const Number &number,
                                 uint8_t *to) {
  constexpr Slots<L, R> slots;
  const auto parts = [&](int64_t i) __attribute__((always_inline)) {
    return split<R, true>(i < depth.size ? number(i).v : _mm512_setzero_ps());
  };
  for (int64_t s = 0; s < depth.steps; ++s, to += R * kTileBytes)
    for (int64_t i = 0; i < kSide; ++i) {
      const Terms a = parts(s * kDepth + i), b = parts(s * kDepth + kSide + i);
      for (int p = 0; p < R; ++p)
        _mm512_store_si512(to + p * kTileBytes + i * 64,
                           pair_lanes(a.term[p], b.term[p]));
    }
  if (!depth.rest)
    return;
  const __m512i zero = _mm512_setzero_si512();
  const int64_t a_tile = kDepth / depth.width; // slots of one
  for (int64_t i = 0; i < kSide; ++i) {
    const Terms x = parts(depth.steps * kDepth + i % depth.width);
    for (int64_t t = 0; t < depth.shared; ++t) {
      const int64_t first = t * a_tile + i / depth.width,
                    second = first + a_tile / 2;
      _mm512_store_si512(
          to + t * kTileBytes + i * 64,
          pair_lanes(first < slots.count ? x.term[slots.right[first]] : zero,
                     second < slots.count ? x.term[slots.right[second]]
                                          : zero));
    }
  }
}

// sums[row][column] of 32 rows by 32 columns, `row` numbers from a row to the
// next.
template <int L, int R>
FASTDIFF_INLINE void multiply_by_two(const Depth<L, R> &depth,
                                     const uint8_t *left, const uint8_t *right,
                                     float *sums, int64_t row) {
  const uint8_t *second = right + depth.right_tiles() * kTileBytes;
  zero_sums();
  for (int64_t s = 0; s < depth.steps; ++s, left += 2 * L * kTileBytes,
               right += R * kTileBytes, second += R * kTileBytes)
    add_products<L, R>(
        [&](int p) {
          FASTDIFF_TILE_LOAD(4, left + 2 * p * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(5, left + (2 * p + 1) * kTileBytes, 64);
        },
        [&](int p) {
          FASTDIFF_TILE_LOAD(6, right + p * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(7, second + p * kTileBytes, 64);
        },
        [] {});
  for (int64_t t = 0; t < depth.shared;
       ++t, left += 2 * kTileBytes, right += kTileBytes, second += kTileBytes) {
    FASTDIFF_TILE_LOAD(4, left, 64);
    FASTDIFF_TILE_LOAD(6, right, 64);
    FASTDIFF_TILE_MULTIPLY(0, 4, 6);
    FASTDIFF_TILE_LOAD(7, second, 64);
    FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    FASTDIFF_TILE_LOAD(5, left + kTileBytes, 64);
    FASTDIFF_TILE_MULTIPLY(2, 5, 6);
    FASTDIFF_TILE_MULTIPLY(3, 5, 7);
  }
  FASTDIFF_TILE_STORE(0, sums, row * 4);
  FASTDIFF_TILE_STORE(1, sums + kSide, row * 4);
  FASTDIFF_TILE_STORE(2, sums + kSide * row, row * 4);
  FASTDIFF_TILE_STORE(3, sums + kSide * row + kSide, row * 4);
}

// Of 32 rows by 16 columns in two halves, side by side, whose sum is the
// result: products go to two pairs of sums by turns, because an instruction
// waits for the one before it on its sum.
template <int L, int R>
FASTDIFF_INLINE void multiply_by_one(const Depth<L, R> &depth,
                                     const uint8_t *left, const uint8_t *right,
                                     float *sums, int64_t row) {
  constexpr Slots<L, R> slots;
  zero_sums();
  int64_t turn = 0;
  const auto add = [&](const uint8_t *l, const uint8_t *r)
                       __attribute__((always_inline)) {
                         if (turn++ % 2 == 0) {
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
  for (int64_t s = 0; s < depth.steps;
       ++s, left += 2 * L * kTileBytes, right += R * kTileBytes)
    for (int i = slots.count - 1; i >= 0; --i)
      add(left + 2 * slots.left[i] * kTileBytes,
          right + slots.right[i] * kTileBytes);
  for (int64_t t = 0; t < depth.shared;
       ++t, left += 2 * kTileBytes, right += kTileBytes)
    add(left, right);
  FASTDIFF_TILE_STORE(0, sums, row * 4);
  FASTDIFF_TILE_STORE(1, sums + kSide, row * 4);
  FASTDIFF_TILE_STORE(2, sums + kSide * row, row * 4);
  FASTDIFF_TILE_STORE(3, sums + kSide * row + kSide, row * 4);
}

} // namespace
} // namespace fastdiff::amx

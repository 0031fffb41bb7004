// The factors of a product of float32 matrices on AMX (see amx.h), as tiles of bfloat16 terms. The left one is read and
// written as it lies, a row at a time: the order of the numbers that are summed is free, so two vectors of a row, lane
// by lane side by side, are a row of a tile. factors_multiply.h multiplies them.
#pragma once

#include "fastdiff/amx.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16;          // of a tile of results
constexpr int64_t kBlock = 2 * kSide;  // rows of the left factor that are multiplied together

inline int64_t ceil_divide(int64_t size, int64_t by) { return (size + by - 1) / by; }

// How many terms hold a number of type T: float16 has 11 bits, bfloat16 8.
template <class T>
constexpr int kTermsOf = 3;
template <>
constexpr int kTermsOf<float16> = 2;
template <>
constexpr int kTermsOf<bfloat16> = 1;

// The products of L terms of a left number and R terms of a right one that matter: number i is of terms left[i] and
// right[i].
template <int L, int R>
struct TermProducts {
  int count = 0, left[6] = {}, right[6] = {};
  constexpr TermProducts() {
    for (int r = 0; r < R; ++r)
      for (int l = 0; l < L && l + r < (L > R ? L : R); ++l) left[count] = l, right[count] = r, ++count;
  }
};
template <int L, int R>
constexpr TermProducts<L, R> kTermProducts{};

// How `size` numbers that are multiplied and summed lie in tiles. 32 at a time are a step, with a tile for each term:
// numbers i and 16 + i are pair i. Up to 16 that are left come with 8 or 16 lanes for each product of two terms, side
// by side, left as [l0 | l1 | l2 | l0 | l1 | l0] and right as [r0 | r0 | r0 | r1 | r1 | r2], so that less is filled up
// with zeros.
template <int L, int R>
struct Depth {
  int64_t size, steps, rest, width, shared;  // steps of 32; numbers that are left, their lanes per product, their tiles
  explicit Depth(int64_t n)
      : size(n), steps(n / kDepth), rest(n % kDepth), width(rest <= kSide / 2 ? kSide / 2 : kSide), shared(0) {
    if (rest > kSide) ++steps, rest = 0;
    if (rest) shared = ceil_divide(kTermProducts<L, R>.count * width, kDepth);
  }
  int64_t left_tiles() const { return L * steps + shared; }
  int64_t right_tiles() const { return R * steps + shared; }
  int64_t products() const { return kTermProducts<L, R>.count * steps + shared; }
  // Of a block of 32 rows of the left factor, and of 16 columns of the right one.
  int64_t left_bytes() const { return 2 * left_tiles() * kTileBytes; }
  int64_t right_bytes() const { return right_tiles() * kTileBytes; }
};

// The first `count` terms, cut off and not rounded, of left numbers: what the products that are left out lack has the
// sign of a right term, which is rounded, and is at most 2^-22 of a product. Two operations per term instead of three.
template <int count>
inline Terms cut(__m512 x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Terms result;
  for (int i = 0; i < count; ++i) {
    result.term[i] = _mm512_castps_si512(x);
    if (i + 1 < count) x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(result.term[i], upper)));
  }
  return result;
}
// The same as pair_lanes in one instruction, on the unit that has less to do here.
inline __m512i pair_upper(__m512i first, __m512i second) {
  const __m512i from = _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a, 0x07060706, 0x03020302);
  return _mm512_mask_shuffle_epi8(second, 0x3333333333333333, first, from);
}

// Where row `row` of a left factor begins, of which blocks of 32 rows lie one after the other: in each the tiles of the
// first 16 rows alternate with those of the other 16.
template <int L, int R>
FASTDIFF_INLINE uint8_t* left_row(const Depth<L, R>& depth, uint8_t* left, int64_t row) {
  return left + row / kBlock * depth.left_bytes() + row % kBlock / kSide * kTileBytes + row % kSide * 64;
}

// A row of the left factor, whose vector i is vector(i), to left_row. terms: cut or split.
template <Terms (*terms)(__m512), int L, int R, class Vector>
FASTDIFF_INLINE void put_row(const Depth<L, R>& depth, const Vector& vector, uint8_t* to) {
  constexpr TermProducts<L, R> products;
  for (int64_t s = 0; s < depth.steps; ++s) {
    const Terms a = terms(vector(2 * s).v), b = terms(vector(2 * s + 1).v);
    for (int i = 0; i < L; ++i, to += 2 * kTileBytes) _mm512_store_si512(to, pair_upper(a.term[i], b.term[i]));
  }
  if (!depth.rest) return;
  const __m512i zero = _mm512_setzero_si512();
  if (depth.width == kSide) {
    const Terms x = terms(vector(2 * depth.steps).v);
    FASTDIFF_UNROLL_16
    for (int i = 0; i < products.count; i += 2, to += 2 * kTileBytes)
      _mm512_store_si512(
          to, pair_upper(x.term[products.left[i]], i + 1 < products.count ? x.term[products.left[i + 1]] : zero));
  } else {
    const __m512 x = vector(2 * depth.steps).v;
    const Terms twice = terms(_mm512_shuffle_f32x4(x, x, 0x44));
    const auto two = [&](int i) __attribute__((always_inline)) {
      if (i >= products.count) return zero;
      return _mm512_mask_mov_epi32(twice.term[products.left[i]], 0xff00,
                                   i + 1 < products.count ? twice.term[products.left[i + 1]] : zero);
    };
    FASTDIFF_UNROLL_16
    for (int i = 0; i < products.count; i += 4, to += 2 * kTileBytes)
      _mm512_store_si512(to, pair_upper(two(i), two(i + 2)));
  }
}
// The same of a row in memory, or of zeros where there is none.
template <Terms (*terms)(__m512), int L, int R, class T>
FASTDIFF_INLINE void put_row_of(const Depth<L, R>& depth, const T* row, uint8_t* to) {
  if (!row) return put_row<terms>(depth, [](int64_t) { return F::broadcast(0); }, to);
  const int64_t n = depth.size % kSide ? depth.size % kSide : kSide;  // of the last vector
  const auto vector = [&](int64_t i) __attribute__((always_inline)) {
    return (i + 1) * kSide <= depth.size ? load(row + i * kSide) : load_some(row + i * kSide, n);
  };
  put_row<terms>(depth, vector, to);
}

// Sixteen columns of the right factor: number(i) has number i of each.
template <int L, int R, class Number>
FASTDIFF_INLINE void put_columns(const Depth<L, R>& depth, const Number& number, uint8_t* to) {
  constexpr TermProducts<L, R> products;
  const auto terms = [&](int64_t i) __attribute__((always_inline)) {
    return split<R, true>(i < depth.size ? number(i).v : _mm512_setzero_ps());
  };
  for (int64_t s = 0; s < depth.steps; ++s, to += R * kTileBytes)
    for (int64_t i = 0; i < kSide; ++i) {
      const Terms a = terms(s * kDepth + i), b = terms(s * kDepth + kSide + i);
      for (int r = 0; r < R; ++r) _mm512_store_si512(to + r * kTileBytes + i * 64, pair_lanes(a.term[r], b.term[r]));
    }
  if (!depth.rest) return;
  const __m512i zero = _mm512_setzero_si512();
  const int64_t per_tile = kDepth / depth.width;  // products
  for (int64_t i = 0; i < kSide; ++i) {
    const Terms x = terms(depth.steps * kDepth + i % depth.width);
    for (int64_t t = 0; t < depth.shared; ++t) {
      const int64_t first = t * per_tile + i / depth.width, second = first + per_tile / 2;
      _mm512_store_si512(to + t * kTileBytes + i * 64,
                         pair_lanes(first < products.count ? x.term[products.right[first]] : zero,
                                    second < products.count ? x.term[products.right[second]] : zero));
    }
  }
}
// The same of sixteen rows in memory, of which `count` exist: load_row(row, i, n) gives n numbers of one from i on.
// transposed: room for 16 numbers per number of a row.
template <int L, int R, class Load>
FASTDIFF_INLINE void put_transposed(const Depth<L, R>& depth, int64_t count, const Load& load_row, float* transposed,
                                    uint8_t* to) {
  transpose_in<1>(depth.size, count, transposed, load_row);
  put_columns(depth, [&](int64_t i) { return F::load(transposed + i * kSide); }, to);
}

}  // namespace
}  // namespace fastdiff::amx

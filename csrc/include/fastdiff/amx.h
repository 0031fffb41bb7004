// Products of float32 matrices on Intel's matrix units (AMX), which multiply bfloat16 and sum float32. A float32 is the
// sum of three bfloat16 terms, exactly: of its 24 bits each takes 8. Of the nine products of the terms of two numbers
// the three least, 2^-25 of the whole and below, are left out (bf16x3; Henry, Tang & Heinecke 2019, "Leveraging the
// bfloat16 artificial intelligence datatype for higher-precision computations"). Six products of 1024 flops per cycle
// are faster than one of 64.
//
// Infinity has no terms: infinity minus itself is NaN, in the result too. Terms below the normal numbers count as 0.
// linear_ends.h mends sums, conv2d_wide.h tiles.
//
// Only for files that are compiled for AMX. A tile is 16 rows of 64 bytes, at an address that is a multiple of 64: of
// the left factor 16 rows of 32 numbers, of the right factor 16 pairs of rows of 16 columns, the two numbers of a pair
// side by side.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#if defined(FASTDIFF_EMULATE_AMX)
#include "fastdiff/amx_emulated.h"
#endif

namespace fastdiff::amx {

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kDepth = 32;  // of the numbers that one instruction multiplies and adds

#if !defined(FASTDIFF_EMULATE_AMX)
// The tile registers of this thread, from here to the end of the scope.
class TileRegisters {
public:
  TileRegisters() {
    struct alignas(64) Palette {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } palette;
    for (int i = 0; i < 8; ++i) palette.row_bytes[i] = 64, palette.rows[i] = 16;
    asm volatile("ldtilecfg %0" ::"m"(palette));
  }
  ~TileRegisters() { asm volatile("tilerelease" :::); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// As instructions, with the compiler's view of memory: its own intrinsics do not say that they read and write it. A
// register is one of the numbers 0 to 7, written out.
#define FASTDIFF_TILE_LOAD(tile, address, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(address), "r"(static_cast<int64_t>(stride)) : "memory")
#define FASTDIFF_TILE_STORE(tile, address, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(address), "r"(static_cast<int64_t>(stride)) : "memory")
#define FASTDIFF_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile:::)
#define FASTDIFF_TILE_MULTIPLY(to, left, right) asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #to:::)
#endif

// Prefetches a line that will be written, and that another core may have. (All processors with AMX have the
// instruction.)
inline void prefetch_to_write(const void* p) { asm volatile("prefetchw (%0)" ::"r"(p)); }

// Sixteen floats as sums of bfloat16: each term is a float whose upper half counts.
struct Terms {
  __m512i term[3];
};

// The first `count` terms, to nearest, so that what is left out has no sign of its own. whole: the numbers have no more
// bits than the terms hold, and nothing is left out.
template <int count, bool whole = count == 3>
inline Terms split(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Terms result;
  for (int i = 0; i < count; ++i) {
    const __m512i bits = _mm512_castps_si512(x);
    result.term[i] = whole && i + 1 == count ? bits : _mm512_and_epi32(_mm512_add_epi32(bits, half), upper);
    if (i + 1 < count) x = _mm512_sub_ps(x, _mm512_castsi512_ps(result.term[i]));
  }
  return result;
}

// Lane i: number i of `first` and of `second` side by side, as a row of the right factor's tile has them.
inline __m512i pair_lanes(__m512i first, __m512i second) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(first, 16), second, upper, 0xf8);  // a | (b & c)
}

// The sixteen numbers one after the other.
inline __m256i narrow(__m512i term) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(term, 16)); }

// The sums in registers 0 to 3, of two tiles of rows by two of columns. left(i) loads term i of the rows into registers
// 4 and 5, right(i) of the columns into 6 and 7. Every product of terms that matters is added, in an order that loads
// few tiles twice; meanwhile() is what else is done, once after each. L and R: the numbers of terms.
template <int L, int R, class Left, class Right, class Meanwhile>
inline __attribute__((always_inline)) void add_products(const Left& left, const Right& right, Meanwhile&& meanwhile) {
  static_assert(L == R || (L == 1 && R == 2) || (L == 2 && R == 1), "no order of loads for these");
  const auto product = [&]() __attribute__((always_inline)) {
    FASTDIFF_TILE_MULTIPLY(0, 4, 6);
    FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    FASTDIFF_TILE_MULTIPLY(2, 5, 6);
    FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    meanwhile();
  };
  left(0);
  if (R > 2) right(2), product();
  if (R > 1) right(1), product();
  if (L > 2) left(1), product();
  right(0);
  if (L == 2) product(), left(1), product();
  if (L > 2) product(), left(0), product(), left(2), product();
  if (L == 1) product();
}
inline void zero_sums() {
  FASTDIFF_TILE_ZERO(0);
  FASTDIFF_TILE_ZERO(1);
  FASTDIFF_TILE_ZERO(2);
  FASTDIFF_TILE_ZERO(3);
}
// To and from 32 rows of 32 floats, `row` floats from one to the next.
inline void store_sums(float* sums, int64_t row = 32) {
  FASTDIFF_TILE_STORE(0, sums, row * 4);
  FASTDIFF_TILE_STORE(1, sums + 16, row * 4);
  FASTDIFF_TILE_STORE(2, sums + 16 * row, row * 4);
  FASTDIFF_TILE_STORE(3, sums + 16 * row + 16, row * 4);
}
inline void load_sums(const float* sums, int64_t row = 32) {
  FASTDIFF_TILE_LOAD(0, sums, row * 4);
  FASTDIFF_TILE_LOAD(1, sums + 16, row * 4);
  FASTDIFF_TILE_LOAD(2, sums + 16 * row, row * 4);
  FASTDIFF_TILE_LOAD(3, sums + 16 * row + 16, row * 4);
}

// sums[32][32] = of 32 rows of the left factor and 32 columns of the right one, over `steps` of 32 numbers: the second
// tile of each is left_stride and right_stride bytes after the first, and in both the three terms of a step follow each
// other. meanwhile: as above, six times per step.
template <class Meanwhile>
inline void multiply(const uint8_t* left, int64_t left_stride, const uint8_t* right, int64_t right_stride,
                     int64_t steps, float* sums, Meanwhile&& meanwhile) {
  zero_sums();
  for (; steps > 0; --steps, left += 3 * kTileBytes, right += 3 * kTileBytes)
    add_products<3, 3>(
        [&](int term) {
          FASTDIFF_TILE_LOAD(4, left + term * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(5, left + left_stride + term * kTileBytes, 64);
        },
        [&](int term) {
          FASTDIFF_TILE_LOAD(6, right + term * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(7, right + right_stride + term * kTileBytes, 64);
        },
        meanwhile);
  store_sums(sums);
}

}  // namespace fastdiff::amx

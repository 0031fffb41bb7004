// Products of float32 matrices on Intel's matrix units (AMX), which multiply bfloat16 and sum float32. A float32 is the sum of
// three bfloat16, exactly: of its 24 bits each takes 8. Of the nine products of the parts of two numbers the three least, of the
// 2^-25th part of the whole and below, are left out (as in Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial
// intelligence datatype for higher-precision computations"). Six products of 1024 flops a cycle are faster than one of 64.
//
// Infinity has no parts: infinity minus itself is NaN, in the result too. Parts below the normal numbers count as 0.
//
// Only for files that are compiled for AMX. A tile is 16 rows of 64 bytes, at an address that is a multiple of 64: of the left factor
// 16 rows of 32 numbers, of the right factor 16 pairs of rows of 16 columns, the two numbers of a pair side by side.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace fastdiff::amx {

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kDepth = 32;  // of the numbers that one instruction multiplies and adds

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

// As instructions, with the compiler's view of memory: its own intrinsics do not say that they read and write it. A register is one
// of the numbers 0 to 7, written out.
#define FASTDIFF_TILE_LOAD(tile, address, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(address), "r"(static_cast<int64_t>(stride)) : "memory")
#define FASTDIFF_TILE_STORE(tile, address, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(address), "r"(static_cast<int64_t>(stride)) : "memory")
#define FASTDIFF_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile :::)
#define FASTDIFF_TILE_MULTIPLY(to, left, right) asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #to :::)

// Sixteen floats as sums of bfloat16: each part is a float whose lower half is 0.
struct Parts {
  __m512i part[3];
};

// The first `count` parts, to nearest, so that what is left out has no sign of its own. whole: the numbers have no more bits than
// the parts hold, and nothing is left out.
template <int count, bool whole = count == 3>
inline Parts split(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Parts result;
  for (int i = 0; i < count; ++i) {
    const __m512i bits = _mm512_castps_si512(x);
    result.part[i] = whole && i + 1 == count ? bits : _mm512_and_epi32(_mm512_add_epi32(bits, half), upper);
    if (i + 1 < count) x = _mm512_sub_ps(x, _mm512_castsi512_ps(result.part[i]));
  }
  return result;
}

// Lane i: number i of `first` and of `second` side by side, as a row of the right factor's tile has them.
inline __m512i pair_lanes(__m512i first, __m512i second) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(first, 16), second, upper, 0xf8);  // a | (b & c)
}

// The sixteen numbers one after the other.
inline __m256i narrow(__m512i part) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(part, 16)); }

}  // namespace fastdiff::amx

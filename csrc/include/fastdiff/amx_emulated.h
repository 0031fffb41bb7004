// The tile registers and instructions of amx.h in software, on AVX-512, so that the tests of the kernels for AMX run on
// machines without it: for builds with FASTDIFF_EMULATE_AMX, see tests/emulate_amx.sh. The results are those of the
// manual (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS), in its order of sums.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace fastdiff::amx {
namespace emulated {

constexpr int kSide = 16;  // rows of a tile, and of 4 bytes each, columns

struct alignas(64) Tile {
  uint32_t at[kSide][kSide];
};
struct Registers {
  Tile tiles[8];
  bool configured;
};
inline thread_local Registers registers = {};

// Without a TileRegisters the instruction is an illegal one.
template <int tile>
inline Tile& use() {
  static_assert(tile >= 0 && tile < 8, "there are 8 registers");
  if (!registers.configured) abort();
  return registers.tiles[tile];
}

template <int tile>
inline void load(const void* from, int64_t stride) {
  Tile& to = use<tile>();
  for (int64_t i = 0; i < kSide; ++i) memcpy(to.at[i], static_cast<const uint8_t*>(from) + i * stride, 64);
}
template <int tile>
inline void store(void* to, int64_t stride) {
  const Tile& from = use<tile>();
  for (int64_t i = 0; i < kSide; ++i) memcpy(static_cast<uint8_t*>(to) + i * stride, from.at[i], 64);
}
template <int tile>
inline void zero() {
  memset(&use<tile>(), 0, sizeof(Tile));
}

// How numbers are rounded from here on; no load or store goes past it.
inline void set_rounding(uint32_t mode) { asm volatile("ldmxcsr %0" ::"m"(mode) : "memory"); }

// sum[m][n] += of left[m][k] * right[k][n]. In each row the first numbers of the pairs have a sum of their own, and the
// second ones; both start from 0.
inline __attribute__((noinline)) void multiply_tiles(Tile& sum, const Tile& left, const Tile& right) {
  constexpr uint32_t kNearest = 0x1f80, kDenormalsAreZero = 0x0040, kFlushToZero = 0x8000;  // no exceptions
  constexpr int kRows = 8;  // so many sums are in registers
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto first = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  const auto second = [&](__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)); };
  alignas(64) float numbers[2][kSide][kSide];  // of the left factor
  for (int m = 0; m < kSide; ++m) {
    const __m512i row = _mm512_load_si512(left.at[m]);
    _mm512_store_ps(numbers[0][m], first(row)), _mm512_store_ps(numbers[1][m], second(row));
  }
  const uint32_t before = _mm_getcsr();
  set_rounding(kNearest | kDenormalsAreZero | kFlushToZero);
  for (int start = 0; start < kSide; start += kRows) {
    __m512 sums[kRows][2];
    for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
    for (int k = 0; k < kSide; ++k) {
      const __m512i pairs = _mm512_load_si512(right.at[k]);
      for (int m = 0; m < kRows; ++m) {
        sums[m][0] = _mm512_fmadd_ps(_mm512_set1_ps(numbers[0][start + m][k]), first(pairs), sums[m][0]);
        sums[m][1] = _mm512_fmadd_ps(_mm512_set1_ps(numbers[1][start + m][k]), second(pairs), sums[m][1]);
      }
    }
    for (int m = 0; m < kRows; ++m) {
      uint32_t* row = sum.at[start + m];
      _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), _mm512_add_ps(sums[m][0], sums[m][1])));
    }
  }
  set_rounding(before);
}
template <int to, int left, int right>
inline void multiply() {
  static_assert(to != left && to != right && left != right, "the registers of a product are three");
  multiply_tiles(use<to>(), use<left>(), use<right>());
}

}  // namespace emulated

class TileRegisters {
public:
  TileRegisters() { emulated::registers = {}, emulated::registers.configured = true; }
  ~TileRegisters() { emulated::registers.configured = false; }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

#define FASTDIFF_TILE_LOAD(tile, address, stride) ::fastdiff::amx::emulated::load<tile>(address, stride)
#define FASTDIFF_TILE_STORE(tile, address, stride) ::fastdiff::amx::emulated::store<tile>(address, stride)
#define FASTDIFF_TILE_ZERO(tile) ::fastdiff::amx::emulated::zero<tile>()
#define FASTDIFF_TILE_MULTIPLY(to, left, right) ::fastdiff::amx::emulated::multiply<to, left, right>()

}  // namespace fastdiff::amx

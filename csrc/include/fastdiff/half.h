// Half-precision numbers one at a time: to float, exactly, and back, to the nearest and to even between two.
#pragma once

#include <stdint.h>

#include "fastdiff/device.h"

namespace fastdiff {
// What a half-precision number is in memory.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
}  // namespace fastdiff

namespace fastdiff::FASTDIFF_ISA {

FASTDIFF_DEVICE uint32_t bits_of(float x) {
  union {
    float f;
    uint32_t i;
  } both = {x};
  return both.i;
}
FASTDIFF_DEVICE float float_of(uint32_t bits) {
  union {
    uint32_t i;
    float f;
  } both = {bits};
  return both.f;
}

FASTDIFF_DEVICE float widen(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
// Exponents are moved by multiplying: 2^112 is the difference of the two biases, and takes subnormal numbers along.
FASTDIFF_DEVICE float widen(float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t bits = bits_of(float_of(magnitude << 13) * 5.192296858534828e33f);  // 2^112
  if (magnitude >= 0x7c00u) bits |= 0x7f800000u;                               // infinity and NaN
  return float_of(bits | sign);
}
FASTDIFF_DEVICE bfloat16 narrow(float x, bfloat16) {
  const uint32_t bits = bits_of(x);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to even
}
FASTDIFF_DEVICE float16 narrow(float x, float16) {
  const uint32_t bits = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to more than 65504
  if (magnitude < 0x38800000u)  // subnormal: adding 1/2 aligns the last bit, and rounds to even
    return {static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u))};
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);  // to even
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace fastdiff::FASTDIFF_ISA

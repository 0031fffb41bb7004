// Counter-based standard normals: the value depends on (seed, sample, draw, element) alone, so it is the same at any
// batch size, in any order and on any device.
//
// Philox4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3) gives four words for a counter, and
// the Box-Muller transform two normals for two words. Within a group of 64 elements, element 16 j + i is normal j of
// counter (16 group + i), which lets 16 counters be worked on side by side. Additions and multiplications only, none of
// them fused (compile with floating-point contraction off), so that every device rounds alike.
#pragma once

#include <stdint.h>

#include "fastdiff/device.h"

#if defined(__CUDACC__) || defined(_MSC_VER)
#include <math.h>
#define FASTDIFF_SQRT sqrtf
#else
#define FASTDIFF_SQRT __builtin_sqrtf
#endif

namespace fastdiff::FASTDIFF_ISA {

struct Counter {
  uint32_t w[4];
};

FASTDIFF_DEVICE Counter philox(Counter c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.w[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ key0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// log(x) for x in (0, 1]: mantissa in [sqrt(1/2), sqrt(2)), then a polynomial for the rest of the series.
FASTDIFF_DEVICE float log_unit(float x) {
  union {
    float f;
    int32_t i;
  } bits = {x};
  const int32_t exponent = (bits.i - 0x3f3504f3) >> 23;
  bits.i -= exponent * (1 << 23);  // a negative number is not to be shifted to the left
  const float f = bits.f - 1.0f;
  float p = -0.08101558685302734f;
  p = p * f + 0.12712307274341583f;
  p = p * f + -0.12972238659858704f;
  p = p * f + 0.14202174544334412f;
  p = p * f + -0.16642247140407562f;
  p = p * f + 0.20001468062400818f;
  p = p * f + -0.25000298023223877f;
  p = p * f + 0.333333283662796f;
  return (f - (0.5f * f) * f + p * ((f * f) * f)) + static_cast<float>(exponent) * 0.6931471824645996f;
}

// sin and cos of 2 pi u for u in [0, 1): the nearest quarter turn, and polynomials on the eighth of a turn around it.
FASTDIFF_DEVICE void sincos_turn(float u, float* sine, float* cosine) {
  const int32_t quarter = static_cast<int32_t>(4.0f * u + 0.5f);
  const float r = u - 0.25f * static_cast<float>(quarter), y = r * r;
  float s = 41.4728889465332f;
  s = s * y + -76.69786834716797f;
  s = s * y + 81.6052017211914f;
  s = s * y + -41.34170150756836f;
  s = (s * y + 6.2831854820251465f) * r;
  float c = 59.22028732299805f;
  c = c * y + -85.4428482055664f;
  c = c * y + 64.93931579589844f;
  c = c * y + -19.739208221435547f;
  c = c * y + 1.0f;
  const bool odd = quarter & 1;
  const float a = odd ? c : s, b = odd ? s : c;
  *sine = (quarter & 2) ? -a : a;
  *cosine = ((quarter + 1) & 2) ? -b : b;
}

// Two normals from two words: radius sqrt(-2 log u1), angle 2 pi u2, u1 in (0, 1] on 31 bits, u2 in [0, 1) on 24.
FASTDIFF_DEVICE void box_muller(uint32_t w1, uint32_t w2, float* z0, float* z1) {
  const float u1 = (static_cast<float>(static_cast<int32_t>(w1 >> 1)) + 0.5f) * 4.656612873077393e-10f;
  const float u2 = static_cast<float>(static_cast<int32_t>(w2 >> 8)) * 5.960464477539063e-08f;
  const float radius = FASTDIFF_SQRT(-2.0f * log_unit(u1));
  float sine, cosine;
  sincos_turn(u2, &sine, &cosine);
  *z0 = radius * cosine;
  *z1 = radius * sine;
}

// The four normals of a counter.
FASTDIFF_DEVICE void normal_four(uint32_t counter, uint64_t seed, uint64_t sample, uint32_t draw, float* z0, float* z1,
                                 float* z2, float* z3) {
  const Counter c = philox({{counter, draw, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}},
                           static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  box_muller(c.w[0], c.w[1], z0, z1);
  box_muller(c.w[2], c.w[3], z2, z3);
}

// One group: 64 normals of (seed, sample, draw).
FASTDIFF_DEVICE void normal_group(float* out, uint32_t group, uint64_t seed, uint64_t sample, uint32_t draw) {
  for (uint32_t i = 0; i < 16; ++i)
    normal_four(16 * group + i, seed, sample, draw, &out[i], &out[16 + i], &out[32 + i], &out[48 + i]);
}

}  // namespace fastdiff::FASTDIFF_ISA

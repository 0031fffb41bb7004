// The contract of simd.h in ARM's NEON: vectors of 128 bits.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

#include "fastdiff/half.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int64_t size = 4;
  float32x4_t v;
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  void store(float* p) const { vst1q_f32(p, v); }
};
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {vaddq_f32(vmulq_f32(a.v, b.v), c.v)};
}

template <>
struct Vec<double> {
  static constexpr int64_t size = 2;
  float64x2_t v;
  static Vec load(const double* p) { return {vld1q_f64(p)}; }
  static Vec broadcast(double x) { return {vdupq_n_f64(x)}; }
  void store(double* p) const { vst1q_f64(p, v); }
};
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {vaddq_f64(vmulq_f64(a.v, b.v), c.v)};
}

// ---- arithmetic

using F = Vec<float>;
constexpr int kRegisters = 32;

inline F operator+(F a, F b) { return {vaddq_f32(a.v, b.v)}; }
inline F operator-(F a, F b) { return {vsubq_f32(a.v, b.v)}; }
inline F operator*(F a, F b) { return {vmulq_f32(a.v, b.v)}; }
inline F operator/(F a, F b) { return {vdivq_f32(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline F max(F a, F b) { return {vmaxq_f32(a.v, b.v)}; }
inline F min(F a, F b) { return {vminq_f32(a.v, b.v)}; }
inline F round(F a) { return {vrndnq_f32(a.v)}; }
// In two factors, so that results below the normal numbers are not lost at once. n in [-252, 252].
inline F times_power_of_two(F a, F n) {
  const int32x4_t whole = vcvtq_s32_f32(n.v), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
  const float32x4_t p = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
  const float32x4_t q = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23));
  return {vmulq_f32(vmulq_f32(a.v, p), q)};
}
inline F keep_first(F a, int64_t n) {
  const uint32_t lanes[4] = {0, 1, 2, 3};
  const uint32x4_t kept = vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(static_cast<uint32_t>(n)));
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), kept))};
}

// ---- memory

inline F load(const float* p) { return F::load(p); }
inline void store(float* p, F a) { a.store(p); }

inline F load(const bfloat16* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
inline F load(const float16* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
inline void store(bfloat16* p, F a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));  // to even
  const uint32x4_t chosen = vbslq_u32(vceqq_f32(a.v, a.v), rounded, vdupq_n_u32(0x7fc00000));
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(chosen, 16));
}
inline void store(float16* p, F a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v)));
}
template <class H>
inline void stream_two(H* p, F a, F b) {
  store(p, a);
  store(p + F::size, b);
}
inline void stream_fence() {}
inline void prefetch_line(const void* p) { __builtin_prefetch(p); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace fastdiff::FASTDIFF_ISA

#include "fastdiff/simd/by_lanes.h"

// One vector of T in the widest registers of the instruction set that this file is compiled for.
//
// Vec<float> and Vec<double> have what linear_combine needs; the arithmetic below them, with bfloat16 and float16 in
// memory, is for float alone.
//
// Included only by the files that are compiled once an instruction set. They must not use inline functions of the
// standard library: the linker keeps one copy of those, perhaps one with instructions that the machine lacks.
#pragma once

#include <stdint.h>

#if defined(FASTDIFF_ISA_AMX)  // the vectors of AVX-512, and products in tiles: see amx.h
#define FASTDIFF_ISA_AVX512
#endif

#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_AVX2)
#include <immintrin.h>
#elif defined(FASTDIFF_ISA_NEON)
#include <arm_neon.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define __builtin_sqrtf sqrtf
#define __builtin_memcpy memcpy
#endif

#if defined(FASTDIFF_ISA_AMX)
#define FASTDIFF_ISA amx
#elif defined(FASTDIFF_ISA_AVX512)
#define FASTDIFF_ISA avx512
#elif defined(FASTDIFF_ISA_AVX2)
#define FASTDIFF_ISA avx2
#elif defined(FASTDIFF_ISA_NEON)
#define FASTDIFF_ISA neon
#else
#define FASTDIFF_ISA baseline
#endif

#include "fastdiff/half.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
struct Vec;

// multiply_add(a, b, c) = a * b + c, rounded after each of the two operations, as torch does it: not fused.

#if defined(FASTDIFF_ISA_AVX512)

template <>
struct Vec<float> {
  static constexpr int64_t size = 16;
  __m512 v;
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
};
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_add_ps(_mm512_mul_ps(a.v, b.v), c.v)};
}

template <>
struct Vec<double> {
  static constexpr int64_t size = 8;
  __m512d v;
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
};
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_add_pd(_mm512_mul_pd(a.v, b.v), c.v)};
}

#elif defined(FASTDIFF_ISA_AVX2)

template <>
struct Vec<float> {
  static constexpr int64_t size = 8;
  __m256 v;
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
};
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_add_ps(_mm256_mul_ps(a.v, b.v), c.v)};
}

template <>
struct Vec<double> {
  static constexpr int64_t size = 4;
  __m256d v;
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
};
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_add_pd(_mm256_mul_pd(a.v, b.v), c.v)};
}

#elif defined(FASTDIFF_ISA_NEON)

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

#else  // baseline: short loops that any compiler turns into whatever vectors the target has

template <class T>
struct Vec {
  static constexpr int64_t size = 4;
  T v[4];
  static Vec load(const T* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Vec broadcast(T x) { return {{x, x, x, x}}; }
  void store(T* p) const {
    for (int i = 0; i < 4; ++i) p[i] = v[i];
  }
};
template <class T>
inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
  Vec<T> r;
  for (int i = 0; i < 4; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
  return r;
}

#endif

// ---- arithmetic of Vec<float>
// ----------------------------------------------------------------------------------------
//
// fma(a, b, c) = a * b + c, fused where the instruction set can. load_some and store_some touch the first n values, n
// below size; the others are read as 0. keep_first(a, n) has 0 for the others. store_two(p, a, b) stores a, then b;
// stream_two as well, around the caches where the instruction set can, and p is then a multiple of 64 bytes.

using F = Vec<float>;

#if defined(FASTDIFF_ISA_AVX512)

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F times_power_of_two(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float max(F a) { return _mm512_reduce_max_ps(a.v); }

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline F load(const float* p) { return F::load(p); }
inline F load_some(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline void store(float* p, F a) { a.store(p); }
inline void store_some(float* p, F a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
inline F keep_first(F a, int64_t n) { return {_mm512_maskz_mov_ps(first(n), a.v)}; }

inline F widen(__m256i x, bfloat16) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }
inline F widen(__m256i x, float16) { return {_mm512_cvtph_ps(x)}; }
// The upper half of each number is its nearest bfloat16, ties to even; a NaN is made one that the addition does not
// carry over.
inline __m512i round_to_upper_half(F a) {
  const __m512i nan_to_quiet = _mm512_set1_epi32(0x33);  // classes 0 and 1, NaNs: the default NaN; others as they are
  const __m512i bits = _mm512_castps_si512(_mm512_fixupimm_ps(a.v, a.v, nan_to_quiet, 0));
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
}
inline __m256i narrow(F a, bfloat16) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_upper_half(a), 16)); }
inline __m256i narrow(F a, float16) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
template <class H>
inline F load(const H* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), H{});
}
template <class H>
inline F load_some(const H* p, int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p), H{});
}
template <class H>
inline void store(H* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, H{}));
}
template <class H>
inline void store_some(H* p, F a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(a, H{}));
}
inline __m512i narrow_two(F a, F b, bfloat16) {
  const __m512i halves =
      _mm512_packus_epi32(_mm512_srli_epi32(round_to_upper_half(a), 16), _mm512_srli_epi32(round_to_upper_half(b), 16));
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), halves);
}
inline __m512i narrow_two(F a, F b, float16) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(a, float16{})), narrow(b, float16{}), 1);
}
template <class H>
inline void store_two(H* p, F a, F b) {
  _mm512_storeu_si512(p, narrow_two(a, b, H{}));
}
inline void store_two(float* p, F a, F b) {
  store(p, a);
  store(p + F::size, b);
}
template <class H>
inline void stream_two(H* p, F a, F b) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), narrow_two(a, b, H{}));
}
inline void stream_two(float* p, F a, F b) {
  _mm512_stream_ps(p, a.v);
  _mm512_stream_ps(p + F::size, b.v);
}

#else

#if defined(FASTDIFF_ISA_AVX2)

inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F round(F a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// In two factors, so that results below the normal numbers are not lost at once. n in [-252, 252].
inline F times_power_of_two(F a, F n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, p), q)};
}
inline F keep_first(F a, int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  return {_mm256_and_ps(a.v, _mm256_castsi256_ps(kept))};
}

#elif defined(FASTDIFF_ISA_NEON)

inline F operator+(F a, F b) { return {vaddq_f32(a.v, b.v)}; }
inline F operator-(F a, F b) { return {vsubq_f32(a.v, b.v)}; }
inline F operator*(F a, F b) { return {vmulq_f32(a.v, b.v)}; }
inline F operator/(F a, F b) { return {vdivq_f32(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline F max(F a, F b) { return {vmaxq_f32(a.v, b.v)}; }
inline F min(F a, F b) { return {vminq_f32(a.v, b.v)}; }
inline F round(F a) { return {vrndnq_f32(a.v)}; }
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

#else

#define FASTDIFF_LANES(expression)                 \
  F r;                                             \
  for (int i = 0; i < 4; ++i) r.v[i] = expression; \
  return r
inline F operator+(F a, F b) { FASTDIFF_LANES(a.v[i] + b.v[i]); }
inline F operator-(F a, F b) { FASTDIFF_LANES(a.v[i] - b.v[i]); }
inline F operator*(F a, F b) { FASTDIFF_LANES(a.v[i] * b.v[i]); }
inline F operator/(F a, F b) { FASTDIFF_LANES(a.v[i] / b.v[i]); }
inline F fma(F a, F b, F c) { FASTDIFF_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline F max(F a, F b) { FASTDIFF_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F min(F a, F b) { FASTDIFF_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
// Adding 1.5 * 2^23 leaves no bits for a fraction. |a| < 2^22.
inline F round(F a) { FASTDIFF_LANES((a.v[i] + 12582912.0f) - 12582912.0f); }
inline float power_of_two(int32_t n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
inline F times_power_of_two(F a, F n) {
  F r;
  for (int i = 0; i < 4; ++i) {
    const int32_t whole = static_cast<int32_t>(n.v[i]), half = whole >> 1;
    r.v[i] = a.v[i] * power_of_two(half) * power_of_two(whole - half);
  }
  return r;
}
inline F keep_first(F a, int64_t n) { FASTDIFF_LANES(i < n ? a.v[i] : 0.0f); }
#undef FASTDIFF_LANES

#endif

inline float sum(F a) {
  float lanes[F::size], total = 0;
  a.store(lanes);
  for (int64_t i = 0; i < F::size; ++i) total += lanes[i];
  return total;
}
inline float max(F a) {
  float lanes[F::size];
  a.store(lanes);
  for (int64_t i = 1; i < F::size; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

#if defined(FASTDIFF_ISA_AVX2)
inline F widen(__m128i x, bfloat16) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))}; }
inline F widen(__m128i x, float16) { return {_mm256_cvtph_ps(x)}; }
inline __m128i narrow(F a, bfloat16) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));  // to even
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256 chosen =
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return _mm256_castsi256_si128(packed);
}
inline __m128i narrow(F a, float16) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
template <class H>
inline F load(const H* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), H{});
}
template <class H>
inline void store(H* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, H{}));
}
#elif defined(FASTDIFF_ISA_NEON)
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
#else
template <class H>
inline F load(const H* p) {
  F r;
  for (int i = 0; i < 4; ++i) r.v[i] = widen(p[i]);
  return r;
}
template <class H>
inline void store(H* p, F a) {
  for (int i = 0; i < 4; ++i) p[i] = narrow(a.v[i], H{});
}
#endif

inline F load(const float* p) { return F::load(p); }
inline void store(float* p, F a) { a.store(p); }
template <class H>
inline F load_some(const H* p, int64_t n) {
  H values[F::size] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = p[i];
  return load(values);
}
template <class H>
inline void store_some(H* p, F a, int64_t n) {
  H values[F::size];
  store(values, a);
  for (int64_t i = 0; i < n; ++i) p[i] = values[i];
}
template <class H>
inline void store_two(H* p, F a, F b) {
  store(p, a);
  store(p + F::size, b);
}
template <class H>
inline void stream_two(H* p, F a, F b) {
  store_two(p, a, b);
}
#if defined(FASTDIFF_ISA_AVX2)
inline void stream_two(float* p, F a, F b) {
  _mm256_stream_ps(p, a.v);
  _mm256_stream_ps(p + F::size, b.v);
}
#endif

#endif

#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_AVX2)
inline void stream_fence() { _mm_sfence(); }
#else
inline void stream_fence() {}
#endif

// Asks for the cache line of p, which may be any address.
inline void prefetch_line(const void* p) {
#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_AVX2)
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
#elif defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}
// The same for what is not needed at once: as far as the second cache.
inline void prefetch_far(const void* p) {
#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_AVX2)
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
#elif defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}
// The lines of `vectors` vectors at p.
template <int vectors, class T>
inline void prefetch(const T* p) {
  constexpr int64_t bytes = vectors * F::size * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < bytes; i += 64) prefetch_line(reinterpret_cast<const char*>(p) + i);
}

// 2^x to 2 ulp, 0 below -150, infinity from 128 on: the whole part is an exponent, a polynomial does the rest. NaN
// stays NaN.
inline F exp2(F x) {
#if defined(FASTDIFF_ISA_AVX512)
  const F f = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}, n = x;  // scalef rounds n down itself
#else
  x = min(F::broadcast(200.0f), max(F::broadcast(-150.0f), x));
  const F n = round(x - F::broadcast(0.5f)), f = x - n;
#endif
  F p = F::broadcast(0.0018671300495043397f);  // the least relative error, 8.3e-8, on [0, 1] with p(0) = 1
  p = fma(p, f, F::broadcast(0.009017030708491802f));
  p = fma(p, f, F::broadcast(0.05579991266131401f));
  p = fma(p, f, F::broadcast(0.24016444385051727f));
  p = fma(p, f, F::broadcast(0.6931512951850891f));
  p = fma(p, f, F::broadcast(1.0f));
  return times_power_of_two(p, n);
}

// x / (1 + e^-x), to the error of half a unit in the last place of x. The division runs beside the arithmetic, and
// costs no more than an estimate of the reciprocal and its correction.
inline F silu(F x) { return x / (F::broadcast(1) + exp2(x * F::broadcast(-1.44269504088896341f))); }

// The derivative of silu, s (1 + x (1 - s)) with s = 1 / (1 + e^-x).
inline F silu_slope(F x) {
  const F one = F::broadcast(1), s = one / (one + exp2(x * F::broadcast(-1.44269504088896341f)));
  return s * fma(x, one - s, one);
}

}  // namespace fastdiff::FASTDIFF_ISA

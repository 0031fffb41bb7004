// The contract of simd.h in AVX2 with FMA and F16C: vectors of 256 bits.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "fastdiff/half.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
struct Vec;

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

// ---- arithmetic

using F = Vec<float>;
constexpr int kRegisters = 16;

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

// ---- memory

inline F load(const float* p) { return F::load(p); }
inline void store(float* p, F a) { a.store(p); }

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
template <class H>
inline void stream_two(H* p, F a, F b) {
  store(p, a);
  store(p + F::size, b);
}
inline void stream_two(float* p, F a, F b) {
  _mm256_stream_ps(p, a.v);
  _mm256_stream_ps(p + F::size, b.v);
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch_line(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace fastdiff::FASTDIFF_ISA

#include "fastdiff/simd/by_lanes.h"

// The contract of simd.h in AVX-512 (F, BW, DQ, VL): vectors of 512 bits, and masks for part of one. Also for AMX.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "fastdiff/half.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
struct Vec;

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

// ---- arithmetic

using F = Vec<float>;
constexpr int kRegisters = 32;

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F times_power_of_two(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// The power is x itself: times_power_of_two rounds it down, and does what is right far beyond the exponents.
inline F split_exponent(F x, F* power) {
  *power = x;
  return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float max(F a) { return _mm512_reduce_max_ps(a.v); }

// ---- memory

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
inline void stream_fence() { _mm_sfence(); }
inline void prefetch_line(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline void transpose(F* rows) {
  __m512 a[16], b[16];
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 16; i += 4)  // b[i + j]: column j of every quarter, of rows i to i + 3
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  FASTDIFF_UNROLL_16
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88),
                 odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[4 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[8 + j].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[12 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

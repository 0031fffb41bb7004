// One vector of T in the widest registers of the instruction set that this file is compiled for.
//
// Included only by the files that are compiled once an instruction set. They must not use inline functions of the
// standard library: the linker keeps one copy of those, perhaps one with instructions that the machine lacks.
#pragma once

#include <stdint.h>

#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_AVX2)
#include <immintrin.h>
#elif defined(FASTDIFF_ISA_NEON)
#include <arm_neon.h>
#endif

#if defined(FASTDIFF_ISA_AVX512)
#define FASTDIFF_ISA avx512
#elif defined(FASTDIFF_ISA_AVX2)
#define FASTDIFF_ISA avx2
#elif defined(FASTDIFF_ISA_NEON)
#define FASTDIFF_ISA neon
#else
#define FASTDIFF_ISA baseline
#endif

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
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return {vaddq_f32(vmulq_f32(a.v, b.v), c.v)}; }

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

}  // namespace fastdiff::FASTDIFF_ISA

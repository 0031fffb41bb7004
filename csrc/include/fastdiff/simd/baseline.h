// The contract of simd.h in plain C++: loops over four numbers that any compiler turns into whatever vectors the target
// has.
#pragma once

#include <stdint.h>

#include "fastdiff/half.h"

namespace fastdiff::FASTDIFF_ISA {

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

// ---- arithmetic

using F = Vec<float>;
constexpr int kRegisters = 16;

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
// In two factors, so that results below the normal numbers are not lost at once. n in [-252, 252].
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

// ---- memory

inline F load(const float* p) { return F::load(p); }
inline void store(float* p, F a) { a.store(p); }

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

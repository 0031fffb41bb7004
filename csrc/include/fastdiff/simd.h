// One vector of T in the widest registers of the instruction set that this file is compiled for.
//
// Included only by the files that are compiled once an instruction set. They must not use inline functions of the
// standard library: the linker keeps one copy of those, perhaps one with instructions that the machine lacks.
//
// Each file in simd/ has the same contract, all that an instruction set need provide:
//
//   Vec<float>, Vec<double>      size, load, broadcast, store
//   multiply_add(a, b, c)        a * b + c, rounded after each of the two operations, as torch does it: not fused
// and, of F = Vec<float> alone,
//   kRegisters                   how many vectors there are registers for
//   + - * /, max, min, round     lane by lane; round: to the nearest whole number, ties to even
//   fma(a, b, c)                 a * b + c, fused where the instruction set can
//   times_power_of_two(a, n)     a * 2^n for a whole n
//   split_exponent(x, &n)        f in [0, 1] with 2^x = 2^f times_power_of_two(1, n), or with the power's limit, 0 or
//                                infinity; NaN stays NaN
//   sum(a), max(a)               across the lanes
//   keep_first(a, n)             0 for the lanes from n on, n below size
//   transpose(rows)              of `size` vectors: rows[i] lane j <-> rows[j] lane i
// with memory of float, bfloat16 or float16 at p, to which numbers are rounded to even:
//   load(p), store(p, a)
//   load_some, store_some(.., n) touch the first n values, n below size; the others are read as 0
//   store_two(p, a, b)           stores a, then b
//   stream_two(p, a, b)          the same by non-temporal stores where there are any; p is then a multiple of 64 bytes
//   stream_fence()               belongs after the last stream_two
//   prefetch_line(p)             fetches the cache line of p, which may be any address
//   prefetch_far(p)              the same for what is not needed at once: as far as L2
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define FASTDIFF_UNROLL_16 _Pragma("GCC unroll 16")
#define FASTDIFF_UNROLL_2 _Pragma("GCC unroll 2")
#define FASTDIFF_NOINLINE __attribute__((noinline))
#define FASTDIFF_INLINE __attribute__((always_inline)) inline
#else
#define FASTDIFF_UNROLL_16
#define FASTDIFF_UNROLL_2
#define FASTDIFF_NOINLINE __declspec(noinline)
#define FASTDIFF_INLINE __forceinline
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define __builtin_sqrtf sqrtf
#define __builtin_memcpy memcpy
#define __builtin_prefetch(p, ...) static_cast<void>(p)
#endif

#if defined(FASTDIFF_ISA_AMX)  // the vectors of AVX-512, and products in tiles: see amx.h
#define FASTDIFF_ISA amx
#include "fastdiff/simd/avx512.h"
#elif defined(FASTDIFF_ISA_AVX512_BFLOAT16)  // and products of bfloat16
#define FASTDIFF_ISA avx512_bfloat16
#include "fastdiff/simd/avx512.h"
#elif defined(FASTDIFF_ISA_AVX512_VNNI)  // and products of 8-bit integers
#define FASTDIFF_ISA avx512_vnni
#include "fastdiff/simd/avx512.h"
#elif defined(FASTDIFF_ISA_AVX512)
#define FASTDIFF_ISA avx512
#include "fastdiff/simd/avx512.h"
#elif defined(FASTDIFF_ISA_AVX2)
#define FASTDIFF_ISA avx2
#include "fastdiff/simd/avx2.h"
#elif defined(FASTDIFF_ISA_NEON)
#define FASTDIFF_ISA neon
#include "fastdiff/simd/neon.h"
#else
#define FASTDIFF_ISA baseline
#include "fastdiff/simd/baseline.h"
#endif

namespace fastdiff::FASTDIFF_ISA {

// The lines of `vectors` vectors at p.
template <int vectors, class T>
inline void prefetch(const T* p) {
  constexpr int64_t bytes = vectors * F::size * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < bytes; i += 64) prefetch_line(reinterpret_cast<const char*>(p) + i);
}

// 2^x to 2 ulp, 0 below -150, infinity from 128 on: the whole part is an exponent, a polynomial does the rest. NaN
// stays NaN.
inline F exp2(F x) {
  F power;
  const F f = split_exponent(x, &power);
  F p = F::broadcast(0.0018671300495043397f);  // the least relative error, 8.3e-8, on [0, 1] with p(0) = 1
  p = fma(p, f, F::broadcast(0.009017030708491802f));
  p = fma(p, f, F::broadcast(0.05579991266131401f));
  p = fma(p, f, F::broadcast(0.24016444385051727f));
  p = fma(p, f, F::broadcast(0.6931512951850891f));
  p = fma(p, f, F::broadcast(1.0f));
  return times_power_of_two(p, power);
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

// Sums and maxima of sixteen vectors at once, in AVX-512: fewer steps across the lanes than one vector after the other.
#pragma once

#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// Lane i: the sum (or the largest) of the lanes of rows[i], by two(a, b) = a + b (or max(a, b)).
template <class Two>
FASTDIFF_INLINE F across(const F* rows, const Two& two) {
  __m512 a[8], b[4], c[2];
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 8; ++i)
    a[i] = two(F{_mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v)},
               F{_mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v)})
               .v;
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = two(F{_mm512_castpd_ps(_mm512_unpacklo_pd(x, y))}, F{_mm512_castpd_ps(_mm512_unpackhi_pd(x, y))}).v;
  }
  for (int i = 0; i < 2; ++i)
    c[i] = two(F{_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88)},
               F{_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd)})
               .v;
  return two(F{_mm512_shuffle_f32x4(c[0], c[1], 0x88)}, F{_mm512_shuffle_f32x4(c[0], c[1], 0xdd)});
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

// When attention on AMX is done again on vectors: where products in terms (see amx.h) made NaN of an infinity or of a
// number near the largest, or where scores are so large that what rounding leaves of the largest one is an exponent.
//
// Only for files that are compiled for AMX.
#pragma once

#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

namespace fastdiff::amx {
namespace {

// Of a score that is the softmax's reference, times log2(e): up to here it is rounded by less than 2^5.
constexpr float kMostReference = 0x1p28f;

// Numbers as they pass by.
struct Trust {
  F zeros = F::broadcast(0);
  // NaN from the first one that is not finite.
  FASTDIFF_INLINE void see(F x) { zeros = fma(x, F::broadcast(0), zeros); }
  FASTDIFF_INLINE void see_reference(F x) {
    const F size = max(x, F::broadcast(0) - x);
    if (_mm512_cmp_ps_mask(size.v, _mm512_set1_ps(kMostReference), _CMP_NLE_UQ))
      zeros = F::broadcast(__builtin_nanf(""));
  }
  void report(const Attention& op) const {
    if (_mm512_cmp_ps_mask(zeros.v, zeros.v, _CMP_UNORD_Q)) __atomic_store_n(op.doubtful, true, __ATOMIC_RELAXED);
  }
};

}  // namespace
}  // namespace fastdiff::amx

// What products in terms (see amx.h) cannot: infinities and numbers near the largest, which have no terms, and sums so
// small that terms or products below the normal numbers were lost. Such sums are made once more, of float32.
//
// Only for files that are compiled for AMX.
#pragma once

#include "fastdiff/amx.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::amx {
namespace {

// What is lost is at most 2^-126 of each product and of each factor: beside a sum of this size, nothing.
constexpr float kSmallSum = 0x1p-80f;

// Sums as they pass by: whether any of them may be wrong.
struct Doubt {
  F zeros = F::broadcast(0), least = F::broadcast(1);
  FASTDIFF_INLINE void see(F sums) {
    zeros = fma(sums, F::broadcast(0), zeros);           // NaN from the first one that is not finite
    least = {_mm512_range_ps(least.v, sums.v, 0b1010)};  // the one nearer to 0, without its sign
  }
  // Of the first n.
  FASTDIFF_INLINE void see(F sums, int64_t n) {
    see(n == kLanes ? sums : F{_mm512_mask_mov_ps(_mm512_set1_ps(1), first(n), sums.v)});
  }
  bool any() const {
    return _mm512_cmp_ps_mask(zeros.v, zeros.v, _CMP_UNORD_Q) ||
           _mm512_cmp_ps_mask(least.v, _mm512_set1_ps(kSmallSum), _CMP_LT_OQ);
  }
};
inline bool is_doubtful(float sum) {
  const float size = sum < 0 ? -sum : sum;
  return !(size >= kSmallSum && size <= 0x1.fffffep127f);
}

// What a row of numbers is as a whole, found when it is first asked for.
class RowKind {
public:
  bool zeros(const float* row, int64_t size) { return find(row, size), all_zero_; }
  bool has_nan(const float* row, int64_t size) { return find(row, size), has_nan_; }

private:
  void find(const float* row, int64_t size) {
    if (found_) return;
    found_ = true;
    for (int64_t i = 0; i < size; i += kLanes) {
      const F x = load_up_to(row + i, size - i < kLanes ? size - i : kLanes);
      if (_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NEQ_UQ)) all_zero_ = false;
      if (_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q)) has_nan_ = true;
    }
  }
  bool found_ = false, all_zero_ = true, has_nan_ = false;
};

inline float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t kSums = 4;
  F sums[kSums];
  for (F& s : sums) s = F::broadcast(0);
  int64_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes)
    for (int64_t s = 0; s < kSums; ++s)
      sums[s] = fma(F::load(a + i + s * kLanes), F::load(b + i + s * kLanes), sums[s]);
  for (; i < size; i += kLanes) {
    const int64_t n = size - i < kLanes ? size - i : kLanes;
    sums[0] = fma(load_up_to(a + i, n), load_up_to(b + i, n), sums[0]);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The doubtful ones among the sums of up to 32 rows by 32 columns, once more. row(r), column(c): the numbers of each,
// `size` of them.
template <class Row, class Column>
void mend_sums(float* sums, int64_t rows, int64_t columns, int64_t size, const Row& row, const Column& column) {
  RowKind of_row[32], of_column[32];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      float& sum = sums[r * 32 + c];
      if (!is_doubtful(sum)) continue;
      const float *x = row(r), *w = column(c);
      if (sum == 0 && (of_row[r].zeros(x, size) || of_column[c].zeros(w, size))) continue;  // that is right
      if (of_row[r].has_nan(x, size) || of_column[c].has_nan(w, size))
        sum = __builtin_nanf("");
      else
        sum = dot(x, w, size);
    }
}

}  // namespace
}  // namespace fastdiff::amx

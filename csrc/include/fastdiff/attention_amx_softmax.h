// The softmax of attention on AMX over blocks of keys, of 32 queries at a time, which are the lanes of two vectors:
// scores[key][query], row after row.
#pragma once

#include "fastdiff/factors.h"
#include "fastdiff/scores.h"

namespace fastdiff::amx {
namespace {

// A sum of weights beyond this asks for a larger reference: see attention.cpp.
constexpr float kMargin = 1.1e9f;  // 2^30

// What the vector units have time for in the 64 cycles or so of the products of two terms in 2 x 2 tiles.
FASTDIFF_INLINE void prefetch_some(RowPrefetcher& rows) {
  FASTDIFF_UNROLL_16
  for (int i = 0; i < 3; ++i) rows.prefetch_next();
}

// larger[lane] = the largest of that and of the scores, times a factor where there is no mask.
template <bool masked>
void add_maxima(const float* scores, int64_t keys, F factor, F* larger) {
  F found[2] = {larger[0], larger[1]};
  for (int64_t j = 0; j < keys; ++j)
    for (int c = 0; c < 2; ++c) {
      const F x = F::load(scores + (2 * j + c) * kLanes);
      found[c] = max(found[c], masked ? x : x * factor);
    }
  larger[0] = found[0], larger[1] = found[1];
}

// The weights e^(score - reference) of a block of keys as a right factor of W terms and whole steps, a pair of keys at
// a time, so that this can be done while the matrix unit multiplies; 0 for keys that fill the last step.
template <bool masked, int W>
struct Weigher {
  const float* scores;
  uint8_t* weights;
  int64_t pair, end, keys;  // the next pair; the first one whose scores are not there yet; of the block
  int64_t to_second;        // bytes from the first 16 queries' tiles to the others'
  F factor, from[2], sums[2];
  RowPrefetcher* prefetcher;

  Weigher(const float* s, uint8_t* w, int64_t k, F f, const F* reference, RowPrefetcher* p)
      : scores(s),
        weights(w),
        pair(0),
        end(0),
        keys(k),
        to_second(ceil_divide(k, kDepth) * W * kTileBytes),
        factor(f),
        prefetcher(p) {
    for (int c = 0; c < 2; ++c) {
      from[c] = masked ? reference[c] : F::broadcast(0) - reference[c];
      sums[c] = F::broadcast(0);
    }
  }

  // Numbers i and 16 + i of a step are a pair.
  FASTDIFF_INLINE int64_t first_key() const { return pair / kSide * kDepth + pair % kSide; }
  FASTDIFF_INLINE F weight(int64_t key, int c) const {
    const F x = F::load(scores + (2 * key + c) * kLanes);
    return masked ? exp2((x - from[c]) * F::broadcast(kLog2E)) : exp2(fma(x, factor, from[c]));
  }
  FASTDIFF_INLINE void put(int c, F first, F second) {
    uint8_t* to = weights + c * to_second + pair / kSide * W * kTileBytes + pair % kSide * 64;
    const Terms a = split<W>(first.v), b = split<W>(second.v);
    for (int i = 0; i < W; ++i) _mm512_store_si512(to + i * kTileBytes, pair_lanes(a.term[i], b.term[i]));
    sums[c] = sums[c] + (first + second);
  }
  // The next `pairs`, as far as their scores are there.
  FASTDIFF_INLINE void some(int64_t pairs) {
    prefetch_some(*prefetcher);
    for (; pairs > 0 && pair < end; --pairs, ++pair) {
      const int64_t key = first_key();
      FASTDIFF_UNROLL_2
      for (int c = 0; c < 2; ++c) put(c, weight(key, c), weight(key + kSide, c));
    }
  }
  // All that is left.
  FASTDIFF_INLINE void rest() {
    end = keys / kDepth * kSide;
    some(end);
    for (; pair < ceil_divide(keys, kDepth) * kSide; ++pair) {
      const int64_t key = first_key();
      const F zero = F::broadcast(0);
      for (int c = 0; c < 2; ++c)
        put(c, key < keys ? weight(key, c) : zero, key + kSide < keys ? weight(key + kSide, c) : zero);
    }
  }
};

// 32 queries, while the blocks of keys go by. The sums of values are in partial, and, once kChunk keys are in them, in
// out: [channel][query].
struct QueryBlock {
  F reference[2], total[2];
  uint8_t* q;  // right factor
  float *out, *partial;
  int64_t query, count;  // first of them; how many there are
  int64_t pending;       // keys in partial
  bool summed;           // whether anything is in out
};

// out = (out + partial) * factor, or without a factor where it is null.
FASTDIFF_NOINLINE void add_partial(QueryBlock& block, int64_t channels, const F* factor) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < 2; ++i) {
      float* out = block.out + (2 * c + i) * kLanes;
      F sum = block.summed ? F::load(out) : F::broadcast(0);
      if (block.pending) sum = sum + F::load(block.partial + (2 * c + i) * kLanes);
      (factor ? sum * factor[i] : sum).store(out);
    }
  block.pending = 0, block.summed = true;
}

}  // namespace
}  // namespace fastdiff::amx

// Attention with so few keys that all scores of a query are in registers at once, with the products on AMX to float32's
// precision (see amx.h). Queries are rows: they, their weights and their results are read and written as they lie (see
// factors.h), and only the keys are transposed, once for all queries of a head.
#include "fastdiff/arena.h"
#include "fastdiff/attention_amx_division.h"
#include "fastdiff/attention_amx_ends.h"
#include "fastdiff/factors_multiply.h"
#include "fastdiff/row_reductions.h"
#include "fastdiff/scores.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kMostVectors = 8;  // of scores of a query

template <class T>
struct Few {
  static constexpr int N = kTermsOf<T>, W = N == 1 ? 2 : N;  // terms of the inputs, and of the weights
  // The keys have the sign of the scale, so that the largest score is the largest product; and all of it, where they
  // have the bits for that.
  static constexpr bool kScaled = N == 3;

  // 32 queries of a head, and those that follow. keys, values: right factors of the head.
  struct Block {
    Division::Unit unit;
    const uint8_t *keys, *values;
    const T *q, *q_after;
    T* out;
    int64_t count_after;
  };

  const Attention& op;
  const Depth<N, N> channels;
  const Depth<W, N> keys;
  const int64_t vectors, score_row, value_tiles, key_bytes, value_bytes;
  const Division division;
  float factor;            // of a score, in units of log 2, but for its sign
  uint8_t *packed, *left;  // tiles: of the heads of a group; of the queries of a block, then of their weights
  float *scores, *sums, *top, *totals, *inverse, *transposed;
  mutable Trust trust;

  explicit Few(const Attention& a)
      : op(a),
        channels(a.channels),
        keys(a.keys),
        vectors(ceil_divide(a.keys, kSide)),
        score_row(ceil_divide(vectors, 2) * kBlock),
        value_tiles(ceil_divide(a.value_channels, kSide)),
        key_bytes(vectors * channels.right_bytes()),
        value_bytes(value_tiles * keys.right_bytes()),
        division(a, key_bytes + value_bytes, 1 << 20, kBlock),
        factor((a.scale < 0 ? -a.scale : a.scale) * kLog2E) {}

  Block block(int64_t index) const {
    const Division::Unit unit = division.unit(index);
    Block found = {};
    found.unit = unit;
    found.keys = packed + unit.slot * (key_bytes + value_bytes), found.values = found.keys + key_bytes;
    found.q = head_of<T>(op.q, unit.b, unit.h) + unit.query * op.q.row;
    found.out = const_cast<T*>(head_of<T>(op.out, unit.b, unit.h)) + unit.query * op.out.row;
    return found;
  }

  // Of a head, its keys and its values.
  FASTDIFF_NOINLINE void pack_head(int64_t b, int64_t h, uint8_t* to) const {
    const T *k = head_of<T>(op.k, b, h), *v = head_of<T>(op.v, b, h);
    const F of_key = F::broadcast((op.scale < 0 ? -1.0f : 1.0f) * (kScaled ? factor : 1.0f));
    for (int64_t key = 0; key < op.keys; key += kSide, to += channels.right_bytes()) {
      const int64_t after = op.keys - key - kSide;
      if (after > 0) prefetch_rows(k + (key + kSide) * op.k.row, op.k.row, after < kSide ? after : kSide, op.channels);
      put_transposed(
          channels, op.keys - key,
          [&](int64_t i, int64_t c, int64_t n) { return load_up_to(k + (key + i) * op.k.row + c, n) * of_key; },
          transposed, to);
    }
    for (int64_t c = 0; c < op.value_channels; c += kSide, to += keys.right_bytes()) {
      const int64_t n = op.value_channels - c < kSide ? op.value_channels - c : kSide;
      put_columns(keys, [&](int64_t key) { return load_up_to(v + key * op.v.row + c, n); }, to);
    }
  }

  // The queries as a left factor; those that follow are prefetched.
  FASTDIFF_NOINLINE void pack_queries(const Block& block) const {
    for (int64_t row = 0; row < kBlock; ++row) {
      if (row < block.count_after) prefetch_rows(block.q_after + row * op.q.row, 0, 1, op.channels);
      put_row_of<cut<N>>(channels, row < block.unit.count ? block.q + row * op.q.row : nullptr,
                         left_row(channels, left, row));
    }
  }

  // The weights, V vectors of a query, as a left factor, not yet divided by their sums; the lines of the results are
  // prefetched.
  template <int V>
  FASTDIFF_NOINLINE void weigh(const Block& block) const {
    const __mmask16 last = first(op.keys - (V - 1) * kSide);
    const F scale = F::broadcast(factor);
    const auto score = [&](int64_t row, int i)
                           __attribute__((always_inline)) {  // with an odd number of vectors the last is in halves
                             const float* s = scores + row * score_row + i * kLanes;
                             return V % 2 && i == V - 1 ? F::load(s) + F::load(s + kLanes) : F::load(s);
                           };
    for (int64_t start = 0; start < kBlock; start += kSide) {
      F rows[kSide];
      for (int64_t r = 0; r < kSide; ++r) {
        rows[r].v = _mm512_mask_mov_ps(_mm512_set1_ps(kLowest), last, score(start + r, V - 1).v);
        FASTDIFF_UNROLL_16
        for (int i = 0; i + 1 < V; ++i) rows[r] = max(rows[r], score(start + r, i));
      }
      across(rows, [](F a, F b) { return max(a, b); }).store(top + start);
      for (int64_t row = start; row < start + kSide; ++row) {
        if (row < block.unit.count) prefetch_rows(block.out + row * op.out.row, 0, 1, op.value_channels);
        const F from = F::broadcast(top[row]);
        F x[V];
        FASTDIFF_UNROLL_16
        for (int i = 0; i < V; ++i) x[i] = exp2(kScaled ? score(row, i) - from : (score(row, i) - from) * scale);
        x[V - 1].v = _mm512_maskz_mov_ps(last, x[V - 1].v);
        F all = x[0];
        FASTDIFF_UNROLL_16
        for (int i = 1; i < V; ++i) all = all + x[i];
        all.store(totals + (row - start) * kLanes);
        for (int i = 0; i < V && op.maps; ++i) x[i].store(scores + row * score_row + i * kLanes);
        // (Where V is 1 there are no steps of two vectors, but the compiler does not know.)
        put_row<W == 3 ? cut<W> : split<W, false>>(
            keys, [&](int64_t i) __attribute__((always_inline)) { return x[V == 1 ? 0 : i]; },
            left_row(keys, left, row));
      }
      for (int64_t r = 0; r < kSide; ++r) rows[r] = F::load(totals + r * kLanes);
      const F total = across(rows, [](F a, F b) { return a + b; });
      trust.see(total);
      (F::broadcast(1) / total).store(inverse + start);
      if (op.maps) write_maps(block, start);
      if (!op.lse) continue;
      total.store(totals);
      float* lse = op.lse + row_of(block);
      for (int64_t row = start; row < start + kSide && row < block.unit.count; ++row)
        lse[row] = top[row] * (kScaled ? 1.0f : factor) * kLn2 + __builtin_logf(totals[row - start]);
    }
  }

  FASTDIFF_NOINLINE void multiply_queries(const Block& block) const {
    const int64_t stride = channels.right_bytes();
    int64_t i = 0;
    for (; i + 2 <= vectors; i += 2)
      multiply_2x2(channels, left, block.keys + i * stride, scores + i * kSide, score_row);
    if (i < vectors) multiply_2x1(channels, left, block.keys + i * stride, scores + i * kSide, score_row);
  }

  FASTDIFF_NOINLINE void multiply_values(const Block& block) const {
    const int64_t stride = keys.right_bytes();
    int64_t i = 0;
    for (; i + 2 <= value_tiles; i += 2) {
      multiply_2x2(keys, left, block.values + i * stride, sums, kBlock);
      write(block, i * kSide);
    }
    if (i < value_tiles) {
      multiply_2x1(keys, left, block.values + i * stride, sums, kBlock);
      write(block, i * kSide);
    }
  }

  // Two tiles of channels of a result, or one in two halves.
  FASTDIFF_NOINLINE void write(const Block& block, int64_t channel) const {
    T* out = block.out + channel;
    const int64_t n = op.value_channels - channel;
    for (int64_t row = 0; row < block.unit.count; ++row, out += op.out.row) {
      const F factor = F::broadcast(inverse[row]), a = F::load(sums + row * kBlock),
              b = F::load(sums + row * kBlock + kSide);
      trust.see(a + b);
      if (n >= kBlock) {
        store(out, a * factor);
        store(out + kSide, b * factor);
      } else if (n > kSide) {
        store(out, a * factor);
        store_some(out + kSide, b * factor, n - kSide);
      } else {
        const F x = (a + b) * factor;
        n == kSide ? store(out, x) : store_some(out, x, n);
      }
    }
  }

  // The weights of 16 queries, which are where their scores were, divided by their sums: attention probabilities.
  FASTDIFF_NOINLINE void write_maps(const Block& block, int64_t start) const {
    for (int64_t row = start; row < start + kSide && row < block.unit.count; ++row) {
      T* maps = static_cast<T*>(op.maps) + (row_of(block) + row) * op.keys;
      for (int64_t key = 0; key < op.keys; key += kSide) {
        const F x = F::load(scores + row * score_row + key) * F::broadcast(inverse[row]);
        op.keys - key < kSide ? store_some(maps + key, x, op.keys - key) : store(maps + key, x);
      }
    }
  }
  // The first query of the block among those of all heads.
  int64_t row_of(const Block& block) const {
    return (block.unit.b * op.heads + block.unit.h) * op.queries + block.unit.query;
  }

  void weigh_any(const Block& block) const {
    using Weigh = void (Few::*)(const Block&) const;
    constexpr Weigh of[kMostVectors] = {&Few::weigh<1>, &Few::weigh<2>, &Few::weigh<3>, &Few::weigh<4>,
                                        &Few::weigh<5>, &Few::weigh<6>, &Few::weigh<7>, &Few::weigh<8>};
    (this->*of[vectors - 1])(block);
  }

  void run(int64_t begin, int64_t end) {
    const TileRegisters registers;
    Arena arena;
    packed = arena.take<uint8_t>(division.heads * (key_bytes + value_bytes));
    left = arena.take<uint8_t>(channels.left_bytes() > keys.left_bytes() ? channels.left_bytes() : keys.left_bytes());
    scores = arena.take<float>(kBlock * score_row);
    sums = arena.take<float>(kBlock * kBlock);
    top = arena.take<float>(kBlock);
    inverse = arena.take<float>(kBlock);
    totals = arena.take<float>(kSide * kLanes);
    transposed = arena.take<float>(op.channels * kSide);
    int64_t loaded = -1;  // group
    for (int64_t i = begin; i < end; ++i) {
      Block here = block(i);
      if (i + 1 < end) {
        const Block after = block(i + 1);
        here.q_after = after.q, here.count_after = after.unit.count;
      }
      const Division::Unit& unit = here.unit;
      for (int64_t slot = 0; slot < division.heads && unit.group != loaded; ++slot)
        pack_head(unit.b, unit.h - unit.slot + slot, packed + slot * (key_bytes + value_bytes));
      loaded = unit.group;
      pack_queries(here);
      multiply_queries(here);
      weigh_any(here);
      multiply_values(here);
    }
    trust.report(op);
  }
};

}  // namespace

// Whether the keys are few enough, and there is enough to multiply that the terms, of which float32 has the most, pay:
// measured. Masks are left to AVX-512.
bool attention_few_takes(const Attention& op) {
  if (op.keys > kMostVectors * kSide || op.mask_type != Mask::none) return false;
  const int64_t terms = op.type == Type::float32 ? 3 : op.type == Type::float16 ? 2 : 1;
  return op.keys > 4 * terms && op.queries >= kBlock * terms && op.channels + op.value_channels > 16 * terms;
}

int64_t attention_few_units(const Attention& op) { return op.batch * op.heads * ceil_divide(op.queries, kBlock); }

void attention_few(const Attention& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32:
      return Few<float>(op).run(begin, end);
    case Type::bfloat16:
      return Few<bfloat16>(op).run(begin, end);
    case Type::float16:
      return Few<float16>(op).run(begin, end);
  }
}

}  // namespace fastdiff::amx

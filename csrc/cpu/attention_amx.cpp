// Attention (see attention.cpp) with the products on AMX, to float32's precision: see amx.h. Scores are transposed here
// as well: lanes are queries, so that the weights of two keys, side by side, are a row of the right factor of the
// second product as they are computed. Blocks of keys are in the outer loop and 32 queries in the inner one, so that
// keys and values are read from afar once for all queries of a unit.
#include "fastdiff/arena.h"
#include "fastdiff/attention_amx_division.h"
#include "fastdiff/attention_amx_ends.h"
#include "fastdiff/attention_amx_pack.h"
#include "fastdiff/attention_amx_softmax.h"
#include "fastdiff/factors_multiply.h"

namespace fastdiff::avx512 {
int64_t attention_units(const Attention& op);
void attention(const Attention& op, int64_t begin, int64_t end);
}  // namespace fastdiff::avx512

namespace fastdiff::amx {

bool attention_few_takes(const Attention& op);
int64_t attention_few_units(const Attention& op);
void attention_few(const Attention& op, int64_t begin, int64_t end);

namespace {

constexpr int64_t kKeys = 128;         // of a block
constexpr int64_t kMostQueries = 128;  // of a unit
constexpr int64_t kChunk = 512;        // keys whose products are summed before they are added to those of others

Division divide(const Attention& op) {
  return Division(op, op.keys * (op.channels + op.value_channels), 1 << 17, kMostQueries);
}

template <class T, bool masked>
struct Many {
  static constexpr int N = kTermsOf<T>, W = N == 1 ? 2 : N;  // terms of the inputs, and of the weights

  const Attention& op;
  const Division division;
  const Depth<N, N> channels;
  const Depth<N, W> all_keys;                      // in whole steps
  const int64_t key_bytes, value_bytes, out_size;  // packed, of a head; sums of 32 queries
  uint8_t *keys, *values, *queries, *weights;      // factors: of a group; of a group; of a unit; of a block of keys
  float *out, *partial, *scores, *bias, *transposed;
  RowPrefetcher results, next_queries;  // of this unit and of the next

  explicit Many(const Attention& a)
      : op(a),
        division(divide(a)),
        channels(a.channels),
        all_keys(ceil_divide(a.keys, kDepth) * kDepth),
        key_bytes(ceil_divide(a.keys, kBlock) * channels.left_bytes()),
        value_bytes(ceil_divide(a.value_channels, kBlock) * all_keys.left_bytes()),
        out_size(ceil_divide(a.value_channels, kSide) * kSide * kBlock) {}

  // scores[key][query] of up to 32 keys from `key` on, which are row j of the scores.
  template <class Meanwhile>
  FASTDIFF_INLINE void multiply_queries(const uint8_t* head_keys, int64_t key, int64_t j, int64_t count,
                                        const QueryBlock& block, const Meanwhile& meanwhile) const {
    const uint8_t* left = head_keys + (key + j) / kBlock * channels.left_bytes();
    float* to = scores + j * kBlock;
    count - j > kSide ? multiply_2x2(channels, left, block.q, to, kBlock, false, meanwhile)
                      : multiply_1x2(channels, left, block.q, to, false, meanwhile);
  }

  // Of a block of keys; with a mask, times the scale and with the mask added.
  void all_scores(const Division::Unit& unit, int64_t key, int64_t count, const uint8_t* head_keys,
                  const QueryBlock& block) {
    for (int64_t j = 0; j < count; j += kBlock)
      multiply_queries(head_keys, key, j, count, block,
                       [&]() __attribute__((always_inline)) { prefetch_some(results); });
    if (!masked) return;
    load_bias<2, T>(op, unit.b, unit.h, block.query, block.count, key, count, bias);
    for (int64_t i = 0; i < count * kBlock; i += kLanes)
      fma(F::load(scores + i), F::broadcast(op.scale), F::load(bias + i)).store(scores + i);
  }

  // The weights of a block of keys and their sums. Returns whether a score is too large for the reference.
  FASTDIFF_INLINE bool weigh_while_multiplying(int64_t key, int64_t count, const uint8_t* head_keys, F factor,
                                               QueryBlock& block, F* sums) {
    multiply_queries(head_keys, key, 0, count, block, [&]() __attribute__((always_inline)) { prefetch_some(results); });
    if (key == 0) add_maxima<masked>(scores, count < kBlock ? count : kBlock, factor, block.reference);
    Weigher<masked, W> weigher(scores, weights, count, factor, block.reference, &results);
    const int64_t pairs = ceil_divide(kBlock / 2, channels.products());
    for (int64_t j = kBlock; j < count; j += kBlock) {
      weigher.end = j / 2;
      multiply_queries(head_keys, key, j, count, block, [&]() __attribute__((always_inline)) { weigher.some(pairs); });
    }
    weigher.rest();
    sums[0] = weigher.sums[0], sums[1] = weigher.sums[1];
    return max(sums[0]) > kMargin || max(sums[1]) > kMargin;
  }

  // partial[channel][query] (+)= values x weights of a block of keys.
  FASTDIFF_NOINLINE void multiply_values(const uint8_t* head_values, int64_t key, int64_t count, QueryBlock& block) {
    const Depth<N, W> depth(ceil_divide(count, kDepth) * kDepth);
    RowPrefetcher rows = next_queries;
    const auto meanwhile = [&]() __attribute__((always_inline)) { prefetch_some(rows); };
    const uint8_t* left = head_values + key / kDepth * 2 * N * kTileBytes;
    for (int64_t c = 0; c < op.value_channels; c += kBlock, left += all_keys.left_bytes()) {
      float* to = block.partial + c * kBlock;
      op.value_channels - c > kSide ? multiply_2x2(depth, left, weights, to, kBlock, block.pending != 0, meanwhile)
                                    : multiply_1x2(depth, left, weights, to, block.pending != 0, meanwhile);
    }
    next_queries = rows;
    block.pending += count;
  }

  // The keys from `key` on, a block, for 32 queries. The reference comes from the first 32 keys, or, with a mask, from
  // all of a block, where it may be -infinity for some.
  void run_block(const Division::Unit& unit, int64_t key, const uint8_t* head_keys, const uint8_t* head_values,
                 QueryBlock& block) {
    const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
    const F factor = F::broadcast(masked ? op.scale : op.scale * kLog2E);
    F sums[2];
    bool larger = masked;
    if (masked)
      all_scores(unit, key, count, head_keys, block);
    else
      larger = weigh_while_multiplying(key, count, head_keys, factor, block, sums);
    if (larger) {
      F decay[2];
      const F before[2] = {block.reference[0], block.reference[1]}, log2 = F::broadcast(masked ? kLog2E : 1.0f);
      add_maxima<masked>(scores, count, factor, block.reference);
      Weigher<masked, W> weigher(scores, weights, count, factor, block.reference, &results);
      weigher.rest();
      for (int c = 0; c < 2; ++c) {
        sums[c] = weigher.sums[c];
        decay[c] = exp2((before[c] - block.reference[c]) * log2);
        block.total[c] = block.total[c] * decay[c];
      }
      if (key > 0 && (sum(decay[0]) != kLanes || sum(decay[1]) != kLanes)) add_partial(block, op.value_channels, decay);
    }
    for (int c = 0; c < 2; ++c) block.total[c] = block.total[c] + sums[c];
    multiply_values(head_values, key, count, block);
    if (block.pending >= kChunk && key + count < op.keys) add_partial(block, op.value_channels, nullptr);
  }

  // The results of 32 queries, and what else is asked for: the logarithms of the sums, the attention probabilities.
  FASTDIFF_NOINLINE void finish(const Division::Unit& unit, const uint8_t* head_keys, QueryBlock& block) {
    if (block.summed || !block.pending) add_partial(block, op.value_channels, nullptr);
    const float* found = block.summed ? block.out : block.partial;
    Trust trust;
    for (int64_t i = 0; i < op.value_channels * kBlock; i += kLanes) trust.see(F::load(found + i));
    for (int c = 0; c < 2; ++c) {
      trust.see(block.total[c]);
      if (!masked) trust.see_reference(block.reference[c]);
    }
    trust.report(op);
    float total[kBlock], top[kBlock], inverse[kBlock];
    for (int c = 0; c < 2; ++c) block.total[c].store(total + c * kLanes), block.reference[c].store(top + c * kLanes);
    for (int64_t i = 0; i < kBlock; ++i) inverse[i] = total[i] == 0 ? 0.0f : 1.0f / total[i];
    const F factor[2] = {F::load(inverse), F::load(inverse + kLanes)};
    transpose_out<2>(found, op.value_channels, block.count, factor,
                     const_cast<T*>(head_of<T>(op.out, unit.b, unit.h)) + block.query * op.out.row, op.out.row);
    const int64_t row = (unit.b * op.heads + unit.h) * op.queries + block.query;
    if (op.lse)
      for (int64_t i = 0; i < block.count; ++i)
        op.lse[row + i] = total[i] == 0 ? __builtin_inff() : top[i] * (masked ? 1.0f : kLn2) + __builtin_logf(total[i]);
    if (!op.maps) return;
    for (int64_t key = 0; key < op.keys; key += kKeys) {  // the scores once more, now that the denominators are known
      const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
      all_scores(unit, key, count, head_keys, block);
      const Weigher<masked, 1> weigher(scores, nullptr, count, F::broadcast(op.scale * kLog2E), block.reference,
                                       &results);
      for (int64_t j = 0; j < count; ++j)
        for (int c = 0; c < 2; ++c) weigher.weight(j, c).store(scores + (2 * j + c) * kLanes);
      transpose_out<2>(scores, count, block.count, factor, static_cast<T*>(op.maps) + row * op.keys + key, op.keys);
    }
  }

  // The keys and values of the heads of a group.
  void pack_group(const Division::Unit& unit) {
    for (int64_t i = 0; i < division.heads; ++i) {
      const int64_t h = unit.h - unit.slot + i;
      pack_keys(channels, head_of<T>(op.k, unit.b, h), op.k.row, op.keys, keys + i * key_bytes);
      pack_values(all_keys, head_of<T>(op.v, unit.b, h), op.v.row, op.keys, op.value_channels, transposed,
                  values + i * value_bytes);
    }
  }

  void run_unit(const Division::Unit& unit) {
    QueryBlock blocks[kMostQueries / kBlock];
    int64_t used = 0;
    for (; used * kBlock < unit.count; ++used) {
      QueryBlock& block = blocks[used];
      for (int i = 0; i < 2; ++i) block.reference[i] = F::broadcast(kLowest), block.total[i] = F::broadcast(0);
      block.q = queries + used * 2 * channels.right_bytes();
      block.out = out + used * out_size, block.partial = partial + used * out_size;
      block.query = unit.query + used * kBlock;
      block.count = op.queries - block.query < kBlock ? op.queries - block.query : kBlock;
      block.pending = 0, block.summed = false;
      pack_queries(channels, head_of<T>(op.q, unit.b, unit.h) + block.query * op.q.row, op.q.row, block.count,
                   transposed, block.q);
    }
    const uint8_t *head_keys = keys + unit.slot * key_bytes, *head_values = values + unit.slot * value_bytes;
    for (int64_t key = 0; key < op.keys; key += kKeys)
      for (int64_t i = 0; i < used; ++i) run_block(unit, key, head_keys, head_values, blocks[i]);
    for (int64_t i = 0; i < used; ++i) finish(unit, head_keys, blocks[i]);
  }

  void run(int64_t begin, int64_t end) {
    const TileRegisters registers;
    const int64_t blocks = division.queries / kBlock;
    const int64_t most_channels = op.channels > op.value_channels ? op.channels : op.value_channels;
    Arena arena;
    keys = arena.take<uint8_t>(division.heads * key_bytes);
    values = arena.take<uint8_t>(division.heads * value_bytes);
    queries = arena.take<uint8_t>(blocks * 2 * channels.right_bytes());
    weights = arena.take<uint8_t>(2 * Depth<N, W>(kKeys).right_bytes());
    out = arena.take<float>(blocks * out_size);
    partial = arena.take<float>(blocks * out_size);
    scores = arena.take<float>(kKeys * kBlock);
    bias = masked ? arena.take<float>(kKeys * kBlock) : nullptr;
    transposed = arena.take<float>(kBlock * most_channels);
    int64_t packed = -1;  // group
    for (int64_t i = begin; i < end; ++i) {
      const Division::Unit unit = division.unit(i), next = division.unit(i + 1 < end ? i + 1 : i);
      if (unit.group != packed) pack_group(unit);
      packed = unit.group;
      results = prefetcher_of<T>(op.out, unit.b, unit.h, unit.query, unit.count, op.value_channels);
      next_queries = prefetcher_of<T>(op.q, next.b, next.h, next.query, next.count, op.channels);
      run_unit(unit);
    }
  }
};

template <class T>
void run(const Attention& op, int64_t begin, int64_t end) {
  op.mask_type == Mask::none ? Many<T, false>(op).run(begin, end) : Many<T, true>(op).run(begin, end);
}

void in_tiles(const Attention& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32:
      return run<float>(op, begin, end);
    case Type::bfloat16:
      return run<bfloat16>(op, begin, end);
    case Type::float16:
      return run<float16>(op, begin, end);
  }
}

struct Implementation {
  bool (*takes)(const Attention& op);
  AttentionUnits units;
  AttentionKernel run;
};

// In order: the first that takes a call runs it.
constexpr Implementation kImplementations[] = {
    // With few keys transposed queries and results pay too little.
    {attention_few_takes, attention_few_units, attention_few},
    // With few channels weights in terms cost more than products of vectors.
    {[](const Attention& op) { return op.keys > 128 && (op.channels > 16 || op.value_channels > 16); },
     [](const Attention& op) { return op.batch * op.heads * divide(op).blocks; }, in_tiles},
    {[](const Attention&) { return true; }, avx512::attention_units, avx512::attention},
};

const Implementation& implementation(const Attention& op) {
  const Implementation* first = kImplementations;
  while (!first->takes(op) || (op.in_vectors && first->run != avx512::attention)) ++first;
  return *first;
}

}  // namespace

int64_t attention_units(const Attention& op) { return implementation(op).units(op); }

void attention(const Attention& op, int64_t begin, int64_t end) { implementation(op).run(op, begin, end); }

}  // namespace fastdiff::amx

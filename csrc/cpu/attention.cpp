// Attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention): the scores of a block
// of keys are all that exists of the queries x keys matrix. Everything is transposed: the lanes of a vector are
// queries, so that a key's channel or a value's is one number for all lanes, and maxima and sums over the keys need no
// horizontal step. Compiled once an instruction set (see simd.h).
#include "fastdiff/arena.h"
#include "fastdiff/kernels.h"
#include "fastdiff/scores.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// Of a block, whose scores, and the values that they weigh, stay in L1.
template <int C>
constexpr int64_t kBlockTiles = 128 / kRows<C>;
constexpr int64_t kKeys = 128;

// Rows of keys or values as floats: where they are, or, of another type, a copy.
struct Floats {
  const float* data;
  int64_t row;
};
inline Floats floats(const float* data, int64_t row, const float*, int64_t) { return {data, row}; }
template <class T>
inline Floats floats(const T*, int64_t, const float* copy, int64_t channels) {
  return {copy, channels};
}
template <class T>
constexpr bool kCopies = true;
template <>
constexpr bool kCopies<float> = false;

template <class T>
void copy(const T* data, int64_t row, int64_t rows, int64_t channels, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t n = channels - c < kLanes ? channels - c : kLanes;
      const F x = load_up_to(data + r * row + c, n);
      n == kLanes ? x.store(to + r * channels + c) : store_some(to + r * channels + c, x, n);
    }
}

// larger[lane] = the largest of that and of the scores.
template <int C>
FASTDIFF_NOINLINE void add_maxima(const float* scores, int64_t keys, F* larger) {
  F found[C];
  for (int c = 0; c < C; ++c) found[c] = larger[c];
  for (int64_t j = 0; j < keys; ++j) {
    FASTDIFF_UNROLL_16
    for (int c = 0; c < C; ++c) found[c] = max(found[c], F::load(scores + (j * C + c) * kLanes));
  }
  for (int c = 0; c < C; ++c) larger[c] = found[c];
}

enum class Scores { differences, in_log2, natural };  // already from the reference; in units of log 2 or not

// Turns scores into weights, e^(score - reference), in place; total: their sums.
template <int C, Scores kind>
FASTDIFF_NOINLINE void exponentials(float* scores, int64_t keys, const F* reference, F* total) {
  F from[C], sums[C];
  for (int c = 0; c < C; ++c) from[c] = reference[c], sums[c] = F::broadcast(0);
  const F factor = F::broadcast(kLog2E);
  const auto weigh = [&](float* p, F from) {
    F x = F::load(p);
    if (kind != Scores::differences) x = x - from;
    if (kind == Scores::natural) x = x * factor;
    x = exp2(x);
    x.store(p);
    return x;
  };
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4) {
    FASTDIFF_UNROLL_16
    for (int c = 0; c < C; ++c) {
      float* p = scores + (j * C + c) * kLanes;
      const F w = weigh(p, from[c]), x = weigh(p + C * kLanes, from[c]);
      const F y = weigh(p + 2 * C * kLanes, from[c]), z = weigh(p + 3 * C * kLanes, from[c]);
      sums[c] = sums[c] + ((w + x) + (y + z));
    }
  }
  for (; j < keys; ++j)
    for (int c = 0; c < C; ++c) sums[c] = sums[c] + weigh(scores + (j * C + c) * kLanes, from[c]);
  for (int c = 0; c < C; ++c) total[c] = sums[c];
}

// Rows of as many floats as a block has queries.
struct Workspace {
  float *q, *out, *scores, *bias;
};

// Without a mask the scores are in units of log 2, and those of all blocks but the first come as differences from the
// largest of the first block, for nothing: the sums begin there. A score that is larger by more than kMargin is seen in
// the sum of the weights; then the block is computed once more, from its own largest. With a mask, where all of a block
// may be -infinity, the largest is looked for in every block.
constexpr float kMargin = 1.1e9f;  // 2^30

// The queries [query, query + C * kLanes) of a head, as far as they exist. next: the queries of the next block.
template <int C, class T>
void run_block(const Attention& op, int64_t b, int64_t h, int64_t query, RowPrefetcher* next, const Floats& k,
               const Floats& v, const Workspace& space) {
  constexpr int64_t kQueries = C * kLanes;
  const bool masked = op.mask_type != Mask::none;
  const int64_t count = op.queries - query < kQueries ? op.queries - query : kQueries;
  const Tiles<C> tiles(op.keys), columns(op.value_channels);
  const int64_t blocks = (tiles.count + kBlockTiles<C> - 1) / kBlockTiles<C>;
  const F scale = F::broadcast(masked ? op.scale : op.scale * kLog2E), zero = F::broadcast(0);
  const T* q = head_of<T>(op.q, b, h) + query * op.q.row;
  transpose_in<C>(op.channels, count, space.q,
                  [&](int64_t i, int64_t c, int64_t n) { return load_up_to(q + i * op.q.row + c, n) * scale; });

  T* out = const_cast<T*>(head_of<T>(op.out, b, h)) + query * op.out.row;
  RowPrefetcher results = prefetcher_of<T>(op.out, b, h, query, count, op.value_channels);

  F reference[C], total[C];
  for (int c = 0; c < C; ++c) reference[c] = F::broadcast(kLowest), total[c] = zero;
  const auto first_key = [&](int64_t block) { return tiles.begin(tiles.count * block / blocks); };
  const auto scores = [&](int64_t block, bool from_reference) {
    F start[C];
    for (int c = 0; c < C; ++c) start[c] = from_reference ? zero - reference[c] : zero;
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    tiles.runs(tiles.count * block / blocks, tiles.count * (block + 1) / blocks,
               [&](int64_t key, int64_t rows, int64_t n) {
                 kProducts<C>.of_rows[rows](n, k.data + key * k.row, k.row, space.q, op.channels, start,
                                            space.scores + (key - first) * kQueries, &results);
               });
    if (!masked) return;
    load_bias<C, T>(op, b, h, query, count, first, keys, space.bias);
    for (int64_t i = 0; i < keys * kQueries; i += kLanes)
      (F::load(space.scores + i) + F::load(space.bias + i)).store(space.scores + i);
  };
  const auto weights = [&](int64_t keys, F* sums) {
    masked ? exponentials<C, Scores::natural>(space.scores, keys, reference, sums)
           : exponentials<C, Scores::in_log2>(space.scores, keys, reference, sums);
  };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    F decay[C], sums[C];
    for (int c = 0; c < C; ++c) decay[c] = F::broadcast(1);
    bool larger = masked || block == 0;
    if (!larger) {
      scores(block, true);
      exponentials<C, Scores::differences>(space.scores, keys, reference, sums);
      for (int c = 0; c < C; ++c) larger = larger || max(sums[c]) > kMargin;
    }
    if (larger) {
      F before[C];
      for (int c = 0; c < C; ++c) before[c] = reference[c];
      scores(block, false);
      add_maxima<C>(space.scores, keys, reference);
      weights(keys, sums);
      const F unit = F::broadcast(masked ? kLog2E : 1.0f);
      for (int c = 0; c < C; ++c) decay[c] = exp2((before[c] - reference[c]) * unit);
    }
    for (int c = 0; c < C; ++c) total[c] = fma(total[c], decay[c], sums[c]);
    columns.runs(0, columns.count, [&](int64_t column, int64_t rows, int64_t n) {
      kProducts<C>.of_columns[rows](n, v.data + first * v.row + column, v.row, space.scores, keys,
                                    block ? decay : nullptr, space.out + column * kQueries, next);
    });
  }

  if (!blocks)  // no keys
    for (int64_t i = 0; i < op.value_channels; ++i)
      for (int c = 0; c < C; ++c) zero.store(space.out + (i * C + c) * kLanes);
  float sum[kQueries], top[kQueries], inverse[kQueries];
  F factor[C];
  for (int c = 0; c < C; ++c) {
    total[c].store(sum + c * kLanes);
    reference[c].store(top + c * kLanes);
  }
  for (int64_t i = 0; i < kQueries; ++i) inverse[i] = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
  for (int c = 0; c < C; ++c) factor[c] = F::load(inverse + c * kLanes);
  transpose_out<C>(space.out, op.value_channels, count, factor, out, op.out.row);
  const int64_t row = (b * op.heads + h) * op.queries + query;
  if (op.lse)
    for (int64_t i = 0; i < count; ++i)
      op.lse[row + i] = sum[i] == 0 ? __builtin_inff() : top[i] * (masked ? 1.0f : kLn2) + __builtin_logf(sum[i]);
  if (!op.maps) return;
  for (int64_t block = 0; block < blocks; ++block) {  // the scores once more, now that the denominators are known
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    F sums[C];
    scores(block, false);
    weights(keys, sums);
    transpose_out<C>(space.scores, keys, count, factor, static_cast<T*>(op.maps) + row * op.keys + first, op.keys);
  }
}

// Blocks are of 48 queries, two or three vectors, but for one or two of 32 where fewer lanes stay empty then; block i
// begins at block_start(queries, i).
int64_t blocks_of_48(int64_t queries) {
  const int64_t vectors = (queries + 15) / 16, short_ones = (3 - vectors % 3) % 3;
  return vectors > 1 ? (vectors - 2 * short_ones) / 3 : 0;
}
int64_t blocks_of(int64_t queries) {
  const int64_t long_ones = blocks_of_48(queries), rest = queries - 48 * long_ones;
  return long_ones + (rest > 0 ? (rest + 31) / 32 : 0);
}
int64_t block_start(int64_t queries, int64_t i) {
  const int64_t long_ones = blocks_of_48(queries);
  return i <= long_ones ? 48 * i : 48 * long_ones + 32 * (i - long_ones);
}

// As many heads as have their keys and values in L2 take turns in a block of queries: what they read and
// write lies together in the (B, S, H, D) layout.
constexpr int64_t kNear = 1 << 18;  // floats

template <class T>
void run(const Attention& op, int64_t begin, int64_t end) {
  constexpr int64_t kMost = 3 * kLanes;  // queries of a block
  const int64_t blocks = blocks_of(op.queries);
  const int64_t k_size = op.keys * op.channels, v_size = op.keys * op.value_channels;
  int64_t heads = op.heads;
  while (heads > 1 && (op.heads % heads != 0 || heads * (k_size + v_size) > kNear)) --heads;
  Arena arena;
  const Workspace space = {arena.take<float>(op.channels * kMost), arena.take<float>(op.value_channels * kMost),
                           arena.take<float>(kKeys * kMost), arena.take<float>(kKeys * kMost)};
  float* copies = kCopies<T> ? arena.take<float>(heads * (k_size + v_size)) : nullptr;
  int64_t loaded = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / (blocks * heads), inside = unit % (blocks * heads);
    const int64_t b = group * heads / op.heads, first = group * heads % op.heads, h = first + inside % heads;
    if (kCopies<T> && group != loaded) {
      for (int64_t i = 0; i < heads; ++i) {
        copy(head_of<T>(op.k, b, first + i), op.k.row, op.keys, op.channels, copies + i * k_size);
        copy(head_of<T>(op.v, b, first + i), op.v.row, op.keys, op.value_channels,
             copies + heads * k_size + i * v_size);
      }
      loaded = group;
    }
    const Floats k = floats(head_of<T>(op.k, b, h), op.k.row, copies + (h - first) * k_size, op.channels);
    const Floats v =
        floats(head_of<T>(op.v, b, h), op.v.row, copies + heads * k_size + (h - first) * v_size, op.value_channels);
    const int64_t start = block_start(op.queries, inside / heads), next = block_start(op.queries, inside / heads + 1);
    const bool last = h + 1 == first + heads;
    const int64_t then = last ? next : start, there = op.queries - then < kMost ? op.queries - then : kMost;
    RowPrefetcher ahead = prefetcher_of<T>(op.q, b, last ? first : h + 1, then, there, op.channels);
    if (next - start == 48) {
      for (int64_t query = start; query < next && query < op.queries; query += 3 * kLanes)
        run_block<3, T>(op, b, h, query, &ahead, k, v, space);
    } else {
      for (int64_t query = start; query < next && query < op.queries; query += 2 * kLanes)
        run_block<2, T>(op, b, h, query, &ahead, k, v, space);
    }
  }
}

}  // namespace

int64_t attention_units(const Attention& op) { return op.batch * op.heads * blocks_of(op.queries); }

void attention(const Attention& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32:
      return run<float>(op, begin, end);
    case Type::bfloat16:
      return run<bfloat16>(op, begin, end);
    case Type::float16:
      return run<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

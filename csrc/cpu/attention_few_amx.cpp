// Attention with so few keys that the scores of a query are in registers all at once, with the products on AMX to float32's precision (see
// amx.h). Queries are rows: they, their weights and their results are read and written as they lie (see factors.h), and a row's largest
// score and its sum are two horizontal steps. While the tiles of 32 queries are multiplied, the vector units work on the weights of the 32
// before them, on the results of those, and on the parts of the 32 that follow.
#include "fastdiff/factors.h"
#include "fastdiff/kernels.h"
#include "fastdiff/scores.h"
#include "fastdiff/scratch.h"
#include "fastdiff/simd.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kMostVectors = 8;  // of scores of a query

// In how many parts queries, keys and values come, and the weights: float16 has 11 bits, bfloat16 8.
template <class T>
struct Count {
  static constexpr int numbers = 3, weights = 3;
};
template <>
struct Count<float16> {
  static constexpr int numbers = 2, weights = 2;
};
template <>
struct Count<bfloat16> {
  static constexpr int numbers = 1, weights = 2;
};

template <class T>
struct Few {
  static constexpr int N = Count<T>::numbers, W = Count<T>::weights;
  // The keys have the sign of the scale, so that the largest score is the largest product; and all of it, where they have the bits for that.
  static constexpr bool kScaled = N == 3;
  using Channels = Depth<N, N>;
  using Keys = Depth<W, N>;

  // 32 queries of a head. keys, values: its tiles.
  struct Block {
    int64_t b, h, query, count, group;
    const uint8_t *keys, *values;
    float* scores;
  };

  const Attention& op;
  const Channels channels;
  const Keys keys;
  const int64_t vectors, score_row, value_tiles, key_bytes, value_bytes;
  int64_t heads, blocks;  // of a group; of a head
  uint8_t *packed, *queries, *weights;
  float *scores, *sums, *top, *totals, *inverse, *turned;
  float factor;  // of a score, in units of log 2, but for its sign

  explicit Few(const Attention& a)
      : op(a), channels(a.channels), keys(a.keys), vectors(tiles_of(a.keys, kSide)), score_row(tiles_of(vectors, 2) * kBlock),
        value_tiles(tiles_of(a.value_channels, kSide)), key_bytes(vectors * channels.right_tiles() * kTileBytes),
        value_bytes(value_tiles * keys.right_tiles() * kTileBytes), heads(a.heads), blocks(tiles_of(a.queries, kBlock)) {
    factor = (op.scale < 0 ? -op.scale : op.scale) * kLog2E;
    // Heads whose keys and values are in the second cache take turns in a block of queries: what they read and write lies together in the
    // (B, S, H, D) layout.
    constexpr int64_t kNear = 1 << 20;
    while (heads > 1 && (op.heads % heads != 0 || heads * (key_bytes + value_bytes) > kNear)) --heads;
  }

  int64_t units() const { return op.batch * op.heads * blocks; }

  Block block(int64_t unit) const {
    const int64_t group = unit / (blocks * heads), inside = unit % (blocks * heads), slot = inside % heads;
    const int64_t head = group * heads + slot, query = inside / heads * kBlock, left = op.queries - query;
    const uint8_t* tiles = packed + slot * (key_bytes + value_bytes);
    return {head / op.heads, head % op.heads, query, left < kBlock ? left : kBlock, group, tiles, tiles + key_bytes,
            scores + unit % 2 * kBlock * score_row};
  }

  // ---- of a head: its keys and values ----------------------------------------------------

  FASTDIFF_NOINLINE void pack_head(int64_t b, int64_t h, uint8_t* to) const {
    const T *k = head_of<T>(op.k, b, h), *v = head_of<T>(op.v, b, h);
    const F of_key = F::broadcast((op.scale < 0 ? -1.0f : 1.0f) * (kScaled ? factor : 1.0f));
    for (int64_t key = 0; key < op.keys; key += kSide, to += channels.right_tiles() * kTileBytes) {
      ask_for(k + (key + kSide) * op.k.row, op.k.row, op.keys - key < 2 * kSide ? op.keys - key - kSide : kSide, op.channels);
      turn_in<1>(op.channels, op.keys - key, turned,
                 [&](int64_t i, int64_t c, int64_t n) { return load_up_to(k + (key + i) * op.k.row + c, n) * of_key; });
      put_columns(channels, [&](int64_t c) { return F::load(turned + c * kSide); }, to);
    }
    for (int64_t c = 0; c < op.value_channels; c += kSide, to += keys.right_tiles() * kTileBytes) {
      const int64_t n = op.value_channels - c < kSide ? op.value_channels - c : kSide;
      put_columns(keys, [&](int64_t key) { return load_up_to(v + key * op.v.row + c, n); }, to);
    }
  }

  // ---- of a row ------------------------------------------------------------------------------------------------------------------

  // The parts of a query.
  static FASTDIFF_NOINLINE void pack_query(const Few& f, const Block& block, int64_t row) {
    uint8_t* to = f.queries + row / kSide * kTileBytes + row % kSide * 64;
    const T* q = head_of<T>(f.op.q, block.b, block.h) + (block.query + row) * f.op.q.row;
    if (row >= block.count) return put_row<N, N, true>(f.channels, [](int64_t) { return F::broadcast(0); }, to);
    put_row<N, N, true>(
        f.channels,
        [&](int64_t i) {
          const int64_t n = f.op.channels - i * kSide;
          return load_up_to(q + i * kSide, n < kSide ? n : kSide);
        },
        to);
  }

  // The parts of a query's weights, V vectors of them. Largest scores and sums are of 16 rows at once: with the first of them the former,
  // with the last the inverse of the latter.
  template <int V>
  static FASTDIFF_NOINLINE void weigh(const Few& f, const Block& block, int64_t row) {
    const __mmask16 last = first(f.op.keys - (V - 1) * kSide);
    const F factor = F::broadcast(f.factor);
    const auto score = [&](const float* s, int i) __attribute__((always_inline)) {
      return V % 2 && i == V - 1 ? F::load(s + i * kLanes) + F::load(s + V * kLanes) : F::load(s + i * kLanes);
    };
    if (row % kSide == 0) {
      F largest[kSide];
      for (int64_t r = 0; r < kSide; ++r) {
        const float* s = block.scores + (row + r) * f.score_row;
        F x = {_mm512_mask_mov_ps(_mm512_set1_ps(kLowest), last, score(s, V - 1).v)};
        FASTDIFF_UNROLL_16
        for (int i = 0; i + 1 < V; ++i) x = max(x, score(s, i));
        largest[r] = x;
      }
      across(largest, [](F a, F b) { return max(a, b); }).store(f.top + row);
    }
    const float* s = block.scores + row * f.score_row;
    const F from = F::broadcast(f.top[row]);
    F x[V];
    FASTDIFF_UNROLL_16
    for (int i = 0; i < V; ++i) x[i] = exp2(kScaled ? score(s, i) - from : (score(s, i) - from) * factor);
    x[V - 1].v = _mm512_maskz_mov_ps(last, x[V - 1].v);
    F all = x[0];
    FASTDIFF_UNROLL_16
    for (int i = 1; i < V; ++i) all = all + x[i];
    all.store(f.totals + row % kSide * kLanes);
    put_row<W, N, W == 3>(f.keys, [&](int64_t i) __attribute__((always_inline)) { return x[i]; },
                          f.weights + row / kSide * kTileBytes + row % kSide * 64);
    if (row % kSide == kSide - 1) f.sum_up(block, row - row % kSide);
  }
  FASTDIFF_NOINLINE void sum_up(const Block& block, int64_t row) const {
    F rows[kSide];
    for (int64_t r = 0; r < kSide; ++r) rows[r] = F::load(totals + r * kLanes);
    const F total = across(rows, [](F a, F b) { return a + b; });
    (F::broadcast(1) / total).store(inverse + row);
    if (!op.lse) return;
    float* lse = op.lse + (block.b * op.heads + block.h) * op.queries + block.query;
    total.store(totals);
    for (int64_t r = 0; r < kSide && row + r < block.count; ++r)
      lse[row + r] = top[row + r] * (kScaled ? 1.0f : factor) * kLn2 + __builtin_logf(totals[r]);
  }
  using Row = void (*)(const Few&, const Block&, int64_t);
  Row weigher() const {
    constexpr Row of[kMostVectors] = {weigh<1>, weigh<2>, weigh<3>, weigh<4>, weigh<5>, weigh<6>, weigh<7>, weigh<8>};
    return of[vectors - 1];
  }

  // Two tiles of channels of a result, or one in two halves.
  FASTDIFF_NOINLINE void write(const Block& block, int64_t channel) const {
    T* out = const_cast<T*>(head_of<T>(op.out, block.b, block.h)) + block.query * op.out.row + channel;
    const int64_t n = op.value_channels - channel;
    for (int64_t row = 0; row < block.count; ++row, out += op.out.row) {
      const F factor = F::broadcast(inverse[row]), a = F::load(sums + row * kBlock), b = F::load(sums + row * kBlock + kSide);
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

  // ---- of a block ----------------------------------------------------------------------------------------------------------------

  // Rows of a block that are worked on while tiles are multiplied, `rate` of 2^16ths for each product of tiles; and lines that are asked for.
  struct Meanwhile {
    const Few& f;
    Row row;
    const Block* block;
    int64_t rate, next, credit;
    RowsAhead lines;
    Meanwhile(const Few& few, Row r, const Block* b, int64_t products, const RowsAhead& ahead)
        : f(few), row(r), block(b), rate(products ? tiles_of(kBlock << 16, products) : 0), next(b ? 0 : kBlock), credit(0), lines(ahead) {}
    FASTDIFF_INLINE void operator()(int products) {
      FASTDIFF_UNROLL_16
      for (int i = 0; i < products; ++i) lines.ask();
      for (credit += products * rate; credit >= 1 << 16 && next < kBlock; credit -= 1 << 16) row(f, *block, next++);
    }
    void rest() {
      while (next < kBlock) row(f, *block, next++);
    }
  };

  int64_t products(int64_t tiles, int64_t depth) const { return 2 * tiles * depth; }

  FASTDIFF_NOINLINE void multiply_queries(const Block& block, Meanwhile& meanwhile) const {
    const int64_t stride = channels.right_tiles() * kTileBytes;
    int64_t i = 0;
    for (; i + 2 <= vectors; i += 2)
      multiply_by_two<N, N>(channels, queries, block.keys + i * stride, block.scores + i * kSide, score_row, meanwhile);
    if (i < vectors) multiply_by_one<N, N>(channels, queries, block.keys + i * stride, block.scores + i * kSide, score_row, meanwhile);
    meanwhile.rest();
  }

  FASTDIFF_NOINLINE void multiply_values(const Block& block, Meanwhile& meanwhile) const {
    const int64_t stride = keys.right_tiles() * kTileBytes;
    int64_t i = 0;
    for (; i + 2 <= value_tiles; i += 2) {
      multiply_by_two<W, N>(keys, weights, block.values + i * stride, sums, kBlock, meanwhile);
      write(block, i * kSide);
    }
    if (i < value_tiles) {
      multiply_by_one<W, N>(keys, weights, block.values + i * stride, sums, kBlock, meanwhile);
      write(block, i * kSide);
    }
    meanwhile.rest();
  }

  void run(int64_t begin, int64_t end) {
    if (begin >= end) return;
    const TileRegisters registers;
    const int64_t sizes[] = {heads * (key_bytes + value_bytes), 2 * channels.left_tiles() * kTileBytes, 2 * keys.left_tiles() * kTileBytes,
                             2 * kBlock * score_row * 4, kBlock * kBlock * 4, 2 * kBlock * 4 + kSide * 64, tiles_of(op.channels, kSide) * kSide * 64};
    int64_t bytes = 0;
    for (const int64_t size : sizes) bytes += size;
    uint8_t* memory = static_cast<uint8_t*>(scratch(bytes));
    packed = memory;
    queries = packed + sizes[0];
    weights = queries + sizes[1];
    scores = reinterpret_cast<float*>(weights + sizes[2]);
    sums = scores + sizes[3] / 4;
    inverse = sums + sizes[4] / 4;
    top = inverse + kBlock;
    totals = top + kBlock;
    turned = inverse + sizes[5] / 4;

    const Row weigh_row = weigher();
    const int64_t of_scores = products(vectors, channels.products()), of_values = products(value_tiles, keys.products());
    int64_t loaded = -1;
    Block before = {}, here = block(begin), next = here;
    bool pending = false;
    const auto finish = [&](const Block* following, const RowsAhead& ahead) {
      Meanwhile packing(*this, pack_query, following, of_values, ahead);
      multiply_values(before, packing);
    };
    {
      Meanwhile packing(*this, pack_query, &here, 0, RowsAhead());
      packing.rest();
    }
    for (int64_t unit = begin; unit < end; ++unit, before = here, here = next, pending = true) {
      if (here.group != loaded) {
        if (pending) {
          Meanwhile weighing(*this, weigh_row, &before, 0, RowsAhead());
          weighing.rest();
          finish(nullptr, RowsAhead());
          pending = false;
        }
        for (int64_t i = 0; i < heads; ++i) {
          const int64_t head = here.group * heads + i;
          pack_head(head / op.heads, head % op.heads, packed + i * (key_bytes + value_bytes));
        }
        loaded = here.group;
      }
      const bool last = unit + 1 == end;
      next = block(last ? unit : unit + 1);
      RowsAhead results, ahead;
      if (pending) results = ahead_of<T>(op.out, before.b, before.h, before.query, before.count, op.value_channels);
      if (unit + 2 < end) {
        const Block after = block(unit + 2);
        ahead = ahead_of<T>(op.q, after.b, after.h, after.query, after.count, op.channels);
      }
      Meanwhile weighing(*this, weigh_row, pending ? &before : nullptr, of_scores, results);
      multiply_queries(here, weighing);
      if (pending) {
        finish(last ? nullptr : &next, ahead);
      } else if (!last) {
        Meanwhile packing(*this, pack_query, &next, 0, RowsAhead());
        packing.rest();
      }
    }
    Meanwhile weighing(*this, weigh_row, &before, 0, RowsAhead());
    weighing.rest();
    finish(nullptr, RowsAhead());
  }
};

}  // namespace

// Whether the keys are few enough for this, and enough queries share a head's tiles.
bool attention_few_takes(const Attention& op) {
  return op.keys > 0 && op.keys <= kMostVectors * kSide && op.mask_type == Mask::none && !op.maps && op.queries >= kBlock;
}

int64_t attention_few_units(const Attention& op) { return Few<float>(op).units(); }

void attention_few(const Attention& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32: return Few<float>(op).run(begin, end);
    case Type::bfloat16: return Few<bfloat16>(op).run(begin, end);
    case Type::float16: return Few<float16>(op).run(begin, end);
  }
}

}  // namespace fastdiff::amx

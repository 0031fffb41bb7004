// Attention (see attention.cpp) with the products on AMX, to float32's precision: see amx.h. Scores are transposed here as well: lanes
// are queries, so that the weights of two keys, side by side, are a row of the right factor of the second product as they are
// computed. Blocks of keys are in the outer loop and 32 queries in the inner one, so that keys and values are read from afar once for all
// queries of a unit.
#include "fastdiff/amx.h"
#include "fastdiff/kernels.h"
#include "fastdiff/scores.h"
#include "fastdiff/scratch.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::avx512 {
int64_t attention_units(const Attention& op);
void attention(const Attention& op, int64_t begin, int64_t end);
}  // namespace fastdiff::avx512

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16;          // of a tile of results
constexpr int64_t kColumns = 32;       // queries that are computed together: two vectors, two tiles
constexpr int64_t kKeys = 128;         // of a block
constexpr int64_t kMostQueries = 128;  // of a unit
constexpr int64_t kChunk = 512;        // keys whose products are summed before they are added to those of others

int64_t tiles_of(int64_t size, int64_t side) { return (size + side - 1) / side; }

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

// Queries come as rows [q0 | q1 | q2] of their parts, with no gap between them but one that makes the channels even. Keys too, where the
// channels fill whole tiles; else three times, as [k0 | k0 | k0], [k1 | k1] and [k2], of which pass i, of depth(i) tiles, is multiplied with
// the first N - i parts of the queries: no tile is filled up but the last of a pass.
template <int N>
struct Depth {
  int64_t channels;  // even
  bool whole;
  explicit Depth(int64_t c) : channels((c + 1) / 2 * 2), whole(c % kDepth == 0) {}
  int64_t operator()(int pass) const { return tiles_of((N - pass) * channels, kDepth); }
  int64_t all() const {  // of a key
    int64_t sum = 0;
    for (int pass = 0; pass < (whole ? 1 : N); ++pass) sum += (*this)(pass);
    return sum;
  }
  int64_t products() const { return whole ? channels / kDepth * N * (N + 1) / 2 : all(); }
};

struct Workspace {
  uint8_t *keys, *values;  // tiles of the heads of a group
  uint8_t *q, *weights;    // tiles
  float *out, *partial, *scores, *bias, *turned;
  uint16_t* rows;
};

void store_part(uint16_t* to, __m256i numbers, int64_t n) {
  n == kSide ? _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), numbers) : _mm256_mask_storeu_epi16(to, first(n), numbers);
}

template <int N, class T>
FASTDIFF_NOINLINE void pack_keys(const T* k, int64_t row, int64_t keys, int64_t channels, uint16_t* parts, uint8_t* to) {
  const Depth<N> depth(channels);
  const int64_t width = depth.all() * kDepth;
  for (int64_t i = 0; i < width; i += kDepth) _mm512_storeu_si512(parts + i, _mm512_setzero_si512());
  for (int64_t key = 0; key < tiles_of(keys, kSide) * kSide; ++key) {
    uint8_t* tile = to + key / kSide * depth.all() * kTileBytes + key % kSide * 64;
    if (key + 8 < keys) ask_for(k + (key + 8) * row, row, 1, channels);
    for (int64_t c = 0; key < keys && c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      const Parts split_k = split<N, true>(load_up_to(k + key * row + c, n).v);
      uint16_t* start = parts + c;
      for (int part = 0; depth.whole && part < N; ++part)
        store_part(start + part * channels, narrow(split_k.part[part]), n);
      for (int pass = 0; !depth.whole && pass < N; start += depth(pass) * kDepth, ++pass)
        for (int copy = 0; copy < N - pass; ++copy) store_part(start + copy * depth.channels, narrow(split_k.part[pass]), n);
    }
    for (int64_t t = 0; t < depth.all(); ++t)
      _mm512_store_si512(tile + t * kTileBytes, key < keys ? _mm512_loadu_si512(parts + t * kDepth) : _mm512_setzero_si512());
  }
}

// Tiles of 16 channels by 32 keys: values transposed.
template <int N, class T>
FASTDIFF_NOINLINE void pack_values(const T* v, int64_t row, int64_t keys, int64_t channels, uint8_t* to) {
  const int64_t steps = tiles_of(keys, kDepth);
  for (int64_t start = 0; start < steps * kDepth; start += kSide) {
    for (int64_t i = 0; i < kSide && start + kSide + i < keys; ++i) ask_for(v + (start + kSide + i) * row, row, 1, channels);
    for (int64_t c = 0; c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      uint8_t* tile = to + (c / kSide * steps + start / kDepth) * N * kTileBytes + start % kDepth * 2;
      F rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = start + i < keys ? load_up_to(v + (start + i) * row + c, n) : F::broadcast(0);
      transpose(rows);
      for (int64_t i = 0; i < kSide; ++i) {
        const Parts split_v = split<N, true>(rows[i].v);
        for (int p = 0; p < N; ++p)
          _mm256_store_si256(reinterpret_cast<__m256i*>(tile + p * kTileBytes + i * 64), narrow(split_v.part[p]));
      }
    }
  }
}

// Tiles of the parts of 32 queries, transposed, two side by side: see Depth.
template <int N, class T>
FASTDIFF_NOINLINE void pack_queries(const T* q, int64_t row, int64_t count, int64_t channels, uint8_t* to) {
  const Depth<N> depth(channels);
  for (int64_t group = 0; group < 2; ++group, to += kTileBytes) {
    const auto pair = [&](int64_t i) { return to + i / kSide * 2 * kTileBytes + i % kSide * 64; };
    for (int64_t c = 0; c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      F rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = group * kSide + i < count ? load_up_to(q + (group * kSide + i) * row + c, n) : F::broadcast(0);
      transpose(rows);
      for (int64_t i = 0; i < n; i += 2) {
        const Parts even = split<N, true>(rows[i].v), odd = split<N, true>(rows[i + 1].v);
        for (int p = 0; p < N; ++p)
          _mm512_store_si512(pair((p * depth.channels + c + i) / 2), pair_lanes(even.part[p], odd.part[p]));
      }
    }
    for (int64_t i = N * depth.channels / 2; i < depth(0) * kSide; ++i) _mm512_store_si512(pair(i), _mm512_setzero_si512());
  }
}

// What the vector units do while the matrix unit multiplies: nothing.
struct Nothing {
  void some(int64_t) {}
};

// scores[key][query] of 32 keys, or 16, and 32 queries. background.some(n) is called for each product of two parts of a tile.
template <int N, class Background>
FASTDIFF_INLINE void multiply_queries(const uint8_t* keys, bool both, const uint8_t* q, const Depth<N>& depth, float* scores,
                                      Background& background, int64_t n) {
  const uint8_t* lower = both ? keys + depth.all() * kTileBytes : keys;
  zero_sums();
  if (depth.whole) {
    const int64_t tiles = depth.channels / kDepth;
    for (int64_t t = 0; t < tiles; ++t)
      add_products<N, N>(
          [&](int part) {
            FASTDIFF_TILE_LOAD(4, keys + (part * tiles + t) * kTileBytes, 64);
            FASTDIFF_TILE_LOAD(5, lower + (part * tiles + t) * kTileBytes, 64);
          },
          [&](int part) {
            FASTDIFF_TILE_LOAD(6, q + 2 * (part * tiles + t) * kTileBytes, 64);
            FASTDIFF_TILE_LOAD(7, q + (2 * (part * tiles + t) + 1) * kTileBytes, 64);
          },
          [&] { background.some(n); });
  } else {
    for (int pass = 0; pass < N; ++pass)
      for (int64_t t = 0; t < depth(pass); ++t, keys += kTileBytes, lower += kTileBytes) {
        FASTDIFF_TILE_LOAD(4, keys, 64);
        FASTDIFF_TILE_LOAD(6, q + 2 * t * kTileBytes, 64);
        FASTDIFF_TILE_LOAD(7, q + (2 * t + 1) * kTileBytes, 64);
        FASTDIFF_TILE_MULTIPLY(0, 4, 6);
        FASTDIFF_TILE_MULTIPLY(1, 4, 7);
        if (both) {
          FASTDIFF_TILE_LOAD(5, lower, 64);
          FASTDIFF_TILE_MULTIPLY(2, 5, 6);
          FASTDIFF_TILE_MULTIPLY(3, 5, 7);
        }
        background.some(n);
      }
  }
  if (both) return store_sums(scores);
  constexpr int64_t row = kColumns * sizeof(float);
  FASTDIFF_TILE_STORE(0, scores, row);
  FASTDIFF_TILE_STORE(1, scores + kSide, row);
}

// partial[channel][query] += of two tiles of channels and 32 queries, over `steps` of 32 keys; or = where it is fresh.
#define FASTDIFF_VALUES(r, part) (values + (r) * stride + (s * N + (part)) * kTileBytes)
#define FASTDIFF_WEIGHTS(part, side) (weights + ((s * W + (part)) * 2 + (side)) * kTileBytes)
template <int N, int W>
FASTDIFF_NOINLINE void multiply_values_of_two(const uint8_t* values, int64_t stride, const uint8_t* weights, int64_t steps,
                                              bool fresh, float* partial) {
  fresh ? zero_sums() : load_sums(partial);
  for (int64_t s = 0; s < steps; ++s)
    add_products<N, W>(
        [&](int part) {
          FASTDIFF_TILE_LOAD(4, FASTDIFF_VALUES(0, part), 64);
          FASTDIFF_TILE_LOAD(5, FASTDIFF_VALUES(1, part), 64);
        },
        [&](int part) {
          FASTDIFF_TILE_LOAD(6, FASTDIFF_WEIGHTS(part, 0), 64);
          FASTDIFF_TILE_LOAD(7, FASTDIFF_WEIGHTS(part, 1), 64);
        },
        [] {});
  store_sums(partial);
}
// The same of one tile of channels. Steps go to two pairs of sums by turns: an instruction waits for the one before it on its sum.
template <int N, int W>
FASTDIFF_NOINLINE void multiply_values_of_one(const uint8_t* values, const uint8_t* weights, int64_t steps, bool fresh,
                                              float* partial) {
  constexpr int64_t row = kColumns * sizeof(float), stride = 0;
  zero_sums();
  for (int64_t s = 0; s < steps; ++s)
    for (int w = W - 1; w >= 0; --w)
      for (int v = 0; v < N && v + w < (N > W ? N : W); ++v) {
        if ((s + v) % 2) {
          FASTDIFF_TILE_LOAD(4, FASTDIFF_VALUES(0, v), 64);
          FASTDIFF_TILE_LOAD(6, FASTDIFF_WEIGHTS(w, 0), 64);
          FASTDIFF_TILE_LOAD(7, FASTDIFF_WEIGHTS(w, 1), 64);
          FASTDIFF_TILE_MULTIPLY(0, 4, 6);
          FASTDIFF_TILE_MULTIPLY(1, 4, 7);
        } else {
          FASTDIFF_TILE_LOAD(5, FASTDIFF_VALUES(0, v), 64);
          FASTDIFF_TILE_LOAD(6, FASTDIFF_WEIGHTS(w, 0), 64);
          FASTDIFF_TILE_LOAD(7, FASTDIFF_WEIGHTS(w, 1), 64);
          FASTDIFF_TILE_MULTIPLY(2, 5, 6);
          FASTDIFF_TILE_MULTIPLY(3, 5, 7);
        }
      }
  alignas(64) float sums[2][kSide * kColumns];
  FASTDIFF_TILE_STORE(0, sums[0], row);
  FASTDIFF_TILE_STORE(1, sums[0] + kSide, row);
  FASTDIFF_TILE_STORE(2, sums[1], row);
  FASTDIFF_TILE_STORE(3, sums[1] + kSide, row);
  for (int64_t i = 0; i < kSide * kColumns; i += kLanes) {
    const F sum = F::load(sums[0] + i) + F::load(sums[1] + i);
    (fresh ? sum : sum + F::load(partial + i)).store(partial + i);
  }
}
#undef FASTDIFF_VALUES
#undef FASTDIFF_WEIGHTS

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

// The parts of the weights e^(score - reference), as tiles, two keys at a time; 0 for keys that fill the last tile.
template <bool masked, int W>
struct Weigher {
  const float* scores;
  uint8_t* weights;
  int64_t next, end, keys;  // the next key; where those stop whose scores are there; where all stop
  F factor, from[2], sums[2];

  Weigher(const float* s, uint8_t* w, int64_t k, F f, const F* reference) : scores(s), weights(w), next(0), end(0), keys(k), factor(f) {
    for (int c = 0; c < 2; ++c) {
      from[c] = masked ? reference[c] : F::broadcast(0) - reference[c];
      sums[c] = F::broadcast(0);
    }
  }
  FASTDIFF_INLINE F weight(int64_t key, int c) const {
    const F x = F::load(scores + (2 * key + c) * kLanes);
    return masked ? exp2((x - from[c]) * F::broadcast(kLog2E)) : exp2(fma(x, factor, from[c]));
  }
  FASTDIFF_INLINE void put(int c, F even, F odd) {
    uint8_t* to = weights + (next / kDepth * W * 2 + c) * kTileBytes + next % kDepth * 32;
    const Parts a = split<W>(even.v), b = split<W>(odd.v);
    for (int p = 0; p < W; ++p) _mm512_store_si512(to + p * 2 * kTileBytes, pair_lanes(a.part[p], b.part[p]));
  }
  FASTDIFF_INLINE void some(int64_t pairs) {
    for (; pairs > 0 && next + 2 <= end; --pairs, next += 2) {
      FASTDIFF_UNROLL_2
      for (int c = 0; c < 2; ++c) {
        const F even = weight(next, c), odd = weight(next + 1, c);
        sums[c] = sums[c] + (even + odd);
        put(c, even, odd);
      }
    }
  }
  // All that is left, and zeros to the end of the tile.
  FASTDIFF_INLINE void rest() {
    end = keys;
    some(keys);
    const F zero = F::broadcast(0);
    for (; next < tiles_of(keys, kDepth) * kDepth; next += 2)
      for (int c = 0; c < 2; ++c) {
        const F even = next < keys ? weight(next, c) : zero;
        sums[c] = sums[c] + even;
        put(c, even, zero);
      }
  }
};

// Of 32 queries, while the blocks of keys go by. The sums are in partial, and, once kChunk keys are in them, in out.
struct Column {
  F reference[2], total[2];
  uint8_t* q;
  float *out, *partial;
  int64_t query, count;  // first of them; how many there are
  int64_t pending;       // keys in partial
  bool summed;           // whether anything is in out
};

FASTDIFF_NOINLINE void add_partial(Column& column, int64_t channels, const F* factor) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < 2; ++i) {
      float* out = column.out + (2 * c + i) * kLanes;
      F sum = column.summed ? F::load(out) : F::broadcast(0);
      if (column.pending) sum = sum + F::load(column.partial + (2 * c + i) * kLanes);
      (factor ? sum * factor[i] : sum).store(out);
    }
  column.pending = 0, column.summed = true;
}

// A sum of weights beyond this asks for a larger reference: see attention.cpp.
constexpr float kMargin = 1.1e9f;  // 2^30

// Of a block of keys; with a mask, times the scale and with the mask added.
template <class T, bool masked>
void all_scores(const Attention& op, int64_t b, int64_t h, int64_t key, int64_t count, const uint8_t* keys, const Workspace& space,
                const Column& column) {
  constexpr int N = Count<T>::numbers;
  const Depth<N> depth(op.channels);
  Nothing nothing;
  for (int64_t j = 0; j < count; j += kColumns)
    multiply_queries<N>(keys + (key + j) / kSide * depth.all() * kTileBytes, count - j > kSide, column.q, depth,
                        space.scores + j * kColumns, nothing, 0);
  if (!masked) return;
  load_bias<2, T>(op, b, h, column.query, column.count, key, count, space.bias);
  for (int64_t i = 0; i < count * kColumns; i += kLanes)
    fma(F::load(space.scores + i), F::broadcast(op.scale), F::load(space.bias + i)).store(space.scores + i);
}

template <class T, bool masked>
void run_block(const Attention& op, int64_t b, int64_t h, int64_t key, const uint8_t* keys, const uint8_t* values,
               const Workspace& space, Column& column) {
  constexpr int N = Count<T>::numbers, W = Count<T>::weights;
  const Depth<N> depth(op.channels);
  const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
  const F factor = F::broadcast(masked ? op.scale : op.scale * kLog2E);
  const auto tiles_at = [&](int64_t j) { return keys + (key + j) / kSide * depth.all() * kTileBytes; };
  const auto weigh_again = [&](F* sums) {
    Weigher<masked, W> weigher(space.scores, space.weights, count, factor, column.reference);
    weigher.rest();
    sums[0] = weigher.sums[0], sums[1] = weigher.sums[1];
  };
  F sums[2];
  bool larger = masked;
  if (!masked) {  // the reference comes from the first 32 keys, and the weights of 32 keys are computed while the next are multiplied
    Nothing nothing;
    multiply_queries<N>(tiles_at(0), count > kSide, column.q, depth, space.scores, nothing, 0);
    if (key == 0) add_maxima<masked>(space.scores, count < kColumns ? count : kColumns, factor, column.reference);
    Weigher<masked, W> weigher(space.scores, space.weights, count, factor, column.reference);
    const int64_t pairs = tiles_of(kColumns / 2, depth.products());
    for (int64_t j = kColumns; j < count; j += kColumns) {
      weigher.end = j;
      multiply_queries<N>(tiles_at(j), count - j > kSide, column.q, depth, space.scores + j * kColumns, weigher, pairs);
    }
    weigher.rest();
    sums[0] = weigher.sums[0], sums[1] = weigher.sums[1];
    larger = max(sums[0]) > kMargin || max(sums[1]) > kMargin;
  } else {
    all_scores<T, masked>(op, b, h, key, count, keys, space, column);
  }
  if (larger) {
    F decay[2];
    const F before[2] = {column.reference[0], column.reference[1]}, unit = F::broadcast(masked ? kLog2E : 1.0f);
    add_maxima<masked>(space.scores, count, factor, column.reference);
    weigh_again(sums);
    for (int c = 0; c < 2; ++c) {
      decay[c] = exp2((before[c] - column.reference[c]) * unit);
      column.total[c] = column.total[c] * decay[c];
    }
    if (key > 0 && (sum(decay[0]) != kLanes || sum(decay[1]) != kLanes)) add_partial(column, op.value_channels, decay);
  }
  for (int c = 0; c < 2; ++c) column.total[c] = column.total[c] + sums[c];

  const int64_t steps = tiles_of(count, kDepth), stride = tiles_of(op.keys, kDepth) * N * kTileBytes;
  const bool fresh = column.pending == 0;
  values += key / kDepth * N * kTileBytes;
  int64_t c = 0;
  for (; c + kSide < op.value_channels; c += 2 * kSide, values += 2 * stride)
    multiply_values_of_two<N, W>(values, stride, space.weights, steps, fresh, column.partial + c * kColumns);
  if (c < op.value_channels) multiply_values_of_one<N, W>(values, space.weights, steps, fresh, column.partial + c * kColumns);
  column.pending += count;
  if (column.pending >= kChunk && key + count < op.keys) add_partial(column, op.value_channels, nullptr);
}

template <class T, bool masked>
FASTDIFF_NOINLINE void finish(const Attention& op, int64_t b, int64_t h, const uint8_t* keys, const Workspace& space, Column& column) {
  if (column.summed || !column.pending) add_partial(column, op.value_channels, nullptr);
  float total[kColumns], top[kColumns], inverse[kColumns];
  for (int c = 0; c < 2; ++c) column.total[c].store(total + c * kLanes), column.reference[c].store(top + c * kLanes);
  for (int64_t i = 0; i < kColumns; ++i) inverse[i] = total[i] == 0 ? 0.0f : 1.0f / total[i];
  const F factor[2] = {F::load(inverse), F::load(inverse + kLanes)};
  T* out = const_cast<T*>(head_of<T>(op.out, b, h)) + column.query * op.out.row;
  turn_out<2>(column.summed ? column.out : column.partial, op.value_channels, column.count, factor, space.turned, out, op.out.row);
  const int64_t row = (b * op.heads + h) * op.queries + column.query;
  if (op.lse)
    for (int64_t i = 0; i < column.count; ++i)
      op.lse[row + i] = total[i] == 0 ? __builtin_inff() : top[i] * (masked ? 1.0f : kLn2) + __builtin_logf(total[i]);
  if (!op.maps) return;
  for (int64_t key = 0; key < op.keys; key += kKeys) {  // the scores once more, now that the denominators are known
    const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
    all_scores<T, masked>(op, b, h, key, count, keys, space, column);
    const Weigher<masked, 1> weigher(space.scores, nullptr, count, F::broadcast(op.scale * kLog2E), column.reference);
    for (int64_t j = 0; j < count; ++j)
      for (int c = 0; c < 2; ++c) weigher.weight(j, c).store(space.scores + (2 * j + c) * kLanes);
    turn_out<2>(space.scores, count, column.count, factor, space.turned, static_cast<T*>(op.maps) + row * op.keys + key, op.keys);
  }
}

// How the queries are divided: heads whose keys and values are in the second cache take turns in a block of queries, because what they
// read and write lies together in the (B, S, H, D) layout.
struct Division {
  int64_t heads, blocks, queries;  // of a group; of a head; of a block
  explicit Division(const Attention& op) : heads(op.heads) {
    constexpr int64_t kNear = 1 << 17;  // numbers
    while (heads > 1 && (op.heads % heads != 0 || heads * op.keys * (op.channels + op.value_channels) > kNear)) --heads;
    const int64_t most = heads > 1 ? kColumns : kMostQueries;
    blocks = tiles_of(op.queries, most);
    queries = blocks ? tiles_of(tiles_of(op.queries, blocks), kColumns) * kColumns : 0;
  }
};

template <class T, bool masked>
void run(const Attention& op, int64_t begin, int64_t end) {
  constexpr int N = Count<T>::numbers, W = Count<T>::weights;
  const TileRegisters registers;
  const Division division(op);
  const Depth<N> depth(op.channels);
  const int64_t key_bytes = tiles_of(op.keys, kSide) * depth.all() * kTileBytes;
  const int64_t value_tiles = tiles_of(op.value_channels, kSide);
  const int64_t value_bytes = value_tiles * tiles_of(op.keys, kDepth) * N * kTileBytes;
  const int64_t q_bytes = depth(0) * 2 * kTileBytes, out_size = value_tiles * kSide * kColumns;
  const int64_t columns = division.queries / kColumns;
  const int64_t row_bytes = depth.all() * 64;

  const int64_t sizes[] = {division.heads * key_bytes, division.heads * value_bytes, columns * q_bytes,
                           kKeys / kDepth * W * 2 * kTileBytes, columns * out_size * 4, columns * out_size * 4,
                           kKeys * kColumns * 4, masked ? kKeys * kColumns * 4 : 0,
                           (out_size > kKeys * kColumns ? out_size : kKeys * kColumns) * 4, row_bytes};
  int64_t bytes = 0;
  for (const int64_t size : sizes) bytes += size;
  uint8_t* memory = static_cast<uint8_t*>(scratch(bytes));
  uint8_t* parts[10];
  for (int i = 0; i < 10; ++i) parts[i] = memory, memory += sizes[i];
  Workspace space = {parts[0], parts[1], parts[2], parts[3], reinterpret_cast<float*>(parts[4]), reinterpret_cast<float*>(parts[5]),
                     reinterpret_cast<float*>(parts[6]), reinterpret_cast<float*>(parts[7]), reinterpret_cast<float*>(parts[8]),
                     reinterpret_cast<uint16_t*>(parts[9])};

  int64_t loaded = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / (division.blocks * division.heads), inside = unit % (division.blocks * division.heads);
    const int64_t b = group * division.heads / op.heads, start = group * division.heads % op.heads;
    const int64_t slot = inside % division.heads, h = start + slot, query = inside / division.heads * division.queries;
    if (group != loaded)
      for (int64_t i = 0; i < division.heads; ++i) {
        pack_keys<N>(head_of<T>(op.k, b, start + i), op.k.row, op.keys, op.channels, space.rows, space.keys + i * key_bytes);
        pack_values<N>(head_of<T>(op.v, b, start + i), op.v.row, op.keys, op.value_channels, space.values + i * value_bytes);
      }
    loaded = group;
    Column column[kMostQueries / kColumns];
    int64_t used = 0;
    for (; used < columns && query + used * kColumns < op.queries; ++used) {
      Column& c = column[used];
      for (int i = 0; i < 2; ++i) c.reference[i] = F::broadcast(kLowest), c.total[i] = F::broadcast(0);
      c.q = space.q + used * q_bytes;
      c.out = space.out + used * out_size, c.partial = space.partial + used * out_size;
      c.query = query + used * kColumns;
      c.count = op.queries - c.query < kColumns ? op.queries - c.query : kColumns;
      c.pending = 0, c.summed = false;
      const bool last = used + 1 == columns || c.query + kColumns >= op.queries;
      const int64_t next_h = !last ? h : slot + 1 < division.heads ? h + 1 : start;
      const int64_t next = !last || slot + 1 == division.heads ? c.query + kColumns : query;
      ask_for(head_of<T>(op.q, b, next_h) + next * op.q.row, op.q.row, kColumns, op.channels);
      pack_queries<N>(head_of<T>(op.q, b, h) + c.query * op.q.row, op.q.row, c.count, op.channels, c.q);
      ask_for(head_of<T>(op.out, b, h) + c.query * op.out.row, op.out.row, c.count, op.value_channels);
    }
    const uint8_t *keys = space.keys + slot * key_bytes, *values = space.values + slot * value_bytes;
    for (int64_t key = 0; key < op.keys; key += kKeys)
      for (int64_t i = 0; i < used; ++i) run_block<T, masked>(op, b, h, key, keys, values, space, column[i]);
    for (int64_t i = 0; i < used; ++i) finish<T, masked>(op, b, h, keys, space, column[i]);
  }
}

template <class T>
void run_masked(const Attention& op, int64_t begin, int64_t end) {
  op.mask_type == Mask::none ? run<T, false>(op, begin, end) : run<T, true>(op, begin, end);
}

// With few keys what is packed for the tiles is used too little to pay.
bool in_tiles(const Attention& op) { return op.keys > 128; }

}  // namespace

int64_t attention_units(const Attention& op) {
  return in_tiles(op) ? op.batch * op.heads * Division(op).blocks : avx512::attention_units(op);
}

void attention(const Attention& op, int64_t begin, int64_t end) {
  if (!in_tiles(op)) return avx512::attention(op, begin, end);
  switch (op.type) {
    case Type::float32: return run_masked<float>(op, begin, end);
    case Type::bfloat16: return run_masked<bfloat16>(op, begin, end);
    case Type::float16: return run_masked<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::amx

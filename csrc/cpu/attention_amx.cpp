// Attention (see attention.cpp) with the products on AMX, to float32's
// precision: see amx.h. Scores are transposed here as well: lanes are queries,
// so that the weights of two keys, side by side, are a row of the right factor
// of the second product as they are computed. Blocks of keys are in the outer
// loop and 32 queries in the inner one, so that keys and values are read from
// afar once for all queries of a unit.
#include "fastdiff/amx.h"
#include "fastdiff/kernels.h"
#include "fastdiff/scores.h"
#include "fastdiff/scratch.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::avx512 {
int64_t attention_units(const Attention &op);
void attention(const Attention &op, int64_t begin, int64_t end);
} // namespace fastdiff::avx512

namespace fastdiff::amx {

bool attention_few_takes(const Attention &op);
int64_t attention_few_units(const Attention &op);
void attention_few(const Attention &op, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 16; // of a tile of results
constexpr int64_t kColumns =
    32; // queries that are computed together: two vectors, two tiles
constexpr int64_t kKeys = 128;        // of a block
constexpr int64_t kMostQueries = 128; // of a unit
constexpr int64_t kChunk = 512; // keys whose products are summed before they
                                // are added to those of others

int64_t tiles_of(int64_t size, int64_t side) {
  return (size + side - 1) / side;
}

// Of the N parts of two numbers those products matter that these numbers of
// parts have, in the order of the slots below.
template <int N> constexpr int kSlots = N * (N + 1) / 2;

// Channels come 32 at a time, a tile for each part. What is left, an even
// number, comes with a slot for each product of two parts, side by side: keys
// as [k0 | k0 | k0 | k1 | k1 | k2], queries as [q0 | q1 | q2 | q0 | q1 | q0].
// No tile is filled up but the last.
template <int N> struct Depth {
  int64_t whole, rest,
      shared; // tiles of 32 channels, channels that are left, their tiles
  explicit Depth(int64_t channels)
      : whole(channels / kDepth), rest((channels % kDepth + 1) / 2 * 2),
        shared(tiles_of(kSlots<N> * rest, kDepth)) {
    if (shared == kSlots<N>)
      ++whole, rest = shared = 0;
  }
  int64_t tiles() const { return N * whole + shared; }
  int64_t products() const { return kSlots<N> * whole + shared; }
  // Where part p of channel c is in a row, and where those of the slots of
  // `part`, of keys or of queries, are.
  int64_t column(int64_t c, int p) const {
    return (c / kDepth * N + p) * kDepth + c % kDepth;
  }
  template <class Put>
  void each_slot(int64_t c, bool of_keys, const Put &put) const {
    int64_t at = whole * N * kDepth + c - whole * kDepth;
    for (int k = 0; k < N; ++k)
      for (int q = 0; q < N - k; ++q, at += rest)
        put(at, of_keys ? k : q);
  }
};

struct Workspace {
  uint8_t *keys, *values; // tiles of the heads of a group
  uint8_t *q, *weights;   // tiles
  float *out, *partial, *scores, *bias;
  uint16_t *rows;
};

void store_part(uint16_t *to, __m256i numbers, int64_t n) {
  n == kSide ? _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), numbers)
             : _mm256_mask_storeu_epi16(to, first(n), numbers);
}

template <int N, class T>
FASTDIFF_NOINLINE void pack_keys(const T *k, int64_t row, int64_t keys,
                                 int64_t channels, uint16_t *parts,
                                 uint8_t *to) {
  const Depth<N> depth(channels);
  for (int64_t i = 0; i < depth.tiles() * kDepth; i += kDepth)
    _mm512_storeu_si512(parts + i, _mm512_setzero_si512());
  for (int64_t key = 0; key < tiles_of(keys, kSide) * kSide; ++key) {
    uint8_t *tile =
        to + key / kSide * depth.tiles() * kTileBytes + key % kSide * 64;
    if (key + 8 < keys)
      prefetch_rows(k + (key + 8) * row, row, 1, channels);
    for (int64_t c = 0; key < keys && c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      const Terms split_k = split<N, true>(load_up_to(k + key * row + c, n).v);
      if (c < depth.whole * kDepth) {
        for (int p = 0; p < N; ++p)
          store_part(parts + depth.column(c, p), narrow(split_k.term[p]), n);
      } else {
        depth.each_slot(c, true, [&](int64_t at, int p) {
          store_part(parts + at, narrow(split_k.term[p]), n);
        });
      }
    }
    for (int64_t t = 0; t < depth.tiles(); ++t)
      _mm512_store_si512(tile + t * kTileBytes,
                         key < keys ? _mm512_loadu_si512(parts + t * kDepth)
                                    : _mm512_setzero_si512());
  }
}

// Tiles of 16 channels by 32 keys: values transposed.
template <int N, class T>
FASTDIFF_NOINLINE void pack_values(const T *v, int64_t row, int64_t keys,
                                   int64_t channels, uint8_t *to) {
  const int64_t steps = tiles_of(keys, kDepth);
  for (int64_t start = 0; start < steps * kDepth; start += kSide) {
    for (int64_t i = 0; i < kSide && start + kSide + i < keys; ++i)
      prefetch_rows(v + (start + kSide + i) * row, row, 1, channels);
    for (int64_t c = 0; c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      uint8_t *tile = to +
                      (c / kSide * steps + start / kDepth) * N * kTileBytes +
                      start % kDepth * 2;
      F rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = start + i < keys ? load_up_to(v + (start + i) * row + c, n)
                                   : F::broadcast(0);
      transpose(rows);
      for (int64_t i = 0; i < kSide; ++i) {
        const Terms split_v = split<N, true>(rows[i].v);
        for (int p = 0; p < N; ++p)
          _mm256_store_si256(
              reinterpret_cast<__m256i *>(tile + p * kTileBytes + i * 64),
              narrow(split_v.term[p]));
      }
    }
  }
}

// Tiles of the parts of 32 queries, transposed, two side by side: see Depth.
template <int N, class T>
FASTDIFF_NOINLINE void pack_queries(const T *q, int64_t row, int64_t count,
                                    int64_t channels, uint8_t *to) {
  const Depth<N> depth(channels);
  for (int64_t group = 0; group < 2; ++group, to += kTileBytes) {
    const auto pair = [&](int64_t i) {
      return to + i / kSide * 2 * kTileBytes + i % kSide * 64;
    };
    for (int64_t c = 0; c < channels; c += kSide) {
      const int64_t n = channels - c < kSide ? channels - c : kSide;
      F rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = group * kSide + i < count
                      ? load_up_to(q + (group * kSide + i) * row + c, n)
                      : F::broadcast(0);
      transpose(rows);
      for (int64_t i = 0; i < n; i += 2) {
        const Terms even = split<N, true>(rows[i].v),
                    odd = split<N, true>(rows[i + 1].v);
        __m512i pairs[N];
        for (int p = 0; p < N; ++p)
          pairs[p] = pair_lanes(even.term[p], odd.term[p]);
        if (c < depth.whole * kDepth) {
          for (int p = 0; p < N; ++p)
            _mm512_store_si512(pair(depth.column(c + i, p) / 2), pairs[p]);
        } else {
          depth.each_slot(c + i, false, [&](int64_t at, int p) {
            _mm512_store_si512(pair(at / 2), pairs[p]);
          });
        }
      }
    }
    for (int64_t c = (channels + 1) / 2 * 2; c < depth.whole * kDepth; c += 2)
      for (int p = 0; p < N; ++p)
        _mm512_store_si512(pair(depth.column(c, p) / 2),
                           _mm512_setzero_si512());
    for (int64_t i = kSlots<N> * depth.rest; i < depth.shared * kDepth; i += 2)
      _mm512_store_si512(pair((depth.whole * N * kDepth + i) / 2),
                         _mm512_setzero_si512());
  }
}

// What the vector units do while the matrix unit multiplies, for about 64
// cycles a time: lines are asked for.
struct Asking {
  RowPrefetcher lines;
  FASTDIFF_INLINE void some(int64_t = 0) {
    FASTDIFF_UNROLL_16
    for (int i = 0; i < 3; ++i)
      lines.prefetch_next();
  }
};

// out (+)= the sums in registers 0 and 1, of one tile of rows by two of
// columns, and those in 2 and 3, of the same.
inline void store_sums_of_one(float *out, bool fresh) {
  constexpr int64_t row = kColumns * sizeof(float);
  alignas(64) float sums[2][kSide * kColumns];
  FASTDIFF_TILE_STORE(0, sums[0], row);
  FASTDIFF_TILE_STORE(1, sums[0] + kSide, row);
  FASTDIFF_TILE_STORE(2, sums[1], row);
  FASTDIFF_TILE_STORE(3, sums[1] + kSide, row);
  for (int64_t i = 0; i < kSide * kColumns; i += kLanes) {
    const F sum = F::load(sums[0] + i) + F::load(sums[1] + i);
    (fresh ? sum : sum + F::load(out + i)).store(out + i);
  }
}

// scores[key][query] of 32 keys and 32 queries. background.some(n) is called
// for each product of two parts of a tile.
template <int N, class Background>
FASTDIFF_INLINE void
multiply_queries_of_two(const uint8_t *keys, const uint8_t *q,
                        const Depth<N> &depth, float *scores,
                        Background &background, int64_t n) {
  const uint8_t *lower = keys + depth.tiles() * kTileBytes;
  zero_sums();
  for (int64_t t = 0; t < depth.whole * N; t += N)
    add_products<N, N>(
        [&](int part) {
          FASTDIFF_TILE_LOAD(4, keys + (t + part) * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(5, lower + (t + part) * kTileBytes, 64);
        },
        [&](int part) {
          FASTDIFF_TILE_LOAD(6, q + 2 * (t + part) * kTileBytes, 64);
          FASTDIFF_TILE_LOAD(7, q + (2 * (t + part) + 1) * kTileBytes, 64);
        },
        [&] { background.some(n); });
  for (int64_t t = depth.whole * N; t < depth.tiles(); ++t) {
    FASTDIFF_TILE_LOAD(4, keys + t * kTileBytes, 64);
    FASTDIFF_TILE_LOAD(6, q + 2 * t * kTileBytes, 64);
    FASTDIFF_TILE_MULTIPLY(0, 4, 6);
    FASTDIFF_TILE_LOAD(7, q + (2 * t + 1) * kTileBytes, 64);
    FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    FASTDIFF_TILE_LOAD(5, lower + t * kTileBytes, 64);
    FASTDIFF_TILE_MULTIPLY(2, 5, 6);
    FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    background.some(n);
  }
  store_sums(scores);
}
// The same of 16 keys. Products go to two pairs of sums by turns: an
// instruction waits for the one before it on its sum.
template <int N, class Background>
FASTDIFF_INLINE void
multiply_queries_of_one(const uint8_t *keys, const uint8_t *q,
                        const Depth<N> &depth, float *scores,
                        Background &background, int64_t n) {
  zero_sums();
  int64_t product = 0;
  const auto add = [&](int64_t of_keys,
                       int64_t of_queries) __attribute__((always_inline)) {
    if (product++ % 2) {
      FASTDIFF_TILE_LOAD(4, keys + of_keys * kTileBytes, 64);
      FASTDIFF_TILE_LOAD(6, q + 2 * of_queries * kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(0, 4, 6);
      FASTDIFF_TILE_LOAD(7, q + (2 * of_queries + 1) * kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(1, 4, 7);
    } else {
      FASTDIFF_TILE_LOAD(5, keys + of_keys * kTileBytes, 64);
      FASTDIFF_TILE_LOAD(6, q + 2 * of_queries * kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(2, 5, 6);
      FASTDIFF_TILE_LOAD(7, q + (2 * of_queries + 1) * kTileBytes, 64);
      FASTDIFF_TILE_MULTIPLY(3, 5, 7);
    }
    background.some(n);
  };
  for (int64_t t = 0; t < depth.whole * N; t += N)
    for (int k = N - 1; k >= 0; --k)
      for (int i = 0; i < N - k; ++i)
        add(t + k, t + i);
  for (int64_t t = depth.whole * N; t < depth.tiles(); ++t)
    add(t, t);
  store_sums_of_one(scores, true);
}
template <int N, class Background>
FASTDIFF_INLINE void multiply_queries(const uint8_t *keys, bool both,
                                      const uint8_t *q, const Depth<N> &depth,
                                      float *scores, Background &background,
                                      int64_t n) {
  both ? multiply_queries_of_two<N>(keys, q, depth, scores, background, n)
       : multiply_queries_of_one<N>(keys, q, depth, scores, background, n);
}

// partial[channel][query] += of two tiles of channels and 32 queries, over
// `steps` of 32 keys; or = where it is fresh.
#define FASTDIFF_VALUES(r, part)                                               \
  (values + (r) * stride + (s * N + (part)) * kTileBytes)
#define FASTDIFF_WEIGHTS(part, side)                                           \
  (weights + ((s * W + (part)) * 2 + (side)) * kTileBytes)
template <int N, int W>
FASTDIFF_NOINLINE void
multiply_values_of_two(const uint8_t *values, int64_t stride,
                       const uint8_t *weights, int64_t steps, bool fresh,
                       float *partial, Asking *ahead) {
  Asking asking = *ahead;
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
        [&] { asking.some(); });
  store_sums(partial);
  *ahead = asking;
}
// The same of one tile of channels. Steps go to two pairs of sums by turns: an
// instruction waits for the one before it on its sum.
template <int N, int W>
FASTDIFF_NOINLINE void multiply_values_of_one(const uint8_t *values,
                                              const uint8_t *weights,
                                              int64_t steps, bool fresh,
                                              float *partial, Asking *ahead) {
  Asking asking = *ahead;
  constexpr int64_t stride = 0;
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
        asking.some();
      }
  *ahead = asking;
  store_sums_of_one(partial, fresh);
}
#undef FASTDIFF_VALUES
#undef FASTDIFF_WEIGHTS

// larger[lane] = the largest of that and of the scores, times a factor where
// there is no mask.
template <bool masked>
void add_maxima(const float *scores, int64_t keys, F factor, F *larger) {
  F found[2] = {larger[0], larger[1]};
  for (int64_t j = 0; j < keys; ++j)
    for (int c = 0; c < 2; ++c) {
      const F x = F::load(scores + (2 * j + c) * kLanes);
      found[c] = max(found[c], masked ? x : x * factor);
    }
  larger[0] = found[0], larger[1] = found[1];
}

// The parts of the weights e^(score - reference), as tiles, two keys at a time;
// 0 for keys that fill the last tile.
template <bool masked, int W> struct Weigher {
  const float *scores;
  uint8_t *weights;
  int64_t next, end, keys; // the next key; where those stop whose scores are
                           // there; where all stop
  F factor, from[2], sums[2];
  Asking *asking;

  Weigher(const float *s, uint8_t *w, int64_t k, F f, const F *reference,
          Asking *a)
      : scores(s), weights(w), next(0), end(0), keys(k), factor(f), asking(a) {
    for (int c = 0; c < 2; ++c) {
      from[c] = masked ? reference[c] : F::broadcast(0) - reference[c];
      sums[c] = F::broadcast(0);
    }
  }
  FASTDIFF_INLINE F weight(int64_t key, int c) const {
    const F x = F::load(scores + (2 * key + c) * kLanes);
    return masked ? exp2((x - from[c]) * F::broadcast(kLog2E))
                  : exp2(fma(x, factor, from[c]));
  }
  FASTDIFF_INLINE void put(int c, F even, F odd) {
    uint8_t *to =
        weights + (next / kDepth * W * 2 + c) * kTileBytes + next % kDepth * 32;
    const Terms a = split<W>(even.v), b = split<W>(odd.v);
    for (int p = 0; p < W; ++p)
      _mm512_store_si512(to + p * 2 * kTileBytes,
                         pair_lanes(a.term[p], b.term[p]));
  }
  FASTDIFF_INLINE void some(int64_t pairs) {
    asking->some();
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

// Of 32 queries, while the blocks of keys go by. The sums are in partial, and,
// once kChunk keys are in them, in out.
struct Column {
  F reference[2], total[2];
  uint8_t *q;
  float *out, *partial;
  int64_t query, count; // first of them; how many there are
  int64_t pending;      // keys in partial
  bool summed;          // whether anything is in out
};

FASTDIFF_NOINLINE void add_partial(Column &column, int64_t channels,
                                   const F *factor) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < 2; ++i) {
      float *out = column.out + (2 * c + i) * kLanes;
      F sum = column.summed ? F::load(out) : F::broadcast(0);
      if (column.pending)
        sum = sum + F::load(column.partial + (2 * c + i) * kLanes);
      (factor ? sum * factor[i] : sum).store(out);
    }
  column.pending = 0, column.summed = true;
}

// A sum of weights beyond this asks for a larger reference: see attention.cpp.
constexpr float kMargin = 1.1e9f; // 2^30

// Of a block of keys; with a mask, times the scale and with the mask added.
template <class T, bool masked>
void all_scores(const Attention &op, int64_t b, int64_t h, int64_t key,
                int64_t count, const uint8_t *keys, const Workspace &space,
                const Column &column, Asking *results) {
  constexpr int N = Count<T>::numbers;
  const Depth<N> depth(op.channels);
  for (int64_t j = 0; j < count; j += kColumns)
    multiply_queries<N>(keys + (key + j) / kSide * depth.tiles() * kTileBytes,
                        count - j > kSide, column.q, depth,
                        space.scores + j * kColumns, *results, 0);
  if (!masked)
    return;
  load_bias<2, T>(op, b, h, column.query, column.count, key, count, space.bias);
  for (int64_t i = 0; i < count * kColumns; i += kLanes)
    fma(F::load(space.scores + i), F::broadcast(op.scale),
        F::load(space.bias + i))
        .store(space.scores + i);
}

template <class T, bool masked>
void run_block(const Attention &op, int64_t b, int64_t h, int64_t key,
               const uint8_t *keys, const uint8_t *values,
               const Workspace &space, Column &column, Asking *results,
               Asking *queries) {
  constexpr int N = Count<T>::numbers, W = Count<T>::weights;
  const Depth<N> depth(op.channels);
  const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
  const F factor = F::broadcast(masked ? op.scale : op.scale * kLog2E);
  const auto tiles_at = [&](int64_t j) {
    return keys + (key + j) / kSide * depth.tiles() * kTileBytes;
  };
  const auto weigh_again = [&](F *sums) {
    Weigher<masked, W> weigher(space.scores, space.weights, count, factor,
                               column.reference, results);
    weigher.rest();
    sums[0] = weigher.sums[0], sums[1] = weigher.sums[1];
  };
  F sums[2];
  bool larger = masked;
  if (!masked) { // the reference comes from the first 32 keys, and the weights
                 // of 32 keys are computed while the next are multiplied
    multiply_queries<N>(tiles_at(0), count > kSide, column.q, depth,
                        space.scores, *results, 0);
    if (key == 0)
      add_maxima<masked>(space.scores, count < kColumns ? count : kColumns,
                         factor, column.reference);
    Weigher<masked, W> weigher(space.scores, space.weights, count, factor,
                               column.reference, results);
    const int64_t pairs = tiles_of(kColumns / 2, depth.products());
    for (int64_t j = kColumns; j < count; j += kColumns) {
      weigher.end = j;
      multiply_queries<N>(tiles_at(j), count - j > kSide, column.q, depth,
                          space.scores + j * kColumns, weigher, pairs);
    }
    weigher.rest();
    sums[0] = weigher.sums[0], sums[1] = weigher.sums[1];
    larger = max(sums[0]) > kMargin || max(sums[1]) > kMargin;
  } else {
    all_scores<T, masked>(op, b, h, key, count, keys, space, column, results);
  }
  if (larger) {
    F decay[2];
    const F before[2] = {column.reference[0], column.reference[1]},
            unit = F::broadcast(masked ? kLog2E : 1.0f);
    add_maxima<masked>(space.scores, count, factor, column.reference);
    weigh_again(sums);
    for (int c = 0; c < 2; ++c) {
      decay[c] = exp2((before[c] - column.reference[c]) * unit);
      column.total[c] = column.total[c] * decay[c];
    }
    if (key > 0 && (sum(decay[0]) != kLanes || sum(decay[1]) != kLanes))
      add_partial(column, op.value_channels, decay);
  }
  for (int c = 0; c < 2; ++c)
    column.total[c] = column.total[c] + sums[c];

  const int64_t steps = tiles_of(count, kDepth),
                stride = tiles_of(op.keys, kDepth) * N * kTileBytes;
  const bool fresh = column.pending == 0;
  values += key / kDepth * N * kTileBytes;
  int64_t c = 0;
  for (; c + kSide < op.value_channels; c += 2 * kSide, values += 2 * stride)
    multiply_values_of_two<N, W>(values, stride, space.weights, steps, fresh,
                                 column.partial + c * kColumns, queries);
  if (c < op.value_channels)
    multiply_values_of_one<N, W>(values, space.weights, steps, fresh,
                                 column.partial + c * kColumns, queries);
  column.pending += count;
  if (column.pending >= kChunk && key + count < op.keys)
    add_partial(column, op.value_channels, nullptr);
}

template <class T, bool masked>
FASTDIFF_NOINLINE void finish(const Attention &op, int64_t b, int64_t h,
                              const uint8_t *keys, const Workspace &space,
                              Column &column, Asking *results) {
  if (column.summed || !column.pending)
    add_partial(column, op.value_channels, nullptr);
  float total[kColumns], top[kColumns], inverse[kColumns];
  for (int c = 0; c < 2; ++c)
    column.total[c].store(total + c * kLanes),
        column.reference[c].store(top + c * kLanes);
  for (int64_t i = 0; i < kColumns; ++i)
    inverse[i] = total[i] == 0 ? 0.0f : 1.0f / total[i];
  const F factor[2] = {F::load(inverse), F::load(inverse + kLanes)};
  T *out =
      const_cast<T *>(head_of<T>(op.out, b, h)) + column.query * op.out.row;
  transpose_out<2>(column.summed ? column.out : column.partial,
                   op.value_channels, column.count, factor, out, op.out.row);
  const int64_t row = (b * op.heads + h) * op.queries + column.query;
  if (op.lse)
    for (int64_t i = 0; i < column.count; ++i)
      op.lse[row + i] = total[i] == 0 ? __builtin_inff()
                                      : top[i] * (masked ? 1.0f : kLn2) +
                                            __builtin_logf(total[i]);
  if (!op.maps)
    return;
  for (int64_t key = 0; key < op.keys;
       key +=
       kKeys) { // the scores once more, now that the denominators are known
    const int64_t count = op.keys - key < kKeys ? op.keys - key : kKeys;
    all_scores<T, masked>(op, b, h, key, count, keys, space, column, results);
    const Weigher<masked, 1> weigher(space.scores, nullptr, count,
                                     F::broadcast(op.scale * kLog2E),
                                     column.reference, results);
    for (int64_t j = 0; j < count; ++j)
      for (int c = 0; c < 2; ++c)
        weigher.weight(j, c).store(space.scores + (2 * j + c) * kLanes);
    transpose_out<2>(space.scores, count, column.count, factor,
                     static_cast<T *>(op.maps) + row * op.keys + key, op.keys);
  }
}

// How the queries are divided: heads whose keys and values are in the second
// cache take turns in a block of queries, because what they read and write lies
// together in the (B, S, H, D) layout.
struct Division {
  int64_t heads, blocks, queries; // of a group; of a head; of a block
  explicit Division(const Attention &op) : heads(op.heads) {
    constexpr int64_t kNear = 1 << 17; // numbers
    while (heads > 1 &&
           (op.heads % heads != 0 ||
            heads * op.keys * (op.channels + op.value_channels) > kNear))
      --heads;
    const int64_t most = heads > 1 ? kColumns : kMostQueries;
    blocks = tiles_of(op.queries, most);
    queries = blocks
                  ? tiles_of(tiles_of(op.queries, blocks), kColumns) * kColumns
                  : 0;
  }
};

template <class T, bool masked>
void run(const Attention &op, int64_t begin, int64_t end) {
  constexpr int N = Count<T>::numbers, W = Count<T>::weights;
  const TileRegisters registers;
  const Division division(op);
  const Depth<N> depth(op.channels);
  const int64_t key_bytes =
      tiles_of(op.keys, kSide) * depth.tiles() * kTileBytes;
  const int64_t value_tiles = tiles_of(op.value_channels, kSide);
  const int64_t value_bytes =
      value_tiles * tiles_of(op.keys, kDepth) * N * kTileBytes;
  const int64_t q_bytes = depth.tiles() * 2 * kTileBytes,
                out_size = value_tiles * kSide * kColumns;
  const int64_t columns = division.queries / kColumns;
  const int64_t row_bytes = depth.tiles() * 64;

  const int64_t sizes[] = {division.heads * key_bytes,
                           division.heads * value_bytes,
                           columns * q_bytes,
                           kKeys / kDepth * W * 2 * kTileBytes,
                           columns * out_size * 4,
                           columns * out_size * 4,
                           kKeys * kColumns * 4,
                           masked ? kKeys * kColumns * 4 : 0,
                           row_bytes};
  int64_t bytes = 0;
  for (const int64_t size : sizes)
    bytes += size;
  uint8_t *memory = static_cast<uint8_t *>(scratch(bytes));
  uint8_t *parts[9];
  for (int i = 0; i < 9; ++i)
    parts[i] = memory, memory += sizes[i];
  Workspace space = {parts[0],
                     parts[1],
                     parts[2],
                     parts[3],
                     reinterpret_cast<float *>(parts[4]),
                     reinterpret_cast<float *>(parts[5]),
                     reinterpret_cast<float *>(parts[6]),
                     reinterpret_cast<float *>(parts[7]),
                     reinterpret_cast<uint16_t *>(parts[8])};

  struct Place {
    int64_t group, slot, b, h, query, count;
  };
  const auto place = [&](int64_t unit) {
    const int64_t inside = unit % (division.blocks * division.heads),
                  query = inside / division.heads * division.queries;
    const int64_t group = unit / (division.blocks * division.heads),
                  slot = inside % division.heads;
    const int64_t head = group * division.heads + slot,
                  left = op.queries - query;
    return Place{
        group,           slot,
        head / op.heads, head % op.heads,
        query,           left < division.queries ? left : division.queries};
  };
  int64_t loaded = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Place here = place(unit),
                next = place(unit + 1 < end ? unit + 1 : unit);
    if (here.group != loaded)
      for (int64_t i = 0; i < division.heads; ++i) {
        const int64_t h = here.h - here.slot + i;
        pack_keys<N>(head_of<T>(op.k, here.b, h), op.k.row, op.keys,
                     op.channels, space.rows, space.keys + i * key_bytes);
        pack_values<N>(head_of<T>(op.v, here.b, h), op.v.row, op.keys,
                       op.value_channels, space.values + i * value_bytes);
      }
    loaded = here.group;
    Asking results = {prefetcher_of<T>(op.out, here.b, here.h, here.query,
                                       here.count, op.value_channels)};
    Asking queries = {prefetcher_of<T>(op.q, next.b, next.h, next.query,
                                       next.count, op.channels)};
    Column column[kMostQueries / kColumns];
    int64_t used = 0;
    for (; used * kColumns < here.count; ++used) {
      Column &c = column[used];
      for (int i = 0; i < 2; ++i)
        c.reference[i] = F::broadcast(kLowest), c.total[i] = F::broadcast(0);
      c.q = space.q + used * q_bytes;
      c.out = space.out + used * out_size,
      c.partial = space.partial + used * out_size;
      c.query = here.query + used * kColumns;
      c.count =
          op.queries - c.query < kColumns ? op.queries - c.query : kColumns;
      c.pending = 0, c.summed = false;
      pack_queries<N>(head_of<T>(op.q, here.b, here.h) + c.query * op.q.row,
                      op.q.row, c.count, op.channels, c.q);
    }
    const uint8_t *keys = space.keys + here.slot * key_bytes,
                  *values = space.values + here.slot * value_bytes;
    for (int64_t key = 0; key < op.keys; key += kKeys)
      for (int64_t i = 0; i < used; ++i)
        run_block<T, masked>(op, here.b, here.h, key, keys, values, space,
                             column[i], &results, &queries);
    for (int64_t i = 0; i < used; ++i)
      finish<T, masked>(op, here.b, here.h, keys, space, column[i], &results);
  }
}

template <class T>
void run_masked(const Attention &op, int64_t begin, int64_t end) {
  op.mask_type == Mask::none ? run<T, false>(op, begin, end)
                             : run<T, true>(op, begin, end);
}

// With few keys turned queries and results pay too little: see
// attention_few_amx.cpp. With few channels weights in parts cost more than
// products of vectors.
bool in_tiles(const Attention &op) {
  return op.keys > 128 && (op.channels > 16 || op.value_channels > 16);
}

} // namespace

int64_t attention_units(const Attention &op) {
  if (attention_few_takes(op))
    return attention_few_units(op);
  return in_tiles(op) ? op.batch * op.heads * Division(op).blocks
                      : avx512::attention_units(op);
}

void attention(const Attention &op, int64_t begin, int64_t end) {
  if (attention_few_takes(op))
    return attention_few(op, begin, end);
  if (!in_tiles(op))
    return avx512::attention(op, begin, end);
  switch (op.type) {
  case Type::float32:
    return run_masked<float>(op, begin, end);
  case Type::bfloat16:
    return run_masked<bfloat16>(op, begin, end);
  case Type::float16:
    return run_masked<float16>(op, begin, end);
  }
}

} // namespace fastdiff::amx

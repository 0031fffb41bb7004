// Attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention): the scores of a block of keys
// are all that exists of the queries x keys matrix. Everything is transposed: the lanes of a vector are queries, so that a key's
// channel or a value's is one number for all lanes, and maxima and sums over the keys need no horizontal step. Compiled once an
// instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

#if defined(__GNUC__)
#define FASTDIFF_UNROLL _Pragma("GCC unroll 16")
#define FASTDIFF_UNROLL_2 _Pragma("GCC unroll 2")
#define FASTDIFF_NOINLINE __attribute__((noinline))
#else
#define FASTDIFF_UNROLL
#define FASTDIFF_UNROLL_2
#define FASTDIFF_NOINLINE __declspec(noinline)
#endif

namespace fastdiff::FASTDIFF_ISA {
namespace {

// A tile of kRows x 2 accumulators, 2 vectors of queries and 1 for the broadcast fill the registers: 32, or 16.
#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_NEON)
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kLanes = F::size, kQueries = 2 * kLanes;
static_assert(kAttentionQueries % kQueries == 0, "a unit is whole blocks");
constexpr int64_t kBlockTiles = 140 / kRows, kKeys = kBlockTiles * kRows;  // of a block, whose scores stay in the first cache

constexpr float kLowest = -3.402823466e38f, kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;


template <class T>
const T* head_of(const Heads& heads, int64_t b, int64_t h) {
  return static_cast<const T*>(heads.data) + b * heads.batch + h * heads.head;
}

// ---- blocks of kLanes x kLanes, turned -------------------------------------------------------------------------------

// rows[i] lane j <-> rows[j] lane i.
#if defined(FASTDIFF_ISA_AVX512)
inline void transpose(F* rows) {
  __m512 a[16], b[16];
  FASTDIFF_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  FASTDIFF_UNROLL
  for (int i = 0; i < 16; i += 4)  // b[i + j]: column j of every quarter, of rows i to i + 3
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  FASTDIFF_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[4 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[8 + j].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[12 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}
#else
inline void transpose(F* rows) {
  float values[kLanes * kLanes], turned[kLanes * kLanes];
  for (int64_t i = 0; i < kLanes; ++i) rows[i].store(values + i * kLanes);
  for (int64_t i = 0; i < kLanes; ++i)
    for (int64_t j = 0; j < kLanes; ++j) turned[j * kLanes + i] = values[i * kLanes + j];
  for (int64_t i = 0; i < kLanes; ++i) rows[i] = F::load(turned + i * kLanes);
}
#endif

// to[c * kQueries + lane] = factor * row(lane)[c] for c in [0, size), with kQueries rows, of which the first `count` exist.
template <class Load>
inline void turn_in(int64_t size, int64_t count, float* to, const Load& load_row) {
  F rows[kLanes];
  for (int64_t half = 0; half < kQueries; half += kLanes)
    for (int64_t c = 0; c < size; c += kLanes) {
      const int64_t n = size - c < kLanes ? size - c : kLanes;
      if (n == kLanes && half + kLanes <= count) {
        for (int64_t i = 0; i < kLanes; ++i) rows[i] = load_row(half + i, c, kLanes);
      } else {
        for (int64_t i = 0; i < kLanes; ++i) rows[i] = half + i < count ? load_row(half + i, c, n) : F::broadcast(0);
      }
      transpose(rows);
      for (int64_t i = 0; i < n; ++i) rows[i].store(to + (c + i) * kQueries + half);
    }
}

// row(lane)[c] = factor[lane] * from[c * kQueries + lane] for c in [0, size) and the first `count` lanes. By way of `turned`, so
// that a row, which may have a page of its own, is written at once.
template <class T>
inline void turn_out(const float* from, int64_t size, int64_t count, const F* factor, float* turned, T* to, int64_t row) {
  const int64_t width = (size + kLanes - 1) / kLanes * kLanes;
  F rows[kLanes];
  for (int64_t half = 0; half < count; half += kLanes)
    for (int64_t c = 0; c < size; c += kLanes) {
      const int64_t n = size - c < kLanes ? size - c : kLanes;
      for (int64_t i = 0; i < n; ++i) rows[i] = F::load(from + (c + i) * kQueries + half) * factor[half / kLanes];
      for (int64_t i = n; i < kLanes; ++i) rows[i] = F::broadcast(0);
      transpose(rows);
      for (int64_t i = 0; i < kLanes; ++i) rows[i].store(turned + (half + i) * width + c);
    }
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < whole; c += kLanes) store(to + i * row + c, F::load(turned + i * width + c));
    if (whole < size) store_some(to + i * row + whole, F::load(turned + i * width + whole), size - whole);
  }
}

template <class T>
inline F load_up_to(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load_some(p, n);
}

// ---- the two products ------------------------------------------------------------------------------------------------
//
// Tiles of R rows, R at most kRows, compiled for every R and called through a table.

// scores[r][lane] = start[lane] + sum over c of k[r][c] * q[c][lane].
template <int R>
FASTDIFF_NOINLINE void score_tile(const float* q, int64_t channels, const float* k, int64_t row, const F* start,
                                  float* scores) {
  F sums[R][2];
  FASTDIFF_UNROLL
  for (int r = 0; r < R; ++r) sums[r][0] = start[0], sums[r][1] = start[1];
  FASTDIFF_UNROLL_2
  for (int64_t c = 0; c < channels; ++c) {
    const F first = F::load(q + c * kQueries), second = F::load(q + c * kQueries + kLanes);
    FASTDIFF_UNROLL
    for (int r = 0; r < R; ++r) {
      const F key = F::broadcast(k[r * row + c]);
      sums[r][0] = fma(key, first, sums[r][0]);
      sums[r][1] = fma(key, second, sums[r][1]);
    }
  }
  FASTDIFF_UNROLL
  for (int r = 0; r < R; ++r) {
    sums[r][0].store(scores + r * kQueries);
    sums[r][1].store(scores + r * kQueries + kLanes);
  }
}

// out[r][lane] = decay[lane] * out[r][lane] + sum over j of v[j][r] * weights[j][lane]. The sum of a block begins at 0, so that
// the error grows with the number of keys in a block and that of blocks, not with their product.
template <int R>
FASTDIFF_NOINLINE void value_tile(const float* weights, int64_t keys, const float* v, int64_t row, const F* decay,
                                  float* out) {
  F sums[R][2];
  FASTDIFF_UNROLL
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = F::broadcast(0);
  FASTDIFF_UNROLL_2
  for (int64_t j = 0; j < keys; ++j) {
    const F first = F::load(weights + j * kQueries), second = F::load(weights + j * kQueries + kLanes);
    prefetch(v + (j + 6) * row);
    prefetch(v + (j + 6) * row + R - 1);
    FASTDIFF_UNROLL
    for (int r = 0; r < R; ++r) {
      const F value = F::broadcast(v[j * row + r]);
      sums[r][0] = fma(value, first, sums[r][0]);
      sums[r][1] = fma(value, second, sums[r][1]);
    }
  }
  FASTDIFF_UNROLL
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) {
      float* to = out + r * kQueries + h * kLanes;
      fma(F::load(to), decay[h], sums[r][h]).store(to);
    }
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, const F*, float*);
#if defined(FASTDIFF_ISA_AVX512) || defined(FASTDIFF_ISA_NEON)
#define FASTDIFF_TILES(tile)                                                                                         \
  {nullptr,  tile<1>, tile<2>,  tile<3>,  tile<4>,  tile<5>,  tile<6>, tile<7>, \
   tile<8>, tile<9>, tile<10>, tile<11>, tile<12>, tile<13>, tile<14>}
#else
#define FASTDIFF_TILES(tile) {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>}
#endif
constexpr Tile kScoreTiles[kRows + 1] = FASTDIFF_TILES(score_tile);
constexpr Tile kValueTiles[kRows + 1] = FASTDIFF_TILES(value_tile);

// [0, size) in tiles of nearly equal height, at most kRows.
struct Tiles {
  int64_t size, count;
  explicit Tiles(int64_t size) : size(size), count((size + kRows - 1) / kRows) {}
  int64_t begin(int64_t tile) const { return size * tile / count; }
};

// ---- a block of queries ----------------------------------------------------------------------------------------------

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

// What is added to the scores of keys [first, first + keys) of the queries of a block: bias[key][lane].
template <class T>
void load_bias(const Attention& op, int64_t b, int64_t h, int64_t query, int64_t count, int64_t first, int64_t keys,
               float* bias) {
  const int64_t start = b * op.mask.batch + h * op.mask.head + query * op.mask.row + first * op.mask_column;
  const float nothing = -__builtin_inff();
  if (op.mask_type == Mask::boolean) {
    const uint8_t* mask = static_cast<const uint8_t*>(op.mask.data) + start;
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = 0; i < kQueries; ++i)
        bias[j * kQueries + i] = i < count && !mask[i * op.mask.row + j * op.mask_column] ? nothing : 0.0f;
    return;
  }
  const T* mask = static_cast<const T*>(op.mask.data) + start;
  turn_in(keys, count, bias, [&](int64_t i, int64_t j, int64_t n) {
    const T* p = mask + i * op.mask.row + j * op.mask_column;
    if (op.mask_column) return load_up_to(p, n);
    float lanes[kLanes];
    load_some(p, 1).store(lanes);
    return F::broadcast(lanes[0]);
  });
}

// larger[lane] = the largest of that and of the scores.
FASTDIFF_NOINLINE void add_maxima(const float* scores, int64_t keys, F* larger) {
  F a[2] = {larger[0], larger[1]}, b[2] = {larger[0], larger[1]};
  int64_t j = 0;
  for (; j + 2 <= keys; j += 2)
    for (int h = 0; h < 2; ++h) {
      const float* p = scores + j * kQueries + h * kLanes;
      a[h] = max(a[h], F::load(p));
      b[h] = max(b[h], F::load(p + kQueries));
    }
  for (int h = 0; h < 2; ++h) {
    if (j < keys) a[h] = max(a[h], F::load(scores + j * kQueries + h * kLanes));
    larger[h] = max(a[h], b[h]);
  }
}

// weights = 2^(unit * (scores - reference)), in place, and their sums.
FASTDIFF_NOINLINE void exponentials(float* scores, int64_t keys, const F* reference, float unit, F* total) {
  const F factor = F::broadcast(unit);
  F sums[2] = {F::broadcast(0), F::broadcast(0)};
  const auto one = [&](float* p, F from) {
    const F x = exp2((F::load(p) - from) * factor);
    x.store(p);
    return x;
  };
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4) {
    FASTDIFF_UNROLL
    for (int h = 0; h < 2; ++h) {
      float* p = scores + j * kQueries + h * kLanes;
      const F a = one(p, reference[h]), b = one(p + kQueries, reference[h]);
      const F c = one(p + 2 * kQueries, reference[h]), d = one(p + 3 * kQueries, reference[h]);
      sums[h] = sums[h] + ((a + b) + (c + d));
    }
  }
  for (; j < keys; ++j)
    for (int h = 0; h < 2; ++h) sums[h] = sums[h] + one(scores + j * kQueries + h * kLanes, reference[h]);
  total[0] = sums[0], total[1] = sums[1];
}

// The same with a reference of 0 and a unit of 1.
FASTDIFF_NOINLINE void exponentials(float* scores, int64_t keys, F* total) {
  F sums[2] = {F::broadcast(0), F::broadcast(0)};
  const auto one = [&](float* p) {
    const F x = exp2(F::load(p));
    x.store(p);
    return x;
  };
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4) {
    FASTDIFF_UNROLL
    for (int h = 0; h < 2; ++h) {
      float* p = scores + j * kQueries + h * kLanes;
      const F a = one(p), b = one(p + kQueries), c = one(p + 2 * kQueries), d = one(p + 3 * kQueries);
      sums[h] = sums[h] + ((a + b) + (c + d));
    }
  }
  for (; j < keys; ++j)
    for (int h = 0; h < 2; ++h) sums[h] = sums[h] + one(scores + j * kQueries + h * kLanes);
  total[0] = sums[0], total[1] = sums[1];
}

// Rows of kQueries floats.
struct Workspace {
  float *q, *out, *scores, *bias, *turned;
};

// Without a mask the scores are in units of log 2, and those of all blocks but the first come as differences from the largest of
// the first block, for nothing: the sums begin there. A score that is larger by more than kMargin is seen in the sum of the
// weights; then the block is computed once more, from its own largest. With a mask, where all of a block may be -infinity, the
// largest is looked for in every block.
constexpr float kMargin = 1.1e9f;  // 2^30

template <class T>
void run_block(const Attention& op, int64_t b, int64_t h, int64_t query, const Floats& k, const Floats& v,
               const Workspace& space) {
  const bool masked = op.mask_type != Mask::none;
  const int64_t count = op.queries - query < kQueries ? op.queries - query : kQueries;
  const Tiles tiles(op.keys), columns(op.value_channels);
  const int64_t blocks = (tiles.count + kBlockTiles - 1) / kBlockTiles;
  const float unit = masked ? kLog2E : 1.0f;
  const F scale = F::broadcast(masked ? op.scale : op.scale * kLog2E), zero = F::broadcast(0);
  const T* q = head_of<T>(op.q, b, h) + query * op.q.row;
  turn_in(op.channels, count, space.q,
          [&](int64_t i, int64_t c, int64_t n) { return load_up_to(q + i * op.q.row + c, n) * scale; });
  for (int64_t i = 0; i < op.value_channels * kQueries; i += kLanes) zero.store(space.out + i);
  T* out = const_cast<T*>(head_of<T>(op.out, b, h)) + query * op.out.row;

  F reference[2] = {F::broadcast(kLowest), F::broadcast(kLowest)}, total[2] = {zero, zero};
  const auto first_key = [&](int64_t block) { return tiles.begin(tiles.count * block / blocks); };
  const auto scores = [&](int64_t block, bool from_reference) {
    const F start[2] = {from_reference ? zero - reference[0] : zero, from_reference ? zero - reference[1] : zero};
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    for (int64_t tile = tiles.count * block / blocks; tile < tiles.count * (block + 1) / blocks; ++tile) {
      const int64_t key = tiles.begin(tile);
      kScoreTiles[tiles.begin(tile + 1) - key](space.q, op.channels, k.data + key * k.row, k.row, start,
                                               space.scores + (key - first) * kQueries);
    }
    if (!masked) return;
    load_bias<T>(op, b, h, query, count, first, keys, space.bias);
    for (int64_t i = 0; i < keys * kQueries; i += kLanes)
      (F::load(space.scores + i) + F::load(space.bias + i)).store(space.scores + i);
  };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    F decay[2] = {F::broadcast(1), F::broadcast(1)}, sums[2];
    bool larger = masked || block == 0;
    if (!larger) {
      scores(block, true);
      exponentials(space.scores, keys, sums);
      larger = max(max(sums[0], sums[1])) > kMargin;
    }
    if (larger) {
      F before[2] = {reference[0], reference[1]};
      scores(block, false);
      add_maxima(space.scores, keys, reference);
      exponentials(space.scores, keys, reference, unit, sums);
      for (int i = 0; i < 2; ++i) decay[i] = exp2((before[i] - reference[i]) * F::broadcast(unit));
    }
    for (int i = 0; i < 2; ++i) total[i] = fma(total[i], decay[i], sums[i]);
    for (int64_t tile = 0; tile < columns.count; ++tile) {
      const int64_t column = columns.begin(tile);
      kValueTiles[columns.begin(tile + 1) - column](space.scores, keys, v.data + first * v.row + column, v.row, decay,
                                                    space.out + column * kQueries);
    }
  }

  float sum[kQueries], top[kQueries], inverse[kQueries];
  for (int i = 0; i < 2; ++i) {
    total[i].store(sum + i * kLanes);
    reference[i].store(top + i * kLanes);
  }
  for (int64_t i = 0; i < kQueries; ++i) inverse[i] = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
  const F factor[2] = {F::load(inverse), F::load(inverse + kLanes)};
  turn_out(space.out, op.value_channels, count, factor, space.turned, out, op.out.row);
  const int64_t row = (b * op.heads + h) * op.queries + query;
  if (op.lse)
    for (int64_t i = 0; i < count; ++i)
      op.lse[row + i] = sum[i] == 0 ? __builtin_inff() : top[i] * (masked ? 1.0f : kLn2) + __builtin_logf(sum[i]);
  if (!op.maps) return;
  for (int64_t block = 0; block < blocks; ++block) {  // the scores once more, now that the denominators are known
    const int64_t first = first_key(block), keys = first_key(block + 1) - first;
    F sums[2];
    scores(block, false);
    exponentials(space.scores, keys, reference, unit, sums);
    turn_out(space.scores, keys, count, factor, space.turned, static_cast<T*>(op.maps) + row * op.keys + first, op.keys);
  }
}

// As many heads as have their keys and values in the second cache take turns in a block of queries: what they read and write lies
// together in the (B, S, H, D) layout.
constexpr int64_t kNear = 1 << 18;  // floats

template <class T>
void run(const Attention& op, int64_t begin, int64_t end) {
  const int64_t blocks = (op.queries + kAttentionQueries - 1) / kAttentionQueries;
  const int64_t widest = (op.value_channels > kKeys ? op.value_channels : kKeys) + kLanes;
  const int64_t rows = op.channels + op.value_channels + 2 * kKeys + widest;
  const int64_t k_size = op.keys * op.channels, v_size = op.keys * op.value_channels;
  int64_t heads = op.heads;
  while (heads > 1 && (op.heads % heads != 0 || heads * (k_size + v_size) > kNear)) --heads;
  float* memory = new float[rows * kQueries + kLanes + (kCopies<T> ? heads * (k_size + v_size) : 0)];
  float* aligned = memory + (-(reinterpret_cast<uintptr_t>(memory) / sizeof(float)) & (kLanes - 1));
  Workspace space;
  space.q = aligned;
  space.out = space.q + op.channels * kQueries;
  space.scores = space.out + op.value_channels * kQueries;
  space.bias = space.scores + kKeys * kQueries;
  space.turned = space.bias + kKeys * kQueries;
  float* copies = space.turned + widest * kQueries;
  int64_t loaded = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / (blocks * heads), inside = unit % (blocks * heads);
    const int64_t b = group * heads / op.heads, first = group * heads % op.heads, h = first + inside % heads;
    if (kCopies<T> && group != loaded) {
      for (int64_t i = 0; i < heads; ++i) {
        copy(head_of<T>(op.k, b, first + i), op.k.row, op.keys, op.channels, copies + i * k_size);
        copy(head_of<T>(op.v, b, first + i), op.v.row, op.keys, op.value_channels, copies + heads * k_size + i * v_size);
      }
      loaded = group;
    }
    const Floats k = floats(head_of<T>(op.k, b, h), op.k.row, copies + (h - first) * k_size, op.channels);
    const Floats v = floats(head_of<T>(op.v, b, h), op.v.row, copies + heads * k_size + (h - first) * v_size, op.value_channels);
    const int64_t start = inside / heads * kAttentionQueries, stop = start + kAttentionQueries;
    for (int64_t query = start; query < stop && query < op.queries; query += kQueries)
      run_block<T>(op, b, h, query, k, v, space);
  }
  delete[] memory;
}

}  // namespace

void attention(const Attention& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32: return run<float>(op, begin, end);
    case Type::bfloat16: return run<bfloat16>(op, begin, end);
    case Type::float16: return run<float16>(op, begin, end);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

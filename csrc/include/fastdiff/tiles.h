// Small dense products with two or three vectors of columns, and transposition: what attention is made of.
// For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kLanes = F::size;

template <class T>
inline F load_up_to(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load_some(p, n);
}

// ---- transposition

// to[c * kLanes * C + lane] = row(lane)[c] for c in [0, size), with kLanes * C rows, of which the first `count` exist.
// load_row(lane, c, n) gives n values of a row from c on.
template <int C, class Load>
inline void transpose_in(int64_t size, int64_t count, float* to, const Load& load_row) {
  F rows[kLanes];
  for (int64_t part = 0; part < C * kLanes; part += kLanes)
    for (int64_t c = 0; c < size; c += kLanes) {
      const int64_t n = size - c < kLanes ? size - c : kLanes;
      if (n == kLanes && part + kLanes <= count) {
        for (int64_t i = 0; i < kLanes; ++i) rows[i] = load_row(part + i, c, kLanes);
      } else {
        for (int64_t i = 0; i < kLanes; ++i) rows[i] = part + i < count ? load_row(part + i, c, n) : F::broadcast(0);
      }
      transpose(rows);
      for (int64_t i = 0; i < n; ++i) rows[i].store(to + (c + i) * C * kLanes + part);
    }
}

// row(lane)[c] = factor[lane] * from[c * kLanes * C + lane] for c in [0, size) and the first `count` lanes.
template <int C, class T>
inline void transpose_out(const float* from, int64_t size, int64_t count, const F* factor, T* to, int64_t row) {
  F rows[kLanes];
  for (int64_t part = 0; part < count; part += kLanes)
    for (int64_t c = 0; c < size; c += kLanes) {
      const int64_t n = size - c < kLanes ? size - c : kLanes, left = count - part < kLanes ? count - part : kLanes;
      const float* p = from + c * C * kLanes + part;
      T* start = to + part * row + c;
      for (int64_t i = 0; i < n; ++i) rows[i] = F::load(p + i * C * kLanes) * factor[part / kLanes];
      for (int64_t i = n; i < kLanes; ++i) rows[i] = F::broadcast(0);
      transpose(rows);
      if (n == kLanes && left == kLanes) {
        FASTDIFF_UNROLL_16
        for (int64_t i = 0; i < kLanes; ++i) store(start + i * row, rows[i]);
      } else {
        for (int64_t i = 0; i < left; ++i)
          n == kLanes ? store(start + i * row, rows[i]) : store_some(start + i * row, rows[i], n);
      }
    }
}

// ---- products

// `tiles` tiles, one after the other, of R rows by C vectors of columns, compiled for every R up to kRows<C> and called
// through tables. The accumulators, a vector for each column and one for a broadcast fill the registers.
template <int C>
constexpr int kRows = kRegisters == 32 ? (C == 2 ? 14 : 9) : (C == 2 ? 6 : 4);

// Prefetches rows that will be read or written before long, of sizes in bytes, one line after the other while products
// are computed: all at once they would wait for each other, and the processor for them.
class RowPrefetcher {
public:
  RowPrefetcher() = default;
  RowPrefetcher(const void* data, int64_t row, int64_t rows, int64_t size)
      : line_(rows > 0 ? line_of(data) : nullptr),
        last_(rows > 0 ? static_cast<const char*>(data) + size - 1 : nullptr),
        row_(row),
        size_(size),
        rows_(rows) {}
  FASTDIFF_INLINE void prefetch_next() {
    if (line_ <= last_) {
      prefetch_line(line_);
      line_ += 64;
    } else if (rows_ > 1) {
      --rows_;
      last_ += row_;
      line_ = line_of(last_ - size_ + 1);
    }
  }

private:
  static const char* line_of(const void* p) {
    return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) & ~uintptr_t{63});
  }
  const char *line_ = nullptr, *last_ = nullptr;
  int64_t row_ = 0, size_ = 0, rows_ = 0;
};

// out[r][column] = start[column] + sum over i of a[r][i] * b[i][column], where a has rows of `row` numbers.
template <int R, int C>
FASTDIFF_NOINLINE void product_of_rows(int64_t tiles, const float* a, int64_t row, const float* b, int64_t size,
                                       const F* start, float* out, RowPrefetcher* ahead) {
  RowPrefetcher lines = *ahead;
  for (; tiles > 0; --tiles, a += R * row, out += R * C * kLanes) {
    F sums[R][C];
    FASTDIFF_UNROLL_16
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] = start[c];
    FASTDIFF_UNROLL_2
    for (int64_t i = 0; i < size; ++i) {
      lines.prefetch_next();
      F columns[C];
      FASTDIFF_UNROLL_16
      for (int c = 0; c < C; ++c) columns[c] = F::load(b + (i * C + c) * kLanes);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < R; ++r) {
        const F x = F::broadcast(a[r * row + i]);
        FASTDIFF_UNROLL_16
        for (int c = 0; c < C; ++c) sums[r][c] = fma(x, columns[c], sums[r][c]);
      }
    }
    FASTDIFF_UNROLL_16
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c].store(out + (r * C + c) * kLanes);
  }
  *ahead = lines;
}

// out[r][column] = factor[column] * out[r][column] + sum over i of a[i][r] * b[i][column]; the sum alone where factor
// is null. The sum begins at 0, so that the error of many calls grows with their number and with the length of one, not
// with the product of both.
template <int R, int C>
FASTDIFF_NOINLINE void product_of_columns(int64_t tiles, const float* a, int64_t row, const float* b, int64_t size,
                                          const F* factor, float* out, RowPrefetcher* ahead) {
  RowPrefetcher lines = *ahead;
  for (; tiles > 0; --tiles, a += R, out += R * C * kLanes) {
    F sums[R][C];
    FASTDIFF_UNROLL_16
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] = F::broadcast(0);
    FASTDIFF_UNROLL_2
    for (int64_t i = 0; i < size; ++i) {
      prefetch_line(a + (i + 6) * row);
      prefetch_line(a + (i + 6) * row + R - 1);
      lines.prefetch_next();
      F columns[C];
      FASTDIFF_UNROLL_16
      for (int c = 0; c < C; ++c) columns[c] = F::load(b + (i * C + c) * kLanes);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < R; ++r) {
        const F x = F::broadcast(a[i * row + r]);
        FASTDIFF_UNROLL_16
        for (int c = 0; c < C; ++c) sums[r][c] = fma(x, columns[c], sums[r][c]);
      }
    }
    FASTDIFF_UNROLL_16
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        float* to = out + (r * C + c) * kLanes;
        (factor ? fma(F::load(to), factor[c], sums[r][c]) : sums[r][c]).store(to);
      }
  }
  *ahead = lines;
}

using Product = void (*)(int64_t tiles, const float* a, int64_t row, const float* b, int64_t size, const F* columns,
                         float* out, RowPrefetcher* ahead);
template <int C>
struct Products {
  Product of_rows[kRows<C> + 1] = {}, of_columns[kRows<C> + 1] = {};  // by the number of rows of the result
  constexpr Products() { fill<kRows<C>>(); }
  template <int R>
  constexpr void fill() {
    of_rows[R] = product_of_rows<R, C>;
    of_columns[R] = product_of_columns<R, C>;
    if constexpr (R > 1) fill<R - 1>();
  }
};
template <int C>
constexpr Products<C> kProducts{};

// [0, size) in tiles of nearly equal height, at most kRows<C>: the first ones of `height` rows, the others of one less.
template <int C>
struct Tiles {
  int64_t count, height, high;
  explicit Tiles(int64_t size) : count((size + kRows<C> - 1) / kRows<C>), height(0), high(0) {
    if (count) height = (size + count - 1) / count, high = size - count * (height - 1);
  }
  int64_t begin(int64_t tile) const { return tile * (height - 1) + (tile < high ? tile : high); }
  // Calls body(row, height, tiles) for the tiles [first, last), those of one height together.
  template <class Body>
  void runs(int64_t first, int64_t last, const Body& body) const {
    const int64_t change = high < first ? first : high < last ? high : last;
    if (first < change) body(begin(first), height, change - first);
    if (change < last) body(begin(change), height - 1, last - change);
  }
};

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

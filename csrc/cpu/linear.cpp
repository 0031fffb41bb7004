// A linear layer with what follows it, on AMX, to float32's precision (see amx.h). Of both factors the smaller one is
// packed once for all threads; of the other each thread packs what is its own, a panel at a time, and goes through the
// whole of the first with it.
#include "fastdiff/amx.h"
#include "fastdiff/arena.h"
#include "fastdiff/kernels.h"
#include "fastdiff/linear_ends.h"
#include "fastdiff/linear_epilogue.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kSide = 16;
constexpr int64_t kStepBytes = 3 * kTileBytes;  // of a tile of 16 rows and 32 numbers in its three terms
// A panel is of so many blocks of 32 rows or columns and steps of 32 numbers, or of more blocks and fewer steps: 576
// KiB, in L2 beside what passes by. The sums of more steps than these are added to those of the ones
// before.
constexpr int64_t kPanelBlocks = 4, kPanelSteps = 24, kMostBlocks = 12;

// Tiles of a block of 32 columns of out, i.e. of W^T, from step `first` on; `tile` bytes each. Columns that are not
// there are 0.
void pack_columns(const Linear& op, int64_t block, int64_t half, int64_t first, int64_t steps, int64_t tile,
                  uint8_t* to) {
  for (int64_t side = 0; side < kBlock; side += kSide) {
    const int64_t column = block * kBlock + side;
    int64_t row = row_of_weight(op, column, half);
    const LinearWeight& weight = weight_of(op, &row);
    const int64_t columns = at_most(op.outputs - column, weight.outputs - row);
    const float* from = weight.data + row * weight.row + first * kDepth;
    uint8_t* out = to + side / kSide * tile;
    for (int64_t step = 0; step < steps; ++step, out += kStepBytes)
      for (int64_t part = 0; part < 2; ++part) {
        const int64_t k = step * kDepth + part * kSide, n = at_most(op.inputs - first * kDepth - k, kSide);
        F rows[kSide];
        for (int64_t i = 0; i < kSide; ++i) {
          const bool there = i < columns && n > 0;
          rows[i] = there ? load_up_to(from + i * weight.row + k, n) : F::broadcast(0);
          if (there) prefetch_line(from + i * weight.row + k + 2 * kSide);
        }
        transpose(rows);
        for (int64_t i = 0; i < kSide; i += 2) {
          const Terms even = split<3>(rows[i].v), odd = split<3>(rows[i + 1].v);
          for (int p = 0; p < 3; ++p)
            _mm512_store_si512(out + p * kTileBytes + (part * kSide + i) * 32, pair_lanes(even.term[p], odd.term[p]));
        }
      }
  }
}

// Tiles of a block of 32 rows of x, from step `first` on. Rows that are not there are 0.
void pack_rows(const Linear& op, int64_t block, int64_t first, int64_t steps, int64_t tile, uint8_t* to) {
  for (int64_t r = 0; r < kBlock; ++r) {
    const int64_t row = block * kBlock + r;
    uint8_t* out = to + r / kSide * tile + r % kSide * 64;
    const float* x = row < op.batch * op.rows ? row_of(op.x, op, row) + first * kDepth : nullptr;
    for (int64_t k = 0; k < steps * kDepth; k += kSide) {
      const int64_t n = at_most(op.inputs - first * kDepth - k, kSide);
      const Terms terms = split<3>((x && n > 0 ? load_up_to(x + k, n) : F::broadcast(0)).v);
      for (int p = 0; p < 3; ++p)
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + k / kDepth * kStepBytes + p * kTileBytes + k % kDepth * 2),
                           narrow(terms.term[p]));
    }
  }
}

// As put_block. Whether any of the sums is doubtful.
bool put(const Linear& op, const float* sums, int64_t row_block, int64_t column_block) {
  Doubt doubt[2];  // for two chains of operations
  put_block(op, sums, row_block, column_block, [&](F sum, int64_t c, int64_t n) { doubt[c / kLanes].see(sum, n); });
  return doubt[0].any() || doubt[1].any();
}

// The doubtful sums of a block once more.
void mend(const Linear& op, float* sums, int64_t row_block, int64_t column_block) {
  const int64_t first = row_block * kBlock, column = column_block * kBlock;
  const int64_t rows = at_most(kBlock, op.batch * op.rows - first), columns = at_most(kBlock, op.outputs - column);
  for (int64_t half = 0; half < (op.glu ? 2 : 1); ++half)
    mend_sums(
        sums + half * kSums, rows, columns, op.inputs, [&](int64_t r) { return row_of(op.x, op, first + r); },
        [&](int64_t c) {
          int64_t row = row_of_weight(op, column + c, half);
          const LinearWeight& weight = weight_of(op, &row);
          return weight.data + row * weight.row;
        });
}

// Prefetches what is written after the next products, and what is added to it then.
void prefetch_next(const Linear& op, int64_t row_block, int64_t column_block) {
  const int64_t rows = at_most(kBlock, op.batch * op.rows - row_block * kBlock), column = column_block * kBlock;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = row_block * kBlock + r;
    const float* out = op.out + row * op.outputs + column;
    for (int64_t c = 0; c < kBlock; c += kLanes) asm volatile("prefetchw %0" ::"m"(out[c]));
    if (!op.residual.data) continue;
    const float* residual = row_of(op.residual, op, row) + column;
    for (int64_t c = 0; c < kBlock; c += kLanes) prefetch_line(residual + c);
  }
}

// sums += total.
void add(const float* total, float* sums, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) (F::load(total + i) + F::load(sums + i)).store(sums + i);
}

}  // namespace

void linear_pack(const Linear& op, int64_t begin, int64_t end) {
  const int64_t steps = linear_blocks(op.inputs), tile = steps * kStepBytes, halves = op.glu ? 2 : 1;
  uint8_t* packed = static_cast<uint8_t*>(op.packed);
  for (int64_t block = begin; block < end; ++block) {
    if (op.rows_shared) {
      pack_rows(op, block, 0, steps, tile, packed + 2 * block * tile);
      continue;
    }
    for (int64_t half = 0; half < halves; ++half)
      pack_columns(op, block, half, 0, steps, tile, packed + 2 * (block * halves + half) * tile);
  }
}

void linear_multiply(const Linear& op, int64_t begin, int64_t end) {
  const TileRegisters registers;
  const bool shared = op.rows_shared;
  const int64_t halves = op.glu ? 2 : 1, panel_halves = shared ? halves : 1;
  const int64_t steps = linear_blocks(op.inputs), chunks = steps ? divide_up(steps, kPanelSteps) : 1;
  const int64_t others =
      shared ? linear_row_blocks(op) : linear_column_blocks(op);  // units of the factor that is packed
  const int64_t most_steps = divide_up(steps, chunks);
  const int64_t blocks = most_steps ? at_most(kMostBlocks, kPanelBlocks * kPanelSteps / most_steps) : kPanelBlocks;
  const int64_t panels = divide_up(end - begin, blocks / panel_halves), packed_tile = steps * kStepBytes;
  const int64_t unit_sums = halves * kSums, total_sums = blocks / panel_halves * unit_sums;
  Arena arena;
  uint8_t* panel = arena.take<uint8_t>(most_steps * kStepBytes * 2 * blocks);
  float* sums = arena.take<float>(unit_sums);                                     // of one unit
  float* totals = chunks > 1 ? arena.take<float>(others * total_sums) : nullptr;  // of all of a panel with all others
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = begin + (end - begin) * p / panels,
                    units = begin + (end - begin) * (p + 1) / panels - first;
      const int64_t step = steps * chunk / chunks, count = steps * (chunk + 1) / chunks - step,
                    tile = count * kStepBytes;
      for (int64_t unit = 0; unit < units; ++unit)
        for (int64_t half = 0; half < panel_halves; ++half) {
          uint8_t* to = panel + 2 * (unit * panel_halves + half) * tile;
          shared ? pack_columns(op, first + unit, half, step, count, tile, to)
                 : pack_rows(op, first + unit, step, count, tile, to);
        }
      for (int64_t other = 0; other < others; ++other)
        for (int64_t unit = 0; unit < units; ++unit) {
          const int64_t row = shared ? other : first + unit, column = shared ? first + unit : other;
          const bool last = chunk + 1 == chunks;
          if (last) prefetch_next(op, row, column);
          for (int64_t half = 0; half < halves; ++half) {
            const uint8_t* mine = panel + 2 * (unit * panel_halves + (shared ? half : 0)) * tile;
            const uint8_t* theirs = static_cast<const uint8_t*>(op.packed) +
                                    2 * (shared ? other : other * halves + half) * packed_tile + step * kStepBytes;
            shared ? multiply(theirs, packed_tile, mine, tile, count, sums + half * kSums, [] {})
                   : multiply(mine, tile, theirs, packed_tile, count, sums + half * kSums, [] {});
          }
          float* total = totals ? totals + other * total_sums + unit * unit_sums : nullptr;
          if (chunk > 0) add(total, sums, unit_sums);
          if (!last) {
            __builtin_memcpy(total, sums, static_cast<size_t>(unit_sums) * sizeof(float));
          } else if (put(op, sums, row, column)) {
            mend(op, sums, row, column);
            put(op, sums, row, column);
          }
        }
    }
}

}  // namespace fastdiff::amx

// A linear layer with what follows it, on AMX, to float32's precision (see amx.h). Rows of x are the left factor, packed once for all
// threads; of the weight, which is read as it is, each thread packs the columns that are its own, a panel at a time.
#include "fastdiff/amx.h"
#include "fastdiff/kernels.h"
#include "fastdiff/scratch.h"
#include "fastdiff/simd.h"
#include "fastdiff/tiles.h"

namespace fastdiff::amx {
namespace {

constexpr int64_t kBlock = kLinearBlock, kSide = 16;
constexpr int64_t kStepBytes = 3 * kTileBytes;  // of a tile of 16 rows and 32 numbers in its three parts
// A panel is of so many blocks of columns and steps of 32 numbers: 576 KiB, in the second cache beside the rows that pass by. The sums
// of more steps than these are added to those of the ones before.
constexpr int64_t kPanelBlocks = 4, kPanelSteps = 24;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

const float* row_of(const Rows& rows, const Linear& op, int64_t row) {
  return static_cast<const float*>(rows.data) + row / op.rows * rows.batch + row % op.rows * rows.row;
}

// Tiles of 16 columns of W^T by `steps` of 32 numbers, from a row of the weight on; columns from `columns` on are 0.
void pack_weight(const float* weight, int64_t row, int64_t columns, int64_t numbers, int64_t steps, uint8_t* to) {
  for (int64_t step = 0; step < steps; ++step, to += kStepBytes)
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t k = step * kDepth + half * kSide, n = numbers - k < kSide ? numbers - k : kSide;
      F rows[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        const bool there = i < columns && n > 0;
        rows[i] = there ? load_up_to(weight + i * row + k, n) : F::broadcast(0);
        if (there) prefetch_line(weight + i * row + k + 2 * kSide);
      }
      transpose(rows);
      for (int64_t i = 0; i < kSide; i += 2) {
        const Parts even = split<3>(rows[i].v), odd = split<3>(rows[i + 1].v);
        for (int p = 0; p < 3; ++p)
          _mm512_store_si512(to + p * kTileBytes + (half * kSide + i) * 32, pair_lanes(even.part[p], odd.part[p]));
      }
    }
}

// act(x): x / (1 + e^-x), or GELU in its form with tanh, 0.5 x (1 + tanh z) = x / (1 + e^(-2 z)).
F activate(F x, Activation activation) {
  if (activation == Activation::none) return x;
  if (activation == Activation::silu) return silu(x);
  const F z = x * fma(x * x, F::broadcast(0.0356774081f), F::broadcast(0.7978845608f));
  return x / (F::broadcast(1) + exp2(z * F::broadcast(-2.88539008f)));
}

// Rows [row, row + 32) and columns [column, column + 32) of out, as far as there are such: the sums are added to those that are in out,
// but for the first ones; after the last ones comes what follows the product.
void put(const Linear& op, const float* sums, int64_t row, int64_t column, bool first, bool last) {
  const int64_t end = op.batch * op.rows;
  for (int64_t r = 0; r < kBlock && row + r < end; ++r)
    for (int64_t c = 0; c < kBlock && column + c < op.outputs; c += kLanes) {
      const int64_t at = column + c, n = op.outputs - at < kLanes ? op.outputs - at : kLanes;
      float* out = op.out + (row + r) * op.outputs + at;
      F y = F::load(sums + r * kBlock + c);
      if (!first) y = y + load_up_to(out, n);
      if (last) {
        if (op.bias) y = y + load_up_to(op.bias + at, n);
        y = activate(y, op.activation);
        if (op.gate.data) y = y * load_up_to(row_of(op.gate, op, row + r) + at, n);
        if (op.residual.data) y = y + load_up_to(row_of(op.residual, op, row + r) + at, n);
      }
      n == kLanes ? y.store(out) : store_some(out, y, n);
    }
}

}  // namespace

void linear_pack(const Linear& op, int64_t begin, int64_t end) {
  const int64_t steps = ceil_divide(op.inputs, kDepth), rows = op.batch * op.rows;
  for (int64_t row = begin * kBlock; row < end * kBlock; ++row) {
    uint8_t* to = static_cast<uint8_t*>(op.packed) + row / kSide * steps * kStepBytes + row % kSide * 64;
    const float* x = row < rows ? row_of(op.x, op, row) : nullptr;
    for (int64_t k = 0; k < steps * kDepth; k += kSide) {
      const int64_t n = op.inputs - k < kSide ? op.inputs - k : kSide;
      const Parts parts = split<3>((x && n > 0 ? load_up_to(x + k, n) : F::broadcast(0)).v);
      for (int p = 0; p < 3; ++p)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + k / kDepth * kStepBytes + p * kTileBytes + k % kDepth * 2),
                           narrow(parts.part[p]));
    }
  }
}

void linear_multiply(const Linear& op, int64_t begin, int64_t end) {
  const TileRegisters registers;
  const int64_t steps = ceil_divide(op.inputs, kDepth), chunks = steps ? ceil_divide(steps, kPanelSteps) : 1;
  const int64_t row_blocks = ceil_divide(op.batch * op.rows, kBlock), stride = steps * kStepBytes;
  const int64_t most = ceil_divide(steps, chunks) * kStepBytes * 2 * kPanelBlocks;
  uint8_t* panel = static_cast<uint8_t*>(scratch(most + kBlock * kBlock * 4));
  float* sums = reinterpret_cast<float*>(panel + most);
  const int64_t panels = ceil_divide(end - begin, kPanelBlocks);
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = begin + (end - begin) * p / panels, last = begin + (end - begin) * (p + 1) / panels;
      const int64_t step = steps * chunk / chunks, count = steps * (chunk + 1) / chunks - step, tile = count * kStepBytes;
      for (int64_t i = 0; i < 2 * (last - first); ++i) {
        const int64_t column = first * kBlock + i * kSide;
        pack_weight(op.weight + column * op.weight_row + step * kDepth, op.weight_row, op.outputs - column,
                    op.inputs - step * kDepth, count, panel + i * tile);
      }
      for (int64_t r = 0; r < row_blocks; ++r)
        for (int64_t block = first; block < last; ++block) {
          const uint8_t* left = static_cast<const uint8_t*>(op.packed) + 2 * r * stride + step * kStepBytes;
          multiply(left, stride, panel + 2 * (block - first) * tile, tile, count, sums, [] {});
          put(op, sums, r * kBlock, block * kBlock, chunk == 0, chunk + 1 == chunks);
        }
    }
}

}  // namespace fastdiff::amx

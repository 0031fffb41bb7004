// A linear layer in lower precision, from what a type says of itself. For the files that are compiled once an
// instruction set (see simd.h).
//
// A type, of bfloat16 or of 8-bit integers, has
//   kInt8                              which one it is
//   row_bytes(inputs)                  of a row of x as `round_row` writes it
//   round_block(op, block, half, to)   32 rows of W; rows that are not there are 0
//   round_row(op, x, to)               a row of x
//   products<rows>(x, row, w, inputs, sums)   sums[r * 32 + c] of so many rows of x, `row` bytes apart, and a block
#pragma once

#include "fastdiff/linear_epilogue.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kVectors = kBlock / kLanes;  // of the columns of a block
// Rows whose sums with a block are kept in registers: half of these.
constexpr int kRowsAtOnce = kRegisters / static_cast<int>(kVectors) / 2;
constexpr int64_t kRowBlocksTogether = 8;  // which pass a block of W one after the other, and stay in L2

template <class Type>
void round_blocks(const LowLinear& op, int64_t begin, int64_t end) {
  const int64_t halves = op.layer.glu ? 2 : 1, bytes = low_block_bytes(op.layer.inputs, Type::kInt8);
  for (int64_t block = begin; block < end; ++block)
    Type::round_block(op, block / halves, block % halves, op.weight + block * bytes);
}

template <class Type>
void round_rows(const LowLinear& op, int64_t begin, int64_t end) {
  const int64_t bytes = Type::row_bytes(op.layer.inputs);
  for (int64_t row = begin; row < end; ++row)
    Type::round_row(op, row_of(op.layer.x, op.layer, row), op.rows + row * bytes);
}

// The sums of `rows` rows with one block, as many at once as there are registers for.
template <class Type, int at_once = kRowsAtOnce>
void multiply_rows(const uint8_t* x, int64_t row, const uint8_t* w, int64_t inputs, int64_t rows, float* sums) {
  for (; rows >= at_once; rows -= at_once, x += at_once * row, sums += at_once * kBlock)
    Type::template products<at_once>(x, row, w, inputs, sums);
  if constexpr (at_once > 1)
    if (rows > 0) multiply_rows<Type, at_once / 2>(x, row, w, inputs, rows, sums);
}

template <class Type>
void multiply_blocks(const LowLinear& op, int64_t begin, int64_t end) {
  const Linear& layer = op.layer;
  const int64_t halves = layer.glu ? 2 : 1, bytes = low_block_bytes(layer.inputs, Type::kInt8);
  const int64_t row_bytes = Type::row_bytes(layer.inputs);
  const int64_t row_blocks = linear_row_blocks(layer), column_blocks = linear_column_blocks(layer);
  alignas(64) float sums[2 * kSums];
  for (int64_t unit = begin; unit < end; ++unit) {
    // Some blocks of rows with the first block of columns, with the second, ...; then the next blocks of rows.
    const int64_t first = unit / (kRowBlocksTogether * column_blocks) * kRowBlocksTogether;
    const int64_t together = at_most(kRowBlocksTogether, row_blocks - first), place = unit - first * column_blocks;
    const int64_t row_block = first + place % together, column_block = place / together;
    const int64_t rows = at_most(kBlock, layer.batch * layer.rows - row_block * kBlock);
    for (int64_t half = 0; half < halves; ++half)
      multiply_rows<Type>(op.rows + row_block * kBlock * row_bytes, row_bytes,
                          op.weight + (column_block * halves + half) * bytes, layer.inputs, rows, sums + half * kSums);
    put_block(layer, sums, row_block, column_block, [](F, int64_t, int64_t) {});
  }
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

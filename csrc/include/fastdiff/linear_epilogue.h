// What follows the products of a linear layer, a block of 32 by 32 sums at a time, and where the layer's numbers are.
// For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/kernels.h"
#include "fastdiff/tiles.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int64_t kBlock = kLinearBlock, kSums = kBlock * kBlock;

const float* row_of(const Rows& rows, const Linear& op, int64_t row) {
  return static_cast<const float*>(rows.data) + row / op.rows * rows.batch + row % op.rows * rows.row;
}

// The weight that has this row of W, which becomes its own row of it.
const LinearWeight& weight_of(const Linear& op, int64_t* row) {
  const LinearWeight* weight = op.weights;
  while (*row >= weight->outputs && weight < op.weights + op.count - 1) *row -= weight++->outputs;
  return *weight;
}
// The row of W of a column of out; half: 0, or 1 for what a GLU is gated with.
int64_t row_of_weight(const Linear& op, int64_t column, int64_t half) { return half * op.outputs + column; }

// GELU, x P(X < x) of a normal X. With w = |x| this is max(x, 0) - w P(X > w), and P(X > w) e^(w^2 / 2) is a polynomial
// of t = 1 / (1 + 0.26 w), times t, to 3.9e-8 of itself where w < 16; beyond, it is nothing.
F gelu(F x) {
  const F w = min(max(x, F::broadcast(0) - x), F::broadcast(16)),
          t = F::broadcast(1) / fma(w, F::broadcast(0.26f), F::broadcast(1));
  F p = F::broadcast(0.0294357371528814f);
  p = fma(p, t, F::broadcast(-0.14766510234259086f));
  p = fma(p, t, F::broadcast(0.24089387005320784f));
  p = fma(p, t, F::broadcast(-0.13890801277317918f));
  p = fma(p, t, F::broadcast(0.15268433977840218f));
  p = fma(p, t, F::broadcast(0.05452660264979418f));
  p = fma(p, t, F::broadcast(0.10213966724563657f));
  p = fma(p, t, F::broadcast(0.10314110221738249f));
  p = fma(p, t, F::broadcast(0.10375177660534625f));
  const F tail = p * t * exp2(w * w * F::broadcast(-0.72134752f));
  return max(F::broadcast(0), x) - w * tail;  // of a NaN max gives the second
}

// act(x): x / (1 + e^-x), GELU, or GELU in its form with tanh, 0.5 x (1 + tanh z) = x / (1 + e^(-2 z)).
F activate(F x, Activation activation) {
  if (activation == Activation::none) return x;
  if (activation == Activation::silu) return silu(x);
  if (activation == Activation::gelu) return gelu(x);
  const F z = x * fma(x * x, F::broadcast(0.0356774081f), F::broadcast(0.7978845608f));
  return x / (F::broadcast(1) + exp2(z * F::broadcast(-2.88539008f)));
}

F biased(const Linear& op, F y, int64_t column, int64_t half, int64_t n) {
  int64_t row = row_of_weight(op, column, half);
  const float* bias = weight_of(op, &row).bias;
  return bias ? y + load_up_to(bias + row, n) : y;
}

// A block of out from its sums, of which a GLU has a second block behind the first. see(sums, c, n): called with the
// first n of the sums from column c of the block on.
template <class See>
void put_block(const Linear& op, const float* sums, int64_t row_block, int64_t column_block, const See& see) {
  const int64_t rows = at_most(kBlock, op.batch * op.rows - row_block * kBlock);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = row_block * kBlock + r;
    for (int64_t c = 0; c < kBlock && column_block * kBlock + c < op.outputs; c += kLanes) {
      const int64_t column = column_block * kBlock + c, n = at_most(op.outputs - column, kLanes);
      const F sum = F::load(sums + r * kBlock + c);
      see(sum, c, n);
      F y = biased(op, sum, column, 0, n);
      if (op.glu) {
        const F gating = F::load(sums + kSums + r * kBlock + c);
        see(gating, c, n);
        y = y * activate(biased(op, gating, column, 1, n), op.activation);
      } else {
        y = activate(y, op.activation);
      }
      if (op.gate.data) y = y * load_up_to(row_of(op.gate, op, row) + column, n);
      if (op.residual.data) y = y + load_up_to(row_of(op.residual, op, row) + column, n);
      float* out = op.out + row * op.outputs + column;
      n == kLanes ? y.store(out) : store_some(out, y, n);
    }
  }
}

}  // namespace
}  // namespace fastdiff::FASTDIFF_ISA

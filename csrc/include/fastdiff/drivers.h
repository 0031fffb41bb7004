// The ops as functions: each divides its work into units, takes the memory that it needs meanwhile, and runs kernels in
// order, on at most `threads` threads. Raw pointers and sizes only: no framework, and no lock of Python's.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fastdiff/kernels.h"

namespace fastdiff {

// What the driver sets itself need not be set: stream, partial, sums, parts, rows_shared, packed, rows of LowLinear,
// plan, scratch.
void ada_layer_norm(AdaLayerNorm op, int threads);
void residual_ada_layer_norm(ResidualAdaLayerNorm op, int threads);
void ada_layer_norm_backward(AdaLayerNormBackward op, int threads);
void group_norm_silu(GroupNorm op, int threads);
void group_norm_silu_backward(GroupNormBackward op, int threads);
void attention(Attention op, int threads);
void linear(Linear op, int threads);  // throws std::invalid_argument where there is no kernel for it
// In lower precision: packing a weight, of which the layer has the data, and its sizes alone; the layer.
void low_linear_weight(LowLinear op, int threads);
void low_linear(LowLinear op, int threads);
void conv2d(Conv2d op, int threads);  // the same, for Way::in_stages
// How conv2d divides its work, by name, and the floats that it works in.
std::pair<std::map<std::string, int64_t>, int64_t> conv2d_plan(int64_t tiles, int64_t channels, int64_t out_channels,
                                                               Way way, int64_t threads);
void conv2d_weights(Conv2dWeights weights, int threads);

// One combine outside of a plan (see plan.h): rows of `coefficients` are outputs, columns inputs. Whether all is
// finite.
template <class T>
bool linear_combine(const std::vector<T*>& inputs, const std::vector<T*>& outputs,
                    const std::vector<double>& coefficients, int64_t size, int threads);

}  // namespace fastdiff

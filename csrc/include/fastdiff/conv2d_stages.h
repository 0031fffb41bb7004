// A 3x3 convolution by Winograd's algorithm in stages, each of them done by all threads before the next begins: for
// AMX, whose products are so fast that what is read for them counts. Raw pointers and sizes.
#pragma once

#include "fastdiff/conv2d.h"

namespace fastdiff {

// What a stage works on: `tiles` tiles of the image from `tile` on, and `columns` output channels from `column` on, a
// multiple of kStagePanel. U, the transformed weights: [point][columns / 16][channels][16]. V, the transformed input:
// [point][tiles / 32][32][channels]. M, the products: [point][tiles / 32][columns / 32][32][32]. m is v where V is not
// needed again: each block of 32 tiles then has room for the larger of the two, and M is written where V was read.
struct ConvStage {
  const Conv2d* op;
  int64_t tile, tiles, column, columns;
  float *u, *v, *m;
  int64_t v_block, m_block;         // floats between blocks of 32 tiles
  int64_t v_stride, m_stride;       // and between points
  int64_t row_parts, column_parts;  // of the products of a point
};

constexpr int64_t kStagePanel = 32;  // rows and columns that are multiplied at once
constexpr int64_t kStageDepth = 32;  // channels of a step

// Floats between the matrices of two points of U, with room against addresses that differ by a multiple of 4096 bytes.
static inline int64_t stage_u_stride(int64_t channels, int64_t columns) {
  return round_up(columns, kStagePanel) * round_up(channels, kStageDepth) + 32;
}

// How a convolution is divided into stages.
struct StagePlan {
  int64_t tiles, columns;           // most of a stage
  int64_t row_parts, column_parts;  // of the products of a point
  bool in_place;                    // M where V was
};
StagePlan plan_stages(int64_t tiles, int64_t channels, int64_t out_channels, int64_t threads);
// Floats of scratch that the plan needs, and the stages with what they share in it; of a null one the strides alone.
int64_t stages_scratch(const StagePlan& plan, int64_t channels);
ConvStage stage_of(const StagePlan& plan, int64_t channels, float* scratch);

// The stages, each [begin, end) of so many units.
using ConvStageKernel = void (*)(const ConvStage& stage, int64_t begin, int64_t end);
static inline int64_t stage_weights_units(const ConvStage& s) {
  return round_up(s.columns, kStagePanel) / 16 * (round_up(s.op->channels, kStageDepth) / kStageDepth);
}
static inline int64_t stage_input_units(const ConvStage& s) { return s.tiles; }
static inline int64_t stage_products_units(const ConvStage& s) { return kPoints * s.row_parts * s.column_parts; }
static inline int64_t stage_output_units(const ConvStage& s) {
  return round_up(s.tiles, kStagePanel) / kStagePanel * (round_up(s.columns, kStagePanel) / kStagePanel);
}

}  // namespace fastdiff

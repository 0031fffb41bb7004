// The kernels of one instruction set, and the choice between them. Raw pointers and sizes only: no framework.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "fastdiff/conv2d.h"
#include "fastdiff/conv2d_stages.h"
#include "fastdiff/conv2d_wide.h"

namespace fastdiff {

// Sizes that the kernels are compiled for.
constexpr int kMaxOutputs = 8;
constexpr int kMaxInputs = 16;

// outputs[m][i] = sum over k of coefficients[k * num_outputs + m] * inputs[k][i] for i in [0, size).
// Each i is read from every input before it is written to any output, so that an output may be one of the inputs.
// copies[m], where not null, receives the same values as outputs[m]. Returns whether every result is finite.
template <class T>
using LinearCombine = bool (*)(const T* const* inputs, int num_inputs, T* const* outputs, T* const* copies,
                               int num_outputs, const T* coefficients, int64_t size);

// Standard normal values out[0 .. count) of one draw for one sample: elements first, first + 1, ... of the sample.
// `first` must be a multiple of kNormalGroup, and `out` have room for `count` rounded up to one. See philox.h.
constexpr int64_t kNormalGroup = 64;
using Normal = void (*)(float* out, int64_t first, int64_t count, uint64_t seed, uint64_t sample, uint32_t draw);

// What a tensor's numbers are in memory.
enum class Type { float32, bfloat16, float16 };

// Rows of C contiguous numbers: row s of batch b is at data + b * batch + s * row, strides in numbers. Null for none.
struct Rows {
  const void* data;
  int64_t batch, row;
};

// out = (1 + scale) * LN(x) + shift, LN(x) = (x - mean) / sqrt(variance + eps) * weight + bias. All but weight and bias
// have S rows of C numbers in each batch; out is contiguous; all but x may be null. Rows [begin, end) of all batches
// are computed, in float32 whatever the type.
struct AdaLayerNorm {
  Type type;
  Rows x, scale, shift;
  const void *weight, *bias;
  void* out;
  int64_t batch, rows, channels;  // rows of a batch
  float eps;
  bool* huge = nullptr;  // set where squares leave float32's range, and the result is not to be used
  bool stream = false;   // non-temporal stores
};
using AdaLayerNormKernel = void (*)(const AdaLayerNorm& op, int64_t begin, int64_t end);

// h = residual + gate * y, contiguous, and the above of h as it is stored, whose x is not used. gate may be null.
struct ResidualAdaLayerNorm {
  AdaLayerNorm norm;
  Rows y, residual, gate;
  void* h;
};
using ResidualAdaLayerNormKernel = void (*)(const ResidualAdaLayerNorm& op, int64_t begin, int64_t end);

// Gradients of ada_layer_norm for scale and shift that are the same for all rows of a batch (stride of a row 0),
// contiguous; null for those that are not there or not wanted. First dx and two sums over the rows of every part of
// kNormRows rows, units are batch * parts + part; then the other gradients from these, units are blocks of
// kNormChannels channels. Or those of residual_ada_layer_norm: forward.x is h, and x is that of the residual.
struct AdaLayerNormBackward {
  AdaLayerNorm forward;  // out and stream are not used
  Rows gradient;         // of out
  void *x, *scale, *shift, *weight, *bias;
  bool branch = false;  // of residual_ada_layer_norm; then also:
  void *of_y = nullptr, *of_gate = nullptr;
  Rows y = {}, gate = {}, added = {};  // added: the gradient that h has from elsewhere. Null or not, y with of_gate not
  float* sums = nullptr;               // room for ada_layer_norm_sums numbers for every unit of the first phase
};
static inline int64_t ada_layer_norm_sums(const AdaLayerNormBackward& op) {
  return (op.of_gate ? 3 : 2) * op.forward.channels;
}
constexpr int64_t kNormRows = 64, kNormChannels = 64;
using AdaLayerNormBackwardKernel = void (*)(const AdaLayerNormBackward& op, int64_t begin, int64_t end);

// out = act((x - mean) / sqrt(variance + eps) * weight + bias), mean and variance over the channels and pixels of a
// group; with scale and shift of each sample and channel the argument of act is multiplied by 1 + scale and shift is
// added. Arithmetic is float32 whatever the type. x and out: samples of `channels` x `pixels` numbers, or, channels
// last, `pixels` x `channels`.
struct GroupNorm {
  Type type;
  const void *x, *weight, *bias;  // weight and bias may be null
  Rows scale, shift;              // row 0 of each batch, or null
  void* out;
  int64_t samples, channels, pixels, groups;
  bool channels_last, silu;
  float eps;
  bool* huge = nullptr;      // as of AdaLayerNorm
  bool stream = false;       // non-temporal stores
  float* partial = nullptr;  // room for 2 * parts * channels numbers, see below
};
// Whole groups: units are sample * groups + group, for contiguous groups (not channels last).
// In two phases: statistics of parts of kNormPart pixels of all channels, units are sample * parts + part; then the
// output of the same parts, which needs all statistics of its sample.
constexpr int64_t kNormPart = 1024;
using GroupNormKernel = void (*)(const GroupNorm& op, int64_t begin, int64_t end);

// Gradients of the above; those of scale and shift are (samples, channels). Whole groups: dx and sums; or, after
// group_norm_statistics, sums of parts, then dx of the same parts. Last, the other gradients from the sums, units are
// blocks of kNormChannels channels.
struct GroupNormBackward {
  GroupNorm forward;     // out and stream are not used
  const void* gradient;  // of out, laid out as x
  void *x, *weight, *bias, *scale, *shift;
  int64_t parts = 1;      // of a sample: 1 for whole groups
  float* sums = nullptr;  // room for samples * parts * 2 * channels numbers
};
using GroupNormBackwardKernel = void (*)(const GroupNormBackward& op, int64_t begin, int64_t end);

// A (B, H, S, D) tensor with contiguous D: row s of head h of batch b is at data + b * batch + h * head + s * row,
// strides in numbers. Null for none.
struct Heads {
  const void* data;
  int64_t batch, head, row;
};

// What is added to the scores: nothing, numbers of the type of q, or 0 where a byte is not 0 and -infinity elsewhere.
enum class Mask { none, additive, boolean };

// out = softmax(scale * q k^T + mask) v over the keys, in float32 whatever the type; 0 in rows that have no key left.
// lse, where not null, receives the logarithm of the softmax's denominator (infinity for such rows), (B, H, queries)
// contiguous; maps the softmax itself, (B, H, queries, keys) contiguous, of the type.
struct Attention {
  Type type;
  Heads q, k, v;
  Mask mask_type;
  Heads mask;           // (B, H, queries, keys) by its strides, which may be 0
  int64_t mask_column;  // the stride of a key: 0 or 1
  Heads out;
  float* lse;
  void* maps;
  int64_t batch, heads, queries, keys, channels, value_channels;
  float scale;
  bool in_vectors = false;   // no products in terms
  bool* doubtful = nullptr;  // receives true where products in terms cannot be trusted
};
// Units are blocks of queries of a head of a batch, in an order, and as many, as the kernel chooses.
using AttentionUnits = int64_t (*)(const Attention& op);
using AttentionKernel = void (*)(const Attention& op, int64_t begin, int64_t end);

enum class Activation { none, silu, gelu, gelu_tanh };

// Some of the rows of W: their number, each of K numbers and `row` after the one before, and their bias or null.
struct LinearWeight {
  const float *data, *bias;
  int64_t row, outputs;
};

// out = y, or residual + gate * y, with y = act(x W^T + bias), or with `glu` y = a act(b), where [a, b] = x W^T + bias.
// W is of 1 to 3 weights, of which all but the last have a multiple of 16 rows. The rows of x and of the residual are
// in batches, as are those of the gate, whose row stride may be 0. out is contiguous.
struct Linear {
  Rows x, gate, residual;
  LinearWeight weights[3];
  int64_t count;
  float* out;
  int64_t batch, rows, inputs, outputs;  // rows of a batch; K; the columns of out, half as many as W's rows with `glu`
  Activation activation;
  bool glu, rows_shared;  // rows_shared: the rows of x are packed once for all threads, else those of W
  void* packed;           // linear_packed_bytes(op), at a multiple of 64
};
// Factors are packed as three bfloat16 a number, 32 rows and 32 numbers at a time.
constexpr int64_t kLinearBlock = 32;
static inline int64_t linear_blocks(int64_t rows) { return divide_up(rows, kLinearBlock); }
static inline int64_t linear_row_blocks(const Linear& op) { return linear_blocks(op.batch * op.rows); }
static inline int64_t linear_column_blocks(const Linear& op) { return linear_blocks(op.outputs); }
// Every thread reads all of the factor that is packed for all: that is the smaller one.
static inline bool linear_shares_rows(const Linear& op) {
  return linear_row_blocks(op) <= linear_column_blocks(op) * (op.glu ? 2 : 1);
}
static inline int64_t linear_packed_bytes(const Linear& op) {
  const int64_t blocks = op.rows_shared ? linear_row_blocks(op) : linear_column_blocks(op) * (op.glu ? 2 : 1);
  return blocks * linear_blocks(op.inputs) * kLinearBlock * kLinearBlock * 6;
}
// In two phases: units of the first are blocks of what is packed for all threads, rows of x or columns of out; those of
// the second blocks of the other.
using LinearKernel = void (*)(const Linear& op, int64_t begin, int64_t end);

// The above in lower precision: x and W are rounded to bfloat16, or to 8-bit integers, and their products summed in
// float32 or in 32-bit integers. What follows the products is in float32. W is one weight, packed once: its data are
// not read, and a bias is weights[0]'s.
struct LowLinear {
  Linear layer;
  bool int8;        // else bfloat16
  uint8_t* weight;  // of low_weight_bytes
  uint8_t* rows;    // of x, rounded, each of low_row_bytes
};
// Every kernel's layout fits: a block of 32 rows of W has at most so many bytes, 2 or 1 a number and, of int8, 8 a row
// for its scale and its sum. So do rows of x, in float32 where there are no products in the type.
static inline int64_t low_block_bytes(int64_t inputs, bool int8) {
  return kLinearBlock * (int8 ? round_up(inputs, 4) + 8 : 2 * round_up(inputs, 2));
}
static inline int64_t low_weight_bytes(int64_t inputs, int64_t outputs, bool glu, bool int8) {
  return linear_blocks(outputs) * (glu ? 2 : 1) * low_block_bytes(inputs, int8);
}
static inline int64_t low_row_bytes(int64_t inputs) { return 4 * round_up(inputs, 16) + 128; }
// In three: units of the first, of which the weight alone is set, are blocks of W, those of a GLU one after the other;
// of the second rows of x; of the third blocks of out, `low_linear_units`.
using LowLinearKernel = void (*)(const LowLinear& op, int64_t begin, int64_t end);
static inline int64_t low_linear_units(const Linear& op) { return linear_row_blocks(op) * linear_column_blocks(op); }

// A convolution in up to three steps. The weights are transformed once, units are blocks of channels of each panel; the
// input, where the plan shares it, units are blocks of channels of each part of tiles; then products and outputs, units
// are the plan's parts.
using Conv2dKernel = void (*)(const Conv2d& op, int64_t begin, int64_t end);
// Filters [panels][channels][9][panel], the channels padded to a multiple of kChannelBlock, and what is made of them.
struct Conv2dWeights {
  const float* filters;
  int64_t channels, panels;
  float* u;
};
using Conv2dWeightsKernel = void (*)(const Conv2dWeights& weights, int64_t begin, int64_t end);
using Conv2dPanel = int64_t (*)();  // the output channels of a panel

// KERNEL(type, name) of all that every instruction set has.
#define FASTDIFF_KERNELS(KERNEL)                                         \
  KERNEL(LinearCombine<float>, linear_combine_f32)                       \
  KERNEL(LinearCombine<double>, linear_combine_f64)                      \
  KERNEL(Normal, normal)                                                 \
  KERNEL(AdaLayerNormKernel, ada_layer_norm)                             \
  KERNEL(ResidualAdaLayerNormKernel, residual_ada_layer_norm)            \
  KERNEL(AdaLayerNormBackwardKernel, ada_layer_norm_backward_rows)       \
  KERNEL(AdaLayerNormBackwardKernel, ada_layer_norm_backward_parameters) \
  KERNEL(GroupNormKernel, group_norm_groups)                             \
  KERNEL(GroupNormKernel, group_norm_statistics)                         \
  KERNEL(GroupNormKernel, group_norm_output)                             \
  KERNEL(GroupNormBackwardKernel, group_norm_backward_groups)            \
  KERNEL(GroupNormBackwardKernel, group_norm_backward_sums)              \
  KERNEL(GroupNormBackwardKernel, group_norm_backward_input)             \
  KERNEL(GroupNormBackwardKernel, group_norm_backward_parameters)        \
  KERNEL(AttentionUnits, attention_units)                                \
  KERNEL(AttentionKernel, attention)                                     \
  KERNEL(Conv2dPanel, conv2d_panel)                                      \
  KERNEL(Conv2dWeightsKernel, conv2d_weights)                            \
  KERNEL(Conv2dKernel, conv2d_input)                                     \
  KERNEL(Conv2dKernel, conv2d_products)                                  \
  KERNEL(Conv2dDirectKernel, conv2d_direct)                              \
  FASTDIFF_LOW_KERNELS(KERNEL)
// In lower precision: of each instruction set, and once more of those for such products.
#define FASTDIFF_BFLOAT16_KERNELS(KERNEL)         \
  KERNEL(LowLinearKernel, linear_bfloat16_weight) \
  KERNEL(LowLinearKernel, linear_bfloat16_rows)   \
  KERNEL(LowLinearKernel, linear_bfloat16_products)
#define FASTDIFF_INT8_KERNELS(KERNEL)         \
  KERNEL(LowLinearKernel, linear_int8_weight) \
  KERNEL(LowLinearKernel, linear_int8_rows)   \
  KERNEL(LowLinearKernel, linear_int8_products)
#define FASTDIFF_LOW_KERNELS(KERNEL) FASTDIFF_BFLOAT16_KERNELS(KERNEL) FASTDIFF_INT8_KERNELS(KERNEL)
// Those that AMX has besides; elsewhere they are null, and a library is as fast.
#define FASTDIFF_MATRIX_KERNELS(KERNEL)          \
  KERNEL(LinearKernel, linear_pack)              \
  KERNEL(LinearKernel, linear_multiply)          \
  KERNEL(ConvStageKernel, conv2d_stage_weights)  \
  KERNEL(ConvStageKernel, conv2d_stage_input)    \
  KERNEL(ConvStageKernel, conv2d_stage_products) \
  KERNEL(ConvStageKernel, conv2d_stage_output)

// To declare a kernel of an instruction set: what a pointer of this type points to.
#define FASTDIFF_DECLARE(type, name) std::remove_pointer_t<type> name;
#define FASTDIFF_MEMBER(type, name) type name = nullptr;
struct Kernels {
  const char* isa;
  FASTDIFF_KERNELS(FASTDIFF_MEMBER)
  FASTDIFF_MATRIX_KERNELS(FASTDIFF_MEMBER)
  bool bfloat16_products = false, int8_products = false;  // whether those in lower precision have instructions for it
};
#undef FASTDIFF_MEMBER

// The kernels in use: the best that the machine has, those of the environment variable FASTDIFF_ISA, or the last ones
// selected. Throws std::invalid_argument if the variable names a set that is not available here, or that
// FASTDIFF_EXACT=1 rules out.
const Kernels& kernels();

// Use the kernels of one instruction set from now on. Throws std::invalid_argument if it is not available here.
void select_isa(const char* name);

// Names of the sets that are compiled in and that this machine supports, best first, ending in nullptr.
const char* const* supported_isas();

}  // namespace fastdiff

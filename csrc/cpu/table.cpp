// The kernels of one instruction set, together. Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {

bool linear_combine_f32(const float* const* inputs, int num_inputs, float* const* outputs, float* const* copies,
                        int num_outputs, const float* coefficients, int64_t size);
bool linear_combine_f64(const double* const* inputs, int num_inputs, double* const* outputs, double* const* copies,
                        int num_outputs, const double* coefficients, int64_t size);
void normal(float* out, int64_t first, int64_t count, uint64_t seed, uint64_t sample, uint32_t draw);
void ada_layer_norm(const AdaLayerNorm& op, int64_t begin, int64_t end);
void residual_ada_layer_norm(const ResidualAdaLayerNorm& op, int64_t begin, int64_t end);
void ada_layer_norm_backward_rows(const AdaLayerNormBackward& op, int64_t begin, int64_t end);
void ada_layer_norm_backward_parameters(const AdaLayerNormBackward& op, int64_t begin, int64_t end);
void group_norm_groups(const GroupNorm& op, int64_t begin, int64_t end);
void group_norm_statistics(const GroupNorm& op, int64_t begin, int64_t end);
void group_norm_output(const GroupNorm& op, int64_t begin, int64_t end);
void group_norm_backward_groups(const GroupNormBackward& op, int64_t begin, int64_t end);
void group_norm_backward_sums(const GroupNormBackward& op, int64_t begin, int64_t end);
void group_norm_backward_input(const GroupNormBackward& op, int64_t begin, int64_t end);
void group_norm_backward_parameters(const GroupNormBackward& op, int64_t begin, int64_t end);
int64_t attention_units(const Attention& op);
void attention(const Attention& op, int64_t begin, int64_t end);
int64_t conv2d_panel();
void conv2d_weights(const float* filters, int64_t channels, int64_t panels, float* u, int64_t begin, int64_t end);
void conv2d_input(const Conv2d& op, int64_t begin, int64_t end);
void conv2d_products(const Conv2d& op, int64_t begin, int64_t end);

#define FASTDIFF_STRING_(x) #x
#define FASTDIFF_STRING(x) FASTDIFF_STRING_(x)
extern const Kernels table;
const Kernels table = {FASTDIFF_STRING(FASTDIFF_ISA),
                       linear_combine_f32,
                       linear_combine_f64,
                       normal,
                       ada_layer_norm,
                       residual_ada_layer_norm,
                       ada_layer_norm_backward_rows,
                       ada_layer_norm_backward_parameters,
                       group_norm_groups,
                       group_norm_statistics,
                       group_norm_output,
                       group_norm_backward_groups,
                       group_norm_backward_sums,
                       group_norm_backward_input,
                       group_norm_backward_parameters,
                       attention_units,
                       attention,
                       nullptr,
                       nullptr,
                       conv2d_panel,
                       {conv2d_weights, conv2d_input, conv2d_products},
                       {}};

}  // namespace fastdiff::FASTDIFF_ISA

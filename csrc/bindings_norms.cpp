// For Python: the norms, which say whether squares left float32's range.
#include "casters.h"
#include "fastdiff/drivers.h"
#include "released.h"

namespace py = pybind11;
using namespace fastdiff;

namespace {

AdaLayerNorm& norm_of(AdaLayerNorm& op) { return op; }
AdaLayerNorm& norm_of(ResidualAdaLayerNorm& op) { return op.norm; }
AdaLayerNorm& norm_of(AdaLayerNormBackward& op) { return op.forward; }
GroupNorm& norm_of(GroupNorm& op) { return op; }
GroupNorm& norm_of(GroupNormBackward& op) { return op.forward; }

// The same of a norm, whose op has a place for whether squares left float32's range. Returns whether they did.
template <class Op>
bool run_norm(void (*driver)(Op, int), std::common_type_t<Op> op, int threads, int64_t numbers = INT64_MAX) {
  bool huge = false;
  norm_of(op).huge = &huge;
  run(driver, op, threads, numbers);
  return huge;
}

void bind_ada_layer_norm(py::module_& module) {
  module.def("ada_layer_norm", [](Type type, Address out, Rows x, Rows scale, Rows shift, Address weight, Address bias,
                                  int64_t batch, int64_t rows, int64_t channels, float eps, int threads) {
    const AdaLayerNorm op = {type, x, scale, shift, weight, bias, out, batch, rows, channels, eps};
    return run_norm(ada_layer_norm, op, threads, batch * rows * channels);
  });
  module.def("ada_layer_norm_backward", [](Type type, Addresses<5> found, Rows gradient, Rows x, Rows scale, Rows shift,
                                           Address weight, Address bias, Numbers<3> sizes, float eps, int threads) {
    const AdaLayerNorm norm = {type, x, scale, shift, weight, bias, nullptr, sizes[0], sizes[1], sizes[2], eps};
    return run_norm(ada_layer_norm_backward, {norm, gradient, found[0], found[1], found[2], found[3], found[4]},
                    threads);
  });
}

void bind_residual_ada_layer_norm(py::module_& module) {
  module.def("residual_ada_layer_norm",
             [](Type type, Address h, Address z, Rows y, Rows residual, Rows gate, Rows scale, Rows shift,
                Address weight, Address bias, int64_t batch, int64_t rows, int64_t channels, float eps, int threads) {
               const AdaLayerNorm norm = {type, {}, scale, shift, weight, bias, z, batch, rows, channels, eps};
               return run_norm(residual_ada_layer_norm, {norm, y, residual, gate, h}, threads, batch * rows * channels);
             });
  // of_h: without an address where h has no gradient from elsewhere.
  module.def("residual_ada_layer_norm_backward", [](Type type, Addresses<7> found, Rows of_h, Rows of_z, Rows h, Rows y,
                                                    Rows gate, Rows scale, Rows shift, Address weight, Address bias,
                                                    Numbers<3> sizes, float eps, int threads) {
    const auto [of_y, of_residual, of_gate, of_scale, of_shift, of_weight, of_bias] = found;
    const AdaLayerNorm norm = {type, h, scale, shift, weight, bias, nullptr, sizes[0], sizes[1], sizes[2], eps};
    return run_norm(
        ada_layer_norm_backward,
        {norm, of_z, of_residual, of_scale, of_shift, of_weight, of_bias, true, of_y, of_gate, y, gate, of_h}, threads);
  });
}

void bind_group_norm_silu(py::module_& module) {
  module.def("group_norm_silu", [](Type type, Address out, Address x, Address weight, Address bias, Rows scale,
                                   Rows shift, int64_t samples, int64_t channels, int64_t pixels, int64_t groups,
                                   bool last, bool silu, float eps, int threads) {
    const GroupNorm op = {type, x, weight, bias, scale, shift, out, samples, channels, pixels, groups, last, silu, eps};
    return run_norm(group_norm_silu, op, threads, samples * channels * pixels);
  });
  // sizes: samples, channels, pixels, groups.
  module.def("group_norm_silu_backward",
             [](Type type, Addresses<5> found, Address gradient, Address x, Address weight, Address bias, Rows scale,
                Rows shift, Numbers<4> sizes, bool last, bool silu, float eps, int threads) {
               const auto [samples, channels, pixels, groups] = sizes;
               const GroupNorm norm = {type,    x,        weight, bias,   scale, shift, nullptr,
                                       samples, channels, pixels, groups, last,  silu,  eps};
               return run_norm(group_norm_silu_backward,
                               {norm, gradient, found[0], found[1], found[2], found[3], found[4]}, threads);
             });
}

}  // namespace

void bind_norms(py::module_& module) {
  bind_ada_layer_norm(module);
  bind_residual_ada_layer_norm(module);
  bind_group_norm_silu(module);
}

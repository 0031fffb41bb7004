// What sees Python, with casters.h and bindings_*.cpp: it reads arguments, releases Python's lock and calls.
// Tensors arrive as addresses, shapes and strides; `fastdiff` checks them. Called by position: names cost 0.7 us a
// call.
#include <tuple>

#include "casters.h"
#include "fastdiff/arena.h"
#include "fastdiff/drivers.h"
#include "fastdiff/plan.h"
#include "fastdiff/pool.h"
#include "fastdiff/step_plan.h"
#include "released.h"

namespace py = pybind11;
using namespace fastdiff;

void bind_changes(py::module_& module);  // in bindings_changes.cpp
void bind_norms(py::module_& module);    // in bindings_norms.cpp

namespace {

template <class T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> result;
  for (uintptr_t address : addresses) result.push_back(reinterpret_cast<T*>(address));
  return result;
}

template <class T>
void bind_plan(py::module_& module, const char* name) {
  py::class_<Plan<T>>(module, name)
      .def(py::init([](const std::vector<uintptr_t>& buffers, const std::vector<uintptr_t>& copies, int64_t batch,
                       int64_t elements, std::vector<uint64_t> seeds, std::vector<uint64_t> samples, int num_threads) {
             return new Plan<T>(pointers<T>(buffers), pointers<T>(copies), batch, elements, std::move(seeds),
                                std::move(samples), num_threads);
           }),
           py::kw_only(), py::arg("buffers"), py::arg("copies"), py::arg("batch"), py::arg("elements"),
           py::arg("seeds"), py::arg("samples"), py::arg("num_threads"))
      .def("add", &Plan<T>::add, py::arg("outputs"), py::arg("kinds"), py::arg("numbers"), py::arg("coefficients"))
      .def("set_noise", [](Plan<T>& plan, int draw, Address values) { plan.set_noise(draw, values); })
      // The lock is kept: most steps are small.
      .def("run", [](const Plan<T>& plan, int combine, Address cond, Address uncond) {
        return plan.run(combine, cond, uncond);
      });
}

void bind_linear_combine(py::module_& module) {
  bind_plan<float>(module, "PlanFloat32");
  bind_plan<double>(module, "PlanFloat64");
  const auto bind = [&](const char* name, auto zero) {
    using T = decltype(zero);
    module.def(name, [](const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs,
                        const std::vector<double>& coefficients, int64_t size, int threads) {
      return linear_combine(pointers<T>(inputs), pointers<T>(outputs), coefficients, size, threads);
    });
  };
  bind("linear_combine_float32", 0.0f);
  bind("linear_combine_float64", 0.0);
  module.attr("MAX_INPUTS") = kMaxInputs;
  module.attr("MAX_OUTPUTS") = kMaxOutputs;
  module.attr("NORMAL_GROUP") = kNormalGroup;
  module.def("padded_outputs", padded_outputs);
  module.def("normal", [](Address out, int64_t count, uint64_t seed, uint64_t sample, uint32_t draw) {
    kernels().normal(out, 0, count, seed, sample, draw);
  });
}

// launch: the address of a function, or 0 for the CPU's.
void bind_step_plan(py::module_& module) {
  py::class_<StepPlan>(module, "StepPlan")
      .def(py::init([](const std::string& state, const std::string& model, int64_t batch, int64_t elements,
                       Address keys, Address broken, uintptr_t launch, int device) {
             return new StepPlan(step_types(state, model), batch, elements, keys, broken,
                                 launch ? reinterpret_cast<StepLaunch>(launch) : step_on_cpu, device);
           }),
           py::kw_only(), py::arg("state"), py::arg("model"), py::arg("batch"), py::arg("elements"), py::arg("keys"),
           py::arg("broken"), py::arg("launch"), py::arg("device"))
      .def("add", &StepPlan::add, py::arg("kinds"), py::arg("numbers"), py::arg("outputs"), py::arg("coefficients"))
      .def("run", [](const StepPlan& plan, int index, Address cond, Address uncond, uintptr_t stream) {
        return plan.run(index, static_cast<const void*>(cond), static_cast<const void*>(uncond), stream);
      });
}

// found: the addresses of gradients, in the order of the arguments; 0 where one is not wanted. sizes: batch, rows,
// channels.
// sizes: batch, heads, queries, keys, channels, value channels.
void bind_attention(py::module_& module) {
  module.def("attention", [](Type type, Heads q, Heads k, Heads v, Mask mask_type, Heads mask, int64_t mask_column,
                             Heads out, Address lse, Address maps, Numbers<6> sizes, float scale, int threads) {
    const auto [batch, heads, queries, keys, channels, values] = sizes;
    run(attention,
        {type, q, k, v, mask_type, mask, mask_column, out, lse, maps, batch, heads, queries, keys, channels, values,
         scale},
        threads);
  });
}

// sizes: batch, rows of a batch, inputs, outputs.
void bind_linear(py::module_& module) {
  module.def("has_linear", [] { return kernels().linear_multiply != nullptr; });
  module.def("linear", [](Address out, Rows x, const std::vector<LinearWeight>& weights, Rows gate, Rows residual,
                          Activation activation, bool glu, Numbers<4> sizes, int threads) {
    Linear op = {};
    if (weights.empty() || weights.size() > std::size(op.weights))
      throw std::invalid_argument("linear takes one to three weights");
    for (const LinearWeight& weight : weights) op.weights[op.count++] = weight;
    op.x = x, op.gate = gate, op.residual = residual, op.out = out, op.activation = activation, op.glu = glu;
    op.batch = sizes[0], op.rows = sizes[1], op.inputs = sizes[2], op.outputs = sizes[3];
    run(linear, op, threads);
  });
  // In lower precision: whether there are instructions for it, bytes of a packed weight, packing, and the layer.
  module.def("has_low_precision",
             [](bool int8) { return int8 ? kernels().int8_products : kernels().bfloat16_products; });
  module.def("low_weight_bytes", low_weight_bytes);
  module.def("low_linear_weight",
             [](Address packed, LinearWeight weight, int64_t inputs, bool glu, bool int8, int threads) {
               LowLinear op = {};
               op.int8 = int8;
               op.layer.weights[0] = weight, op.layer.count = 1, op.layer.inputs = inputs, op.layer.glu = glu;
               op.layer.outputs = weight.outputs / (glu ? 2 : 1);
               op.weight = packed;
               run(low_linear_weight, op, threads);
             });
  module.def("low_linear", [](Address out, Rows x, Address packed, Address bias, Rows gate, Rows residual,
                              Activation activation, bool glu, Numbers<4> sizes, bool int8, int threads) {
    LowLinear op = {};
    op.int8 = int8;
    Linear& layer = op.layer;
    layer.x = x, layer.gate = gate, layer.residual = residual, layer.out = out;
    layer.activation = activation, layer.glu = glu;
    layer.batch = sizes[0], layer.rows = sizes[1], layer.inputs = sizes[2], layer.outputs = sizes[3];
    layer.weights[0] = {nullptr, bias, 0, layer.outputs * (glu ? 2 : 1)}, layer.count = 1;
    op.weight = packed;
    run(low_linear, op, threads);
  });
}

void bind_conv2d(py::module_& module) {
  module.attr("CONV2D_MAX_INPUTS") = kMaxConcatenated;
  module.attr("CONV2D_CHANNEL_BLOCK") = kChannelBlock;
  module.def("conv2d_panel", [] { return kernels().conv2d_panel(); });
  module.def("conv2d_plan", conv2d_plan);
  module.def("conv2d_weights", [](Address filters, int64_t channels, int64_t panels, Address u, int threads) {
    run(conv2d_weights, {filters, channels, panels, u}, threads);
  });
  // sizes: batch, height, width (after upsampling), log2 of the upsampling, padding, output channels, height, width.
  // weights: as the way reads them, 0 where that is as they are. filters: as they are, address and strides of an output
  // channel, an input channel and a tap.
  module.def("conv2d", [](const std::vector<Image>& x, Numbers<8> sizes, Address weights, Numbers<4> filters, Way way,
                          Address bias, Address channel_bias, int64_t channel_bias_row, Image residual, bool silu,
                          float scale, Address out, int threads) {
    if (x.empty() || x.size() > kMaxConcatenated) throw std::invalid_argument("too few or too many images");
    Conv2d op = {};
    for (const Image& image : x) op.x[op.num_inputs++] = image, op.channels += image.channels;
    op.batch = sizes[0], op.height = sizes[1], op.width = sizes[2], op.upsample = sizes[3], op.padding = sizes[4];
    op.out_channels = sizes[5], op.out_height = sizes[6], op.out_width = sizes[7];
    op.weights = weights, op.way = way, op.filters = address_of(filters[0]);
    op.filter_out = filters[1], op.filter_in = filters[2], op.filter_tap = filters[3];
    op.bias = bias, op.channel_bias = channel_bias, op.channel_bias_row = channel_bias_row;
    op.residual = residual, op.silu = silu, op.scale = scale, op.out = out;
    run(conv2d, op, threads);
  });
}

// A DLPack capsule. Whoever takes the tensor renames it; if nobody does, the capsule's end is the tensor's.
py::object capsule_of(DLManagedTensor* managed) {
  PyObject* capsule = PyCapsule_New(managed, "dltensor", [](PyObject* self) {
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (capsule) return py::reinterpret_steal<py::object>(capsule);
  managed->deleter(managed);
  throw py::error_already_set();
}

void bind_memory(py::module_& module) {
  module.attr("POOL_MINIMUM") = kPoolMinimum;
  module.def("pool_available", pool_available);
  module.def("pool_tensor", [](const std::vector<int64_t>& shape, bool channels_last, DLDataType type) {
    return capsule_of(pool_tensor(shape, channels_last, type));
  });
  module.def("pool_set_limit", pool_set_limit);
  module.def("pool_release", pool_release);
  module.def("pool_statistics", [] {
    const PoolStatistics s = pool_statistics();
    return std::make_tuple(s.limit, s.used, s.idle, s.mapped, s.reused);
  });
  module.def("poison_arenas", poison_arenas);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled kernels of fastdiff; use them through fastdiff.ops and fastdiff.engine.";
  module.def("isa", [] { return kernels().isa; });
  module.def("select_isa", select_isa);
  module.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = supported_isas(); *name; ++name) names.emplace_back(*name);
    return names;
  });
  module.def("threading", threading);
  module.def("compiler", [] { return FASTDIFF_COMPILER; });
  bind_linear_combine(module);
  bind_step_plan(module);
  bind_norms(module);
  bind_attention(module);
  bind_linear(module);
  bind_conv2d(module);
  bind_memory(module);
  bind_changes(module);
}

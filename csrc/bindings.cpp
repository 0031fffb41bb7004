// The only file that sees Python. Tensors arrive as addresses, shapes and sizes; `fastdiff` checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "fastdiff/kernels.h"
#include "fastdiff/parallel.h"
#include "fastdiff/plan.h"
#include "fastdiff/pool.h"
#include "fastdiff/step_plan.h"

namespace py = pybind11;
using fastdiff::Plan;

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
      .def("set_noise", [](Plan<T>& plan, int draw,
                           uintptr_t address) { plan.set_noise(draw, reinterpret_cast<const T*>(address)); })
      // Positional only, and the interpreter lock is kept: letting it go costs more than a small step.
      .def("run", [](const Plan<T>& plan, int combine, uintptr_t cond, uintptr_t uncond) {
        return plan.run(combine, reinterpret_cast<const T*>(cond), reinterpret_cast<const T*>(uncond));
      });
}

fastdiff::StepTypes step_types(const std::string& state, const std::string& model) {
  if (state == "float32" && model == "float32") return fastdiff::StepTypes::f32_f32;
  if (state == "float32" && model == "float16") return fastdiff::StepTypes::f32_f16;
  if (state == "float32" && model == "bfloat16") return fastdiff::StepTypes::f32_bf16;
  if (state == "float64" && model == "float64") return fastdiff::StepTypes::f64_f64;
  throw std::invalid_argument("no step of a state in " + state + " and a model in " + model);
}

// launch: the address of a function, or 0 for the CPU's.
void bind_step_plan(py::module_& module) {
  using fastdiff::StepPlan;
  py::class_<StepPlan>(module, "StepPlan")
      .def(py::init([](const std::string& state, const std::string& model, int64_t batch, int64_t elements,
                       uintptr_t keys, uintptr_t broken, uintptr_t launch, int device) {
             return new StepPlan(step_types(state, model), batch, elements, reinterpret_cast<const uint64_t*>(keys),
                                 reinterpret_cast<int32_t*>(broken),
                                 launch ? reinterpret_cast<fastdiff::StepLaunch>(launch) : fastdiff::step_on_cpu,
                                 device);
           }),
           py::kw_only(), py::arg("state"), py::arg("model"), py::arg("batch"), py::arg("elements"), py::arg("keys"),
           py::arg("broken"), py::arg("launch"), py::arg("device"))
      .def("add", &StepPlan::add, py::arg("kinds"), py::arg("numbers"), py::arg("outputs"), py::arg("coefficients"))
      .def("run", [](const StepPlan& plan, int index, uintptr_t cond, uintptr_t uncond, uintptr_t stream) {
        return plan.run(index, reinterpret_cast<const void*>(cond), reinterpret_cast<const void*>(uncond), stream);
      });
}

// One combine outside of a plan: rows of `coefficients` are outputs, columns inputs.
template <class T>
bool linear_combine(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs,
                    const std::vector<double>& coefficients, int64_t size, int num_threads) {
  std::vector<uintptr_t> buffers = outputs;
  buffers.insert(buffers.end(), inputs.begin(), inputs.end());
  Plan<T> plan(pointers<T>(buffers), std::vector<T*>(buffers.size(), nullptr), 1, size, {}, {}, num_threads);
  std::vector<int> out_slots, kinds(inputs.size(), 0), numbers;
  for (size_t m = 0; m < outputs.size(); ++m) out_slots.push_back(static_cast<int>(m));
  for (size_t k = 0; k < inputs.size(); ++k) numbers.push_back(static_cast<int>(outputs.size() + k));
  return plan.run(plan.add(out_slots, kinds, numbers, coefficients), nullptr, nullptr);
}

fastdiff::Type type_of(const std::string& name) {
  if (name == "float32") return fastdiff::Type::float32;
  if (name == "bfloat16") return fastdiff::Type::bfloat16;
  if (name == "float16") return fastdiff::Type::float16;
  throw std::invalid_argument("no kernel for " + name);
}

// A result larger than this does not stay in a cache until it is read, and is written around them. Measured:
// ada_layer_norm is 1.3 times as fast that way at 144 MiB, and not faster at 72 MiB, where the result's lines are asked
// for ahead instead.
bool streams(fastdiff::Type type, int64_t size) {
  return size * (type == fastdiff::Type::float32 ? 4 : 2) >= int64_t{96} << 20;
}

// A tuple of so many whole numbers. pybind11's own conversion takes ten times as long, longer than a small kernel.
template <size_t size>
std::array<int64_t, size> numbers(const py::tuple& t) {
  if (t.size() != size) throw py::type_error("expected a tuple of " + std::to_string(size));
  std::array<int64_t, size> result;
  for (size_t i = 0; i < size; ++i) {
    result[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), static_cast<Py_ssize_t>(i)));
    if (result[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
  }
  return result;
}
const void* address_of(int64_t number) { return reinterpret_cast<const void*>(static_cast<uintptr_t>(number)); }

// (address or 0, stride of a batch, stride of a row)
using RowsArgument = py::tuple;
fastdiff::Rows rows_of(const RowsArgument& r) {
  const auto [data, batch, row] = numbers<3>(r);
  return {address_of(data), batch, row};
}

// A kernel over its units, on threads.
template <class Op>
void run_kernel(void (*kernel)(const Op&, int64_t, int64_t), const Op& op, int64_t units, int num_threads) {
  struct Job {
    const Op& op;
    void (*kernel)(const Op&, int64_t, int64_t);
  } job = {op, kernel};
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->op, begin, end);
  };
  fastdiff::parallel_for(units, num_threads, body, &job);
}

int64_t parts_of(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Whether groups are worked on one by one. That does not depend on the number of threads, and so the result does not
// either.
bool whole_groups(const fastdiff::GroupNorm& op) { return !op.channels_last && op.samples * op.groups >= 8; }

void ada_layer_norm(const std::string& type, uintptr_t out, const RowsArgument& x, const RowsArgument& scale,
                    const RowsArgument& shift, uintptr_t weight, uintptr_t bias, int64_t batch, int64_t rows,
                    int64_t channels, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<const void*>(a); };
  const fastdiff::Type number = type_of(type);
  const int64_t size = batch * rows * channels;
  const fastdiff::AdaLayerNorm op = {number,
                                     rows_of(x),
                                     rows_of(scale),
                                     rows_of(shift),
                                     address(weight),
                                     address(bias),
                                     reinterpret_cast<void*>(out),
                                     rows,
                                     channels,
                                     eps,
                                     streams(number, size)};
  run_kernel(fastdiff::kernels().ada_layer_norm, op, batch * rows, size > fastdiff::kSerialElements ? num_threads : 1);
}

void residual_ada_layer_norm(const std::string& type, uintptr_t h, uintptr_t z, const RowsArgument& y,
                             const RowsArgument& residual, const RowsArgument& gate, const RowsArgument& scale,
                             const RowsArgument& shift, uintptr_t weight, uintptr_t bias, int64_t batch, int64_t rows,
                             int64_t channels, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<void*>(a); };
  const fastdiff::Type number = type_of(type);
  const int64_t size = batch * rows * channels;
  const fastdiff::ResidualAdaLayerNorm op = {{number,
                                              {},
                                              rows_of(scale),
                                              rows_of(shift),
                                              address(weight),
                                              address(bias),
                                              address(z),
                                              rows,
                                              channels,
                                              eps,
                                              streams(number, size)},
                                             rows_of(y),
                                             rows_of(residual),
                                             rows_of(gate),
                                             address(h)};
  run_kernel(fastdiff::kernels().residual_ada_layer_norm, op, batch * rows,
             size > fastdiff::kSerialElements ? num_threads : 1);
}

void group_norm_silu(const std::string& type, uintptr_t out, uintptr_t x, uintptr_t weight, uintptr_t bias,
                     const RowsArgument& scale, const RowsArgument& shift, int64_t samples, int64_t channels,
                     int64_t pixels, int64_t groups, bool channels_last, bool silu, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<const void*>(a); };
  const fastdiff::Type number = type_of(type);
  const int64_t size = samples * channels * pixels, parts = parts_of(pixels, fastdiff::kNormPart);
  channels_last = channels_last || pixels == 1;
  fastdiff::GroupNorm op = {number,
                            address(x),
                            address(weight),
                            address(bias),
                            rows_of(scale),
                            rows_of(shift),
                            reinterpret_cast<void*>(out),
                            samples,
                            channels,
                            pixels,
                            groups,
                            channels_last,
                            silu,
                            eps,
                            streams(number, size),
                            nullptr};
  const int threads = size > fastdiff::kSerialElements ? num_threads : 1;
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  if (whole_groups(op)) {
    run_kernel(kernels.group_norm_groups, op, samples * groups, threads);
    return;
  }
  std::vector<float> partial(static_cast<size_t>(samples * parts * 2 * channels));
  op.partial = partial.data();
  run_kernel(kernels.group_norm_statistics, op, samples * parts, threads);
  run_kernel(kernels.group_norm_output, op, samples * parts, threads);
}

// found: the addresses of the gradients of x, scale, shift, weight and bias. sizes: batch, rows, channels.
void ada_layer_norm_backward(const std::string& type, const std::array<uintptr_t, 5>& found,
                             const RowsArgument& gradient, const RowsArgument& x, const RowsArgument& scale,
                             const RowsArgument& shift, uintptr_t weight, uintptr_t bias,
                             const std::array<int64_t, 3>& sizes, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<void*>(a); };
  const int64_t batch = sizes[0], rows = sizes[1], channels = sizes[2], parts = parts_of(rows, fastdiff::kNormRows);
  std::vector<float> sums(static_cast<size_t>(batch * parts * 2 * channels));
  const fastdiff::AdaLayerNormBackward op = {{type_of(type), rows_of(x), rows_of(scale), rows_of(shift),
                                              address(weight), address(bias), nullptr, rows, channels, eps, false},
                                             rows_of(gradient),
                                             address(found[0]),
                                             address(found[1]),
                                             address(found[2]),
                                             address(found[3]),
                                             address(found[4]),
                                             batch,
                                             sums.data(),
                                             false,
                                             {},
                                             {},
                                             {},
                                             nullptr,
                                             nullptr};
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  const py::gil_scoped_release released;
  run_kernel(kernels.ada_layer_norm_backward_rows, op, batch * parts,
             batch * rows * channels > fastdiff::kSerialElements ? num_threads : 1);
  run_kernel(kernels.ada_layer_norm_backward_parameters, op, parts_of(channels, fastdiff::kNormChannels),
             batch * parts * channels > fastdiff::kSerialElements ? num_threads : 1);
}

// found: the addresses of the gradients of y, residual, gate, scale, shift, weight and bias, 0 where not wanted. sizes:
// batch, rows, channels.
void residual_ada_layer_norm_backward(const std::string& type, const std::array<uintptr_t, 7>& found,
                                      const RowsArgument& grad_h, const RowsArgument& grad_z, const RowsArgument& h,
                                      const RowsArgument& y, const RowsArgument& gate, const RowsArgument& scale,
                                      const RowsArgument& shift, uintptr_t weight, uintptr_t bias,
                                      const std::array<int64_t, 3>& sizes, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<void*>(a); };
  const int64_t batch = sizes[0], rows = sizes[1], channels = sizes[2], parts = parts_of(rows, fastdiff::kNormRows);
  std::vector<float> sums(static_cast<size_t>(batch * parts * 3 * channels));
  const fastdiff::AdaLayerNormBackward op = {{type_of(type), rows_of(h), rows_of(scale), rows_of(shift),
                                              address(weight), address(bias), nullptr, rows, channels, eps, false},
                                             rows_of(grad_z),
                                             address(found[1]),
                                             address(found[3]),
                                             address(found[4]),
                                             address(found[5]),
                                             address(found[6]),
                                             batch,
                                             sums.data(),
                                             true,
                                             rows_of(y),
                                             rows_of(gate),
                                             rows_of(grad_h),
                                             address(found[0]),
                                             address(found[2])};
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  const py::gil_scoped_release released;
  run_kernel(kernels.ada_layer_norm_backward_rows, op, batch * parts,
             batch * rows * channels > fastdiff::kSerialElements ? num_threads : 1);
  run_kernel(kernels.ada_layer_norm_backward_parameters, op, parts_of(channels, fastdiff::kNormChannels),
             batch * parts * channels > fastdiff::kSerialElements ? num_threads : 1);
}

// found: the addresses of the gradients of x, weight, bias, scale and shift. sizes: samples, channels, pixels, groups.
void group_norm_silu_backward(const std::string& type, const std::array<uintptr_t, 5>& found, uintptr_t gradient,
                              uintptr_t x, uintptr_t weight, uintptr_t bias, const RowsArgument& scale,
                              const RowsArgument& shift, const std::array<int64_t, 4>& sizes, bool channels_last,
                              bool silu, float eps, int num_threads) {
  const auto address = [](uintptr_t a) { return reinterpret_cast<void*>(a); };
  const int64_t samples = sizes[0], channels = sizes[1], pixels = sizes[2], groups = sizes[3];
  fastdiff::GroupNormBackward op = {
      {type_of(type), address(x), address(weight), address(bias), rows_of(scale), rows_of(shift), nullptr, samples,
       channels, pixels, groups, channels_last || pixels == 1, silu, eps, false, nullptr},
      address(gradient),
      address(found[0]),
      address(found[1]),
      address(found[2]),
      address(found[3]),
      address(found[4]),
      1,
      nullptr};
  const bool whole = whole_groups(op.forward);
  if (!whole) op.parts = parts_of(pixels, fastdiff::kNormPart);
  const size_t size = static_cast<size_t>(samples * op.parts * 2 * channels);
  std::vector<float> sums(size), partial(whole ? 0 : size);
  op.sums = sums.data();
  op.forward.partial = partial.data();
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  const int threads = samples * channels * pixels > fastdiff::kSerialElements ? num_threads : 1;
  const py::gil_scoped_release released;
  if (whole) {
    run_kernel(kernels.group_norm_backward_groups, op, samples * groups, threads);
  } else {
    run_kernel(kernels.group_norm_statistics, op.forward, samples * op.parts, threads);
    run_kernel(kernels.group_norm_backward_sums, op, samples * op.parts, threads);
    run_kernel(kernels.group_norm_backward_input, op, samples * op.parts, threads);
  }
  run_kernel(kernels.group_norm_backward_parameters, op, parts_of(channels, fastdiff::kNormChannels),
             samples * op.parts * channels > fastdiff::kSerialElements ? num_threads : 1);
}

fastdiff::DLDataType dlpack_type(const std::string& name) {
  if (name == "float64") return {fastdiff::kDLFloat, 64, 1};
  if (name == "float32") return {fastdiff::kDLFloat, 32, 1};
  if (name == "float16") return {fastdiff::kDLFloat, 16, 1};
  if (name == "bfloat16") return {fastdiff::kDLBfloat, 16, 1};
  throw std::invalid_argument("no pool for " + name);
}

// A DLPack capsule. Whoever takes the tensor renames it; if nobody does, the capsule's end is the tensor's.
py::object pool_tensor(const std::vector<int64_t>& shape, bool channels_last, const std::string& type) {
  fastdiff::DLManagedTensor* managed = fastdiff::pool_tensor(shape, channels_last, dlpack_type(type));
  PyObject* capsule = PyCapsule_New(managed, "dltensor", [](PyObject* self) {
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    auto* managed = static_cast<fastdiff::DLManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (!capsule) {
    managed->deleter(managed);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

// (address or 0, strides of a batch, a head and a row)
using HeadsArgument = py::tuple;
fastdiff::Heads heads_of(const HeadsArgument& h) {
  const auto [data, batch, head, row] = numbers<4>(h);
  return {address_of(data), batch, head, row};
}

fastdiff::Mask mask_of(const std::string& name) {
  if (name == "none") return fastdiff::Mask::none;
  if (name == "additive") return fastdiff::Mask::additive;
  if (name == "boolean") return fastdiff::Mask::boolean;
  throw std::invalid_argument("no mask is " + name);
}

// sizes: batch, heads, queries, keys, channels, value channels.
void attention(const std::string& type, const HeadsArgument& q, const HeadsArgument& k, const HeadsArgument& v,
               const std::string& mask_type, const HeadsArgument& mask, int64_t mask_column, const HeadsArgument& out,
               uintptr_t lse, uintptr_t maps, const std::array<int64_t, 6>& sizes, float scale, int num_threads) {
  struct Job {
    fastdiff::Attention op;
    fastdiff::AttentionKernel kernel;
  };
  Job job = {{type_of(type), heads_of(q), heads_of(k), heads_of(v), mask_of(mask_type), heads_of(mask), mask_column,
              heads_of(out), reinterpret_cast<float*>(lse), reinterpret_cast<void*>(maps), sizes[0], sizes[1], sizes[2],
              sizes[3], sizes[4], sizes[5], scale},
             fastdiff::kernels().attention};
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->op, begin, end);
  };
  const int64_t units = fastdiff::kernels().attention_units(job.op);
  const int64_t products = sizes[0] * sizes[1] * sizes[2] * sizes[3] * (sizes[4] + sizes[5]);
  const py::gil_scoped_release released;
  fastdiff::parallel_for(units, products > 16 * fastdiff::kSerialElements ? num_threads : 1, body, &job);
}

fastdiff::Activation activation_of(const std::string& name) {
  if (name == "none") return fastdiff::Activation::none;
  if (name == "silu") return fastdiff::Activation::silu;
  if (name == "gelu") return fastdiff::Activation::gelu;
  if (name == "gelu_tanh") return fastdiff::Activation::gelu_tanh;
  throw std::invalid_argument("no activation is " + name);
}

// (address of a weight, of its bias or 0, row stride, rows)
using WeightArgument = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t>;

// sizes: batch, rows of a batch, inputs, outputs.
void linear(uintptr_t out, uintptr_t packed, const RowsArgument& x, const std::vector<WeightArgument>& weights,
            const RowsArgument& gate, const RowsArgument& residual, const std::string& activation, bool glu,
            const std::array<int64_t, 4>& sizes, int num_threads) {
  struct Job {
    fastdiff::Linear op;
    fastdiff::LinearKernel kernel;
  };
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  if (!kernels.linear_multiply) throw std::invalid_argument(std::string(kernels.isa) + " has no kernel for linear");
  Job job{};
  fastdiff::Linear& op = job.op;
  if (weights.empty() || weights.size() > sizeof(op.weights) / sizeof(op.weights[0]))
    throw std::invalid_argument("linear takes one to three weights");
  op.x = rows_of(x), op.gate = rows_of(gate), op.residual = rows_of(residual);
  for (const WeightArgument& w : weights)
    op.weights[op.count++] = {reinterpret_cast<const float*>(std::get<0>(w)),
                              reinterpret_cast<const float*>(std::get<1>(w)), std::get<2>(w), std::get<3>(w)};
  op.out = reinterpret_cast<float*>(out);
  op.batch = sizes[0], op.rows = sizes[1], op.inputs = sizes[2], op.outputs = sizes[3];
  op.activation = activation_of(activation), op.glu = glu;
  op.rows_shared = fastdiff::linear_shares_rows(op);
  op.packed = reinterpret_cast<void*>(packed);
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->op, begin, end);
  };
  const int64_t rows = fastdiff::linear_row_blocks(op), columns = fastdiff::linear_column_blocks(op);
  const py::gil_scoped_release released;
  job.kernel = kernels.linear_pack;
  fastdiff::parallel_for(op.rows_shared ? rows : columns, num_threads, body, &job);
  job.kernel = kernels.linear_multiply;
  fastdiff::parallel_for(op.rows_shared ? columns : rows, num_threads, body, &job);
}

// (address or 0, channels, strides of a sample, a row and a pixel)
using ImageArgument = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;
fastdiff::Image image_of(const ImageArgument& i) {
  return {reinterpret_cast<const float*>(std::get<0>(i)), std::get<1>(i), std::get<2>(i), std::get<3>(i),
          std::get<4>(i)};
}

fastdiff::Way way_of(const std::string& name) {
  if (name == "winograd") return fastdiff::Way::ahead;
  if (name == "winograd-on-the-fly") return fastdiff::Way::on_the_fly;
  if (name == "winograd-amx") return fastdiff::Way::in_stages;
  throw std::invalid_argument("no algorithm is " + name);
}

// How the work is divided, by name, and the floats of scratch.
std::tuple<std::map<std::string, int64_t>, int64_t> conv2d_plan(int64_t tiles, int64_t channels, int64_t out_channels,
                                                                const std::string& algorithm, int64_t threads) {
  const fastdiff::Way way = way_of(algorithm);
  if (way == fastdiff::Way::in_stages) {
    const fastdiff::StagePlan p = fastdiff::plan_stages(tiles, channels, out_channels, threads);
    return {{{"tiles", p.tiles}, {"columns", p.columns}, {"row_parts", p.row_parts}, {"column_parts", p.column_parts}},
            (fastdiff::stages_scratch(p, channels) + 3) / 4};
  }
  const int64_t panel = fastdiff::kernels().conv2d_panel();
  const fastdiff::ConvPlan p = fastdiff::plan_conv2d(tiles, channels, out_channels, panel, way, threads);
  return {{{"shared", p.shared},
           {"tile_parts", p.tile_parts},
           {"panel_parts", p.panel_parts},
           {"block", p.block},
           {"group", p.group}},
          fastdiff::conv2d_scratch(p, channels, panel, way)};
}

void conv2d_weights(uintptr_t filters, int64_t channels, int64_t panels, uintptr_t u, int num_threads) {
  struct Job {
    const float* filters;
    int64_t channels, panels;
    float* u;
    fastdiff::Conv2dWeights kernel;
  };
  Job job = {reinterpret_cast<const float*>(filters), channels, panels, reinterpret_cast<float*>(u),
             fastdiff::kernels().conv2d.weights};
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->filters, job->channels, job->panels, job->u, begin, end);
  };
  const py::gil_scoped_release released;
  fastdiff::parallel_for(panels * (channels / fastdiff::kChannelBlock), num_threads, body, &job);
}

// sizes: batch, height, width (after upsampling), log2 of the upsampling, padding, output channels, height, width.
// weights: address, and strides of an output channel, an input channel and a tap, where they are read as they are.
// scratch: of the floats that conv2d_plan says.
void conv2d(const std::vector<ImageArgument>& x, const std::array<int64_t, 8>& sizes,
            const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& weights, const std::string& algorithm,
            uintptr_t bias, uintptr_t channel_bias, int64_t channel_bias_row, const ImageArgument& residual, bool silu,
            float scale, uintptr_t out, uintptr_t scratch, int num_threads) {
  struct Job {
    fastdiff::Conv2d op;
    fastdiff::Conv2dKernel kernel;
  };
  if (x.empty() || x.size() > fastdiff::kMaxConcatenated) throw std::invalid_argument("too few or too many images");
  const auto address = [](uintptr_t a) { return reinterpret_cast<const float*>(a); };
  Job job{};
  fastdiff::Conv2d& op = job.op;
  for (const ImageArgument& image : x) {
    op.x[op.num_inputs++] = image_of(image);
    op.channels += std::get<1>(image);
  }
  op.batch = sizes[0], op.height = sizes[1], op.width = sizes[2], op.upsample = sizes[3], op.padding = sizes[4];
  op.out_channels = sizes[5], op.out_height = sizes[6], op.out_width = sizes[7];
  op.weights = address(std::get<0>(weights)), op.way = way_of(algorithm);
  op.weight_out = std::get<1>(weights), op.weight_in = std::get<2>(weights), op.weight_tap = std::get<3>(weights);
  op.bias = address(bias), op.channel_bias = address(channel_bias), op.channel_bias_row = channel_bias_row;
  op.residual = image_of(residual), op.silu = silu, op.scale = scale, op.out = reinterpret_cast<float*>(out);
  op.scratch = reinterpret_cast<float*>(scratch);
  const fastdiff::Kernels& kernels = fastdiff::kernels();
  const int64_t tiles = op.batch * fastdiff::tiles_of(op.out_height) * fastdiff::tiles_of(op.out_width);
  if (op.way == fastdiff::Way::in_stages) {
    if (!kernels.conv2d_stages.products) throw std::invalid_argument(std::string(kernels.isa) + " has no matrix units");
    const fastdiff::StagePlan plan = fastdiff::plan_stages(tiles, op.channels, op.out_channels, num_threads);
    const py::gil_scoped_release released;
    fastdiff::conv2d_in_stages(op, plan, kernels.conv2d_stages, op.scratch, num_threads);
    return;
  }
  op.plan = fastdiff::plan_conv2d(tiles, op.channels, op.out_channels, kernels.conv2d_panel(), op.way, num_threads);
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const Job* job = static_cast<const Job*>(context);
    job->kernel(job->op, begin, end);
  };
  const fastdiff::Conv2dSteps& steps = kernels.conv2d;
  const py::gil_scoped_release released;
  if (op.plan.shared) {
    job.kernel = steps.input;
    const int64_t blocks = fastdiff::round_up(op.channels, fastdiff::kChannelBlock) / fastdiff::kChannelBlock;
    fastdiff::parallel_for(op.plan.tile_parts * blocks, num_threads, body, &job);
  }
  job.kernel = steps.products;
  fastdiff::parallel_for(op.plan.tile_parts * op.plan.panel_parts, num_threads, body, &job);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled kernels of fastdiff; use them through fastdiff.ops and fastdiff.engine.";
  module.attr("MAX_INPUTS") = fastdiff::kMaxInputs;
  module.attr("MAX_OUTPUTS") = fastdiff::kMaxOutputs;
  module.attr("NORMAL_GROUP") = fastdiff::kNormalGroup;
  module.def("isa", [] { return std::string(fastdiff::kernels().isa); });
  module.def("select_isa", [](const std::string& name) { fastdiff::select_isa(name.c_str()); });
  module.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = fastdiff::supported_isas(); *name; ++name) names.emplace_back(*name);
    return names;
  });
  module.def("threading", [] { return std::string(fastdiff::threading()); });
  module.def("compiler", [] { return std::string(FASTDIFF_COMPILER); });

  bind_plan<float>(module, "PlanFloat32");
  bind_plan<double>(module, "PlanFloat64");
  bind_step_plan(module);
  module.def("padded_outputs", fastdiff::padded_outputs);
  module.def("linear_combine_float32", linear_combine<float>);
  module.def("linear_combine_float64", linear_combine<double>);
  // Called by position: names cost 0.7 us a call.
  module.def("ada_layer_norm", ada_layer_norm, py::arg("type"), py::arg("out"), py::arg("x"), py::arg("scale"),
             py::arg("shift"), py::arg("weight"), py::arg("bias"), py::arg("batch"), py::arg("rows"),
             py::arg("channels"), py::arg("eps"), py::arg("num_threads"));
  module.def("residual_ada_layer_norm", residual_ada_layer_norm);
  module.def("group_norm_silu", group_norm_silu, py::arg("type"), py::arg("out"), py::arg("x"), py::arg("weight"),
             py::arg("bias"), py::arg("scale"), py::arg("shift"), py::arg("samples"), py::arg("channels"),
             py::arg("pixels"), py::arg("groups"), py::arg("channels_last"), py::arg("silu"), py::arg("eps"),
             py::arg("num_threads"));
  module.def("ada_layer_norm_backward", ada_layer_norm_backward);
  module.def("residual_ada_layer_norm_backward", residual_ada_layer_norm_backward);
  module.def("group_norm_silu_backward", group_norm_silu_backward);
  module.attr("POOL_MINIMUM") = fastdiff::kPoolMinimum;
  module.def("pool_available", fastdiff::pool_available);
  module.def("pool_tensor", pool_tensor);
  module.def("pool_set_limit", fastdiff::pool_set_limit);
  module.def("pool_release", fastdiff::pool_release);
  module.def("pool_statistics", [] {
    const fastdiff::PoolStatistics s = fastdiff::pool_statistics();
    return std::make_tuple(s.limit, s.used, s.idle, s.mapped, s.reused);
  });
  module.def("attention", attention, py::arg("type"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("mask_type"),
             py::arg("mask"), py::arg("mask_column"), py::arg("out"), py::arg("lse"), py::arg("maps"), py::arg("sizes"),
             py::arg("scale"), py::arg("num_threads"));
  module.def("has_linear", [] { return fastdiff::kernels().linear_multiply != nullptr; });
  module.def("linear", linear, py::arg("out"), py::arg("packed"), py::arg("x"), py::arg("weights"), py::arg("gate"),
             py::arg("residual"), py::arg("activation"), py::arg("glu"), py::arg("sizes"), py::arg("num_threads"));
  module.def(
      "linear_packed_bytes",
      [](int64_t rows, int64_t inputs, int64_t outputs, bool glu) {
        fastdiff::Linear op{};
        op.batch = 1, op.rows = rows, op.inputs = inputs, op.outputs = outputs, op.glu = glu;
        op.rows_shared = fastdiff::linear_shares_rows(op);
        return fastdiff::linear_packed_bytes(op);
      },
      py::arg("rows"), py::arg("inputs"), py::arg("outputs"), py::arg("glu"));
  module.def("conv2d_panel", [] { return fastdiff::kernels().conv2d_panel(); });
  module.def("conv2d_plan", conv2d_plan, py::arg("tiles"), py::arg("channels"), py::arg("out_channels"),
             py::arg("algorithm"), py::arg("threads"));
  module.def("conv2d_weights", conv2d_weights, py::arg("filters"), py::arg("channels"), py::arg("panels"), py::arg("u"),
             py::arg("num_threads"));
  module.def("conv2d", conv2d, py::arg("x"), py::arg("sizes"), py::arg("weights"), py::arg("algorithm"),
             py::arg("bias"), py::arg("channel_bias"), py::arg("channel_bias_row"), py::arg("residual"),
             py::arg("silu"), py::arg("scale"), py::arg("out"), py::arg("scratch"), py::arg("num_threads"));
  module.attr("CONV2D_MAX_INPUTS") = fastdiff::kMaxConcatenated;
  module.attr("CONV2D_CHANNEL_BLOCK") = fastdiff::kChannelBlock;
  module.def("normal", [](uintptr_t out, int64_t count, uint64_t seed, uint64_t sample, uint32_t draw) {
    fastdiff::kernels().normal(reinterpret_cast<float*>(out), 0, count, seed, sample, draw);
  });
}

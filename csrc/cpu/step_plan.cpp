#include "fastdiff/step_plan.h"

#include <stdexcept>
#include <string>
#include <utility>

#define FASTDIFF_ISA host
#include "fastdiff/step_thread.h"

namespace fastdiff {
namespace {

struct OnCpu {
  const Step& step;

  template <class T, class H, int M, bool packed>
  void run() const {
    const int64_t threads = step_threads(step);
    for (int64_t index = 0; index < threads; ++index) host::step_thread<T, H, M, packed>(step, index);
  }
};

}  // namespace

int step_on_cpu(const void* step, int, uintptr_t) {
  const OnCpu visit{*static_cast<const Step*>(step)};
  host::visit_step(visit.step, visit);
  return 0;
}

StepTypes step_types(const std::string& state, const std::string& model) {
  if (state == "float32" && model == "float32") return StepTypes::f32_f32;
  if (state == "float32" && model == "float16") return StepTypes::f32_f16;
  if (state == "float32" && model == "bfloat16") return StepTypes::f32_bf16;
  if (state == "float64" && model == "float64") return StepTypes::f64_f64;
  throw std::invalid_argument("no step of a state in " + state + " and a model in " + model);
}

StepPlan::StepPlan(StepTypes types, int64_t batch, int64_t elements, const uint64_t* keys, int32_t* broken,
                   StepLaunch launch, int device)
    : types_(types),
      batch_(batch),
      elements_(elements),
      keys_(keys),
      broken_(broken),
      launch_(launch),
      device_(device) {
  // The number of a thread in a block is 32 bits wide, and so is the counter of the noise.
  if (batch < 0 || elements < 0 || elements > int64_t{1} << 32 || batch * ((elements + 63) / 64) > int64_t{1} << 31)
    throw std::invalid_argument("a state of " + std::to_string(batch) + " samples of " + std::to_string(elements) +
                                " numbers is too large for one launch");
}

int StepPlan::add(const std::vector<int>& kinds, const std::vector<uintptr_t>& numbers,
                  const std::vector<std::array<uintptr_t, 3>>& outputs, uintptr_t coefficients) {
  if (outputs.empty() || outputs.size() > kMaxOutputs || kinds.size() > kMaxInputs || kinds.size() != numbers.size())
    throw std::invalid_argument("a step takes 1 to " + std::to_string(kMaxOutputs) + " outputs and at most " +
                                std::to_string(kMaxInputs) + " inputs, each with a number");
  Added added = {};
  Step& step = added.step;
  for (size_t k = 0; k < kinds.size(); ++k) {
    const Source kind = static_cast<Source>(kinds[k]);
    added.kinds.push_back(kind);
    switch (kind) {
      case Source::buffer:
        step.inputs[k] = {reinterpret_cast<const void*>(numbers[k]), Read::state, 0};
        break;
      case Source::noise:  // draw 0 is the initial state
        step.inputs[k] = {nullptr, Read::noise, static_cast<uint32_t>(numbers[k]) + 1};
        break;
      default:
        step.inputs[k] = {nullptr, Read::model, 0};
        break;
    }
  }
  for (size_t m = 0; m < outputs.size(); ++m)
    step.outputs[m] = {reinterpret_cast<void*>(outputs[m][0]),
                       {reinterpret_cast<void*>(outputs[m][1]), reinterpret_cast<void*>(outputs[m][2])}};
  step.coefficients = reinterpret_cast<const void*>(coefficients);
  step.keys = keys_;
  step.broken = broken_ + steps_.size();
  step.batch = batch_;
  step.elements = elements_;
  step.num_inputs = static_cast<int32_t>(kinds.size());
  step.num_outputs = static_cast<int32_t>(outputs.size());
  step.types = types_;
  steps_.push_back(std::move(added));
  return static_cast<int>(steps_.size()) - 1;
}

// Whether four numbers in a row can be read and written at once everywhere, and none is noise.
bool StepPlan::fits(const Step& step) const {
  const uintptr_t state = types_ == StepTypes::f64_f64 ? 32 : 16;
  const uintptr_t model = types_ == StepTypes::f32_f16 || types_ == StepTypes::f32_bf16 ? 8 : state;
  const auto aligned = [](const void* p, uintptr_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; };
  if (batch_ * elements_ % 4 != 0) return false;
  for (int k = 0; k < step.num_inputs; ++k) {
    const StepInput& input = step.inputs[k];
    if (input.read == Read::noise || !aligned(input.data, input.read == Read::state ? state : model)) return false;
  }
  for (int m = 0; m < step.num_outputs; ++m) {
    const StepOutput& output = step.outputs[m];
    if (!aligned(output.state, state) || !aligned(output.model[0], model) || !aligned(output.model[1], model))
      return false;
  }
  return true;
}

int StepPlan::run(int index, const void* cond, const void* uncond, uintptr_t stream) const {
  const Added& added = steps_.at(index);
  if (batch_ * elements_ == 0) return 0;  // a launch of no threads is an error
  Step step = added.step;
  for (size_t k = 0; k < added.kinds.size(); ++k) {
    if (step.inputs[k].read == Read::model) {
      step.inputs[k].data = added.kinds[k] == Source::cond ? cond : uncond;
      if (!step.inputs[k].data) throw std::invalid_argument("this step needs an output that was not given");
    }
  }
  step.packed = fits(step);
  return launch_(&step, device_, stream);
}

}  // namespace fastdiff

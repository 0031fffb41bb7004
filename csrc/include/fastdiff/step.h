// A solver's step as a GPU does it: what a launch is given. No framework, no CUDA.
#pragma once

#include <stdint.h>

#include "fastdiff/kernels.h"

namespace fastdiff {

// Where an input of a step comes from: numbers of the state's type, numbers of the model's type, or computed noise.
enum class Read : int32_t { state = 0, model = 1, noise = 2 };

struct StepInput {
  const void* data;  // null for noise
  Read read;
  uint32_t draw;
};

// Where an output goes; null for nowhere. A sum is rounded once for each of the two types.
struct StepOutput {
  void* state;
  void* model[2];
};

// Types of the state and of the model's inputs and outputs that a step is compiled for.
enum class StepTypes : int32_t { f32_f32 = 0, f32_f16 = 1, f32_bf16 = 2, f64_f64 = 3 };

// outputs[m] = sum over k of coefficients[k * padded_outputs + m] * inputs[k] for batch * elements numbers. Everything
// that one Program has and another of the same shape has not lies in device memory: a captured launch serves them all.
struct Step {
  StepInput inputs[kMaxInputs];
  StepOutput outputs[kMaxOutputs];
  const void* coefficients;  // of the state's type
  const uint64_t* keys;      // of the noise: seed and sample number of each sample of the batch
  int32_t* broken;           // receives 1 if a result is not finite
  int64_t batch, elements;
  int32_t num_inputs, num_outputs;
  StepTypes types;
  bool packed;  // four numbers in a row a thread; else 16 apart, as the noise is laid out (see philox.h)
};

// Numbers of outputs that a step is compiled for; the others are padded with coefficients 0.
constexpr int padded_outputs(int num_outputs) { return num_outputs <= 2 ? num_outputs : num_outputs <= 4 ? 4 : 8; }

// Threads of a launch: each makes four numbers of every output.
inline int64_t step_threads(const Step& step) {
  return step.packed ? step.batch * step.elements / 4 : step.batch * ((step.elements + 63) / 64) * 16;
}

}  // namespace fastdiff

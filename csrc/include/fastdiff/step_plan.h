// A Program bound to a GPU's memory: the steps of one sampling run, each one launch.
#pragma once

#include <stdint.h>

#include <array>
#include <string>
#include <vector>

#include "fastdiff/plan.h"
#include "fastdiff/step.h"

namespace fastdiff {

// Queues a step on a stream of a device; 0 if that went well. fastdiff_cuda_step is one.
using StepLaunch = int (*)(const void* step, int device, uintptr_t stream);

// The same on the CPU, thread after thread, at once: what a GPU computes, for tests. All addresses are the CPU's.
int step_on_cpu(const void* step, int device, uintptr_t stream);

// Of a state and a model's inputs and outputs, "float32" for example. Throws std::invalid_argument if no step takes
// both.
StepTypes step_types(const std::string& state, const std::string& model);

class StepPlan {
public:
  // keys: 2 * batch numbers, see Step. broken: a number for every step that is added. All are addresses on the device.
  StepPlan(StepTypes types, int64_t batch, int64_t elements, const uint64_t* keys, int32_t* broken, StepLaunch launch,
           int device);

  // inputs: kinds and numbers, as in Plan::add, but for Source::buffer the address itself. outputs: the addresses of
  // the state and of two copies for the model, or null. coefficients: on the device, see Step. Returns the index to run
  // it by. Throws std::invalid_argument for what the kernels cannot take.
  int add(const std::vector<int>& kinds, const std::vector<uintptr_t>& numbers,
          const std::vector<std::array<uintptr_t, 3>>& outputs, uintptr_t coefficients);

  // Queue a step; cond and uncond are the network's outputs, in the model's type. Returns what the launch returned.
  int run(int index, const void* cond, const void* uncond, uintptr_t stream) const;

private:
  struct Added {
    Step step;
    std::vector<Source> kinds;
  };
  bool fits(const Step& step) const;

  StepTypes types_;
  int64_t batch_, elements_;
  const uint64_t* keys_;
  int32_t* broken_;
  StepLaunch launch_;
  int device_;
  std::vector<Added> steps_;
};

}  // namespace fastdiff

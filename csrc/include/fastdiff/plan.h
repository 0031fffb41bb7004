// A Program bound to memory: the combines of one sampling run as tables, so that a step costs one call.
#pragma once

#include <stdint.h>

#include <vector>

#include "fastdiff/kernels.h"

namespace fastdiff {

// Where an input of a combine comes from; the Python side uses the same numbers.
enum class Source : int { buffer = 0, cond = 1, uncond = 2, noise = 3 };

template <class T>
class Plan {
public:
  // buffers: batch * elements values each. copies: for each buffer a second place that receives what is written to it,
  // or null. seeds, samples: the counter-based noise of each sample of the batch.
  Plan(std::vector<T*> buffers, std::vector<T*> copies, int64_t batch, int64_t elements, std::vector<uint64_t> seeds,
       std::vector<uint64_t> samples, int num_threads);

  // outputs[m] := sum over k of coefficients[k * outputs.size() + m] * input k, which is number numbers[k] of kind
  // kinds[k]. Returns the index to run it by. Throws std::invalid_argument for what the kernels cannot take.
  int add(const std::vector<int>& outputs, const std::vector<int>& kinds, const std::vector<int>& numbers,
          const std::vector<double>& coefficients);

  // Read noise `draw` from memory instead of computing it; null goes back.
  void set_noise(int draw, const T* values);

  // Run a combine on the network's outputs. Returns whether every result is finite.
  bool run(int combine, const T* cond, const T* uncond) const;

private:
  struct Combine {
    std::vector<T*> outputs, copies;
    std::vector<Source> kinds;
    std::vector<int> numbers;
    std::vector<T> coefficients;
  };
  struct Task;

  std::vector<T*> buffers_, copies_;
  int64_t batch_, elements_;
  std::vector<uint64_t> seeds_, samples_;
  int num_threads_;
  std::vector<Combine> combines_;
  std::vector<const T*> noises_;
};

extern template class Plan<float>;
extern template class Plan<double>;

}  // namespace fastdiff

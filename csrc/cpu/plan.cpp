#include "fastdiff/plan.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

#include "fastdiff/arena.h"
#include "fastdiff/parallel.h"

namespace fastdiff {
namespace {

constexpr int64_t kTile = 16 * kNormalGroup;   // elements whose noise is computed at a time, to stay in L1
constexpr int64_t kSerialValues = 128 * 1024;  // values read and written below which threads cost more than they save

LinearCombine<float> linear_combine(const Kernels& kernels, const float*) { return kernels.linear_combine_f32; }
LinearCombine<double> linear_combine(const Kernels& kernels, const double*) { return kernels.linear_combine_f64; }

// Noise is computed in float32 and widened where it must be, so that both precisions see the same.
void widen(const float* from, float* to, int64_t size) {
  if (from != to) std::copy(from, from + size, to);
}
void widen(const float* from, double* to, int64_t size) { std::copy(from, from + size, to); }

}  // namespace

template <class T>
Plan<T>::Plan(std::vector<T*> buffers, std::vector<T*> copies, int64_t batch, int64_t elements,
              std::vector<uint64_t> seeds, std::vector<uint64_t> samples, int num_threads)
    : buffers_(std::move(buffers)),
      copies_(std::move(copies)),
      batch_(batch),
      elements_(elements),
      seeds_(std::move(seeds)),
      samples_(std::move(samples)),
      num_threads_(num_threads) {
  if (copies_.size() != buffers_.size()) throw std::invalid_argument("one copy (or null) a buffer");
  if (!seeds_.empty() && (static_cast<int64_t>(seeds_.size()) != batch || samples_.size() != seeds_.size()))
    throw std::invalid_argument("one seed and one sample number a sample");
}

template <class T>
int Plan<T>::add(const std::vector<int>& outputs, const std::vector<int>& kinds, const std::vector<int>& numbers,
                 const std::vector<double>& coefficients) {
  const size_t inputs = kinds.size();
  if (outputs.empty() || outputs.size() > kMaxOutputs || inputs > kMaxInputs)
    throw std::invalid_argument("a combine takes 1 to " + std::to_string(kMaxOutputs) + " outputs and at most " +
                                std::to_string(kMaxInputs) + " inputs");
  if (numbers.size() != inputs || coefficients.size() != inputs * outputs.size())
    throw std::invalid_argument("one number an input, and one coefficient an input and output");
  Combine combine;
  for (int slot : outputs) {
    combine.outputs.push_back(buffers_.at(slot));
    combine.copies.push_back(copies_.at(slot));
  }
  for (size_t k = 0; k < inputs; ++k) {
    const Source kind = static_cast<Source>(kinds[k]);
    if (kind == Source::buffer) buffers_.at(numbers[k]);  // throws if it is not there
    if (kind == Source::noise && numbers[k] >= static_cast<int>(noises_.size()))
      noises_.resize(numbers[k] + 1, nullptr);
    combine.kinds.push_back(kind);
  }
  combine.numbers = numbers;
  combine.coefficients.assign(coefficients.begin(), coefficients.end());
  combines_.push_back(std::move(combine));
  return static_cast<int>(combines_.size()) - 1;
}

template <class T>
void Plan<T>::set_noise(int draw, const T* values) {
  noises_.at(draw) = values;
}

// What the threads of one run share: the inputs, null where the noise is to be computed.
template <class T>
struct Plan<T>::Task {
  const Plan* plan;
  const Combine* combine;
  const Kernels* kernels;  // looked up before the threads start, since the look-up may throw
  const T* inputs[kMaxInputs];
  std::atomic<bool> finite{true};

  // The elements [begin, end) of the whole batch, all inputs in memory.
  void run(int64_t begin, int64_t end) { run(inputs, 0, begin, end - begin); }

  // `in` holds element `first` at index `first - base`.
  void run(const T* const* in, int64_t base, int64_t first, int64_t size) {
    const T* from[kMaxInputs];
    T *to[kMaxOutputs], *copies[kMaxOutputs];
    const int num_inputs = static_cast<int>(combine->kinds.size()),
              num_outputs = static_cast<int>(combine->outputs.size());
    for (int k = 0; k < num_inputs; ++k) from[k] = inputs[k] ? inputs[k] + first : in[k] + (first - base);
    for (int m = 0; m < num_outputs; ++m) {
      to[m] = combine->outputs[m] + first;
      copies[m] = combine->copies[m] ? combine->copies[m] + first : nullptr;
    }
    const T* coefficients = combine->coefficients.data();
    if (!linear_combine(*kernels, coefficients)(from, num_inputs, to, copies, num_outputs, coefficients, size))
      finite.store(false, std::memory_order_relaxed);
  }

  // Tiles [begin, end), numbered through all samples, computing their noise.
  void run_with_noise(int64_t begin, int64_t end) {
    const int64_t tiles = (plan->elements_ + kTile - 1) / kTile;
    alignas(64) float normal[kTile];
    Arena arena;
    T* noise[kMaxInputs] = {};  // of the inputs that are to be computed
    for (size_t k = 0; k < combine->kinds.size(); ++k)
      if (!inputs[k]) noise[k] = arena.take<T>(kTile);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t sample = tile / tiles, first = tile % tiles * kTile;
      const int64_t size = std::min(kTile, plan->elements_ - first);
      for (size_t k = 0; k < combine->kinds.size(); ++k) {
        if (inputs[k]) continue;
        kernels->normal(normal, first, size, plan->seeds_[sample], plan->samples_[sample],
                        static_cast<uint32_t>(combine->numbers[k]) + 1);  // draw 0 is the initial state
        widen(normal, noise[k], size);
      }
      const int64_t start = sample * plan->elements_ + first;
      run(noise, start, start, size);
    }
  }
};

template <class T>
bool Plan<T>::run(int index, const T* cond, const T* uncond) const {
  const Combine& combine = combines_.at(index);
  if (batch_ * elements_ == 0) return true;  // empty tensors have no address
  Task task;
  task.plan = this;
  task.combine = &combine;
  task.kernels = &kernels();
  bool computes_noise = false;
  for (size_t k = 0; k < combine.kinds.size(); ++k) {
    const int number = combine.numbers[k];
    switch (combine.kinds[k]) {
      case Source::buffer:
        task.inputs[k] = buffers_[number];
        break;
      case Source::cond:
        task.inputs[k] = cond;
        break;
      case Source::uncond:
        task.inputs[k] = uncond;
        break;
      case Source::noise:
        task.inputs[k] = noises_[number];
        break;
    }
    if (task.inputs[k]) continue;
    if (combine.kinds[k] != Source::noise)
      throw std::invalid_argument("this combine needs an output that was not given");
    if (seeds_.empty()) throw std::invalid_argument("this combine needs noise, and there are no seeds");
    computes_noise = true;
  }
  const int64_t size = batch_ * elements_;
  const int64_t values = size * static_cast<int64_t>(combine.kinds.size() + combine.outputs.size());
  if (computes_noise) {
    const int64_t tiles = batch_ * ((elements_ + kTile - 1) / kTile);
    parallel_for(tiles, size > 8 * kTile ? num_threads_ : 1,
                 [&](int64_t begin, int64_t end) { task.run_with_noise(begin, end); });
  } else {
    parallel_for(size, values > kSerialValues ? num_threads_ : 1,
                 [&](int64_t begin, int64_t end) { task.run(begin, end); });
  }
  return task.finite.load();
}

template class Plan<float>;
template class Plan<double>;

}  // namespace fastdiff

#include "fastdiff/drivers.h"
#include "fastdiff/plan.h"

namespace fastdiff {

template <class T>
bool linear_combine(const std::vector<T*>& inputs, const std::vector<T*>& outputs,
                    const std::vector<double>& coefficients, int64_t size, int threads) {
  std::vector<T*> buffers = outputs;
  buffers.insert(buffers.end(), inputs.begin(), inputs.end());
  Plan<T> plan(buffers, std::vector<T*>(buffers.size(), nullptr), 1, size, {}, {}, threads);
  std::vector<int> out_slots, kinds(inputs.size(), 0), numbers;
  for (size_t m = 0; m < outputs.size(); ++m) out_slots.push_back(static_cast<int>(m));
  for (size_t k = 0; k < inputs.size(); ++k) numbers.push_back(static_cast<int>(outputs.size() + k));
  return plan.run(plan.add(out_slots, kinds, numbers, coefficients), nullptr, nullptr);
}

template bool linear_combine(const std::vector<float*>&, const std::vector<float*>&, const std::vector<double>&,
                             int64_t, int);
template bool linear_combine(const std::vector<double*>&, const std::vector<double*>&, const std::vector<double>&,
                             int64_t, int);

}  // namespace fastdiff

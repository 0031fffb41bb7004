// What one thread does in a solver's step (see step.h). The CPU runs the same for tests: csrc/cpu/step_plan.cpp.
#pragma once

#include "fastdiff/half.h"
#include "fastdiff/linear_combine.h"
#include "fastdiff/philox.h"
#include "fastdiff/step.h"

namespace fastdiff::FASTDIFF_ISA {

FASTDIFF_DEVICE float from_memory(float x) { return x; }
FASTDIFF_DEVICE double from_memory(double x) { return x; }
FASTDIFF_DEVICE float from_memory(bfloat16 x) { return widen(x); }
FASTDIFF_DEVICE float from_memory(float16 x) { return widen(x); }
FASTDIFF_DEVICE void to_memory(float x, float* p) { *p = x; }
FASTDIFF_DEVICE void to_memory(double x, double* p) { *p = x; }
FASTDIFF_DEVICE void to_memory(float x, bfloat16* p) { *p = narrow(x, bfloat16{}); }
FASTDIFF_DEVICE void to_memory(float x, float16* p) { *p = narrow(x, float16{}); }

// Four numbers that are read and written at once.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// The numbers of a thread: `first`, and three more `stride` apart, of which `count` are there.
template <bool packed>
struct Place {
  int64_t first;
  int count;

  template <class H, class T>
  FASTDIFF_DEVICE void load(const void* from, T (&x)[4]) const {
    const H* p = static_cast<const H*>(from) + first;
    if (packed) {
      const Four<H> four = *reinterpret_cast<const Four<H>*>(p);
      for (int u = 0; u < 4; ++u) x[u] = from_memory(four.v[u]);
    } else {
      for (int u = 0; u < 4; ++u) x[u] = u < count ? T(from_memory(p[16 * u])) : T(0);
    }
  }
  template <class H, class T>
  FASTDIFF_DEVICE void store(void* to, const T (&x)[4]) const {
    H* p = static_cast<H*>(to) + first;
    if (packed) {
      Four<H> four;
      for (int u = 0; u < 4; ++u) to_memory(x[u], &four.v[u]);
      *reinterpret_cast<Four<H>*>(p) = four;
    } else {
      for (int u = 0; u < 4; ++u)
        if (u < count) to_memory(x[u], p + 16 * u);
    }
  }
};

// Thread `index` of step_threads(step). T: the state's type; H: the model's; M: padded_outputs.
template <class T, class H, int M, bool packed>
FASTDIFF_DEVICE void step_thread(const Step& step, int64_t index) {
  Place<packed> place;
  int64_t sample = 0;
  uint32_t counter = 0;  // of the noise: element 16 u + i of group g is normal u of counter 16 g + i
  if (packed) {
    place = {4 * index, 4};
  } else {
    const int64_t counters = (step.elements + 63) / 64 * 16;
    sample = index / counters;
    counter = static_cast<uint32_t>(index % counters);
    const int64_t element = int64_t{counter / 16} * 64 + counter % 16, left = step.elements - element;
    if (left <= 0) return;
    place = {sample * step.elements + element, left > 48 ? 4 : static_cast<int>((left + 15) / 16)};
  }
  T sums[M][4];
  weighted_sums(sums, static_cast<const T*>(step.coefficients), step.num_inputs, [&](int k, T(&x)[4]) {
    const StepInput& input = step.inputs[k];
    if (input.read == Read::state) {
      place.template load<T>(input.data, x);
    } else if (input.read == Read::model) {
      place.template load<H>(input.data, x);
    } else if (!packed) {
      float z[4];
      normal_four(counter, step.keys[2 * sample], step.keys[2 * sample + 1], input.draw, &z[0], &z[1], &z[2], &z[3]);
      for (int u = 0; u < 4; ++u) x[u] = z[u];
    }
  });
  T check = 0;  // 0 * y is 0 for a finite y and NaN for the others, and a NaN stays in the sum
  FASTDIFF_UNROLL
  for (int m = 0; m < M; ++m) {
    if (m >= step.num_outputs) continue;
    const StepOutput& output = step.outputs[m];
    if (output.state) place.template store<T>(output.state, sums[m]);
    for (int copy = 0; copy < 2; ++copy)
      if (output.model[copy]) place.template store<H>(output.model[copy], sums[m]);
    for (int u = 0; u < 4; ++u) check += 0 * sums[m][u];
  }
  if (!(check == 0)) *step.broken = 1;
}

// Calls visit.run<T, H, M, packed>() for the types and sizes of a step.
template <class T, class H, class Visit>
inline void visit_sizes(const Step& step, Visit& visit) {
  const bool packed = step.packed;
  switch (padded_outputs(step.num_outputs)) {
    case 1:
      packed ? visit.template run<T, H, 1, true>() : visit.template run<T, H, 1, false>();
      break;
    case 2:
      packed ? visit.template run<T, H, 2, true>() : visit.template run<T, H, 2, false>();
      break;
    case 4:
      packed ? visit.template run<T, H, 4, true>() : visit.template run<T, H, 4, false>();
      break;
    default:
      packed ? visit.template run<T, H, 8, true>() : visit.template run<T, H, 8, false>();
      break;
  }
}
template <class Visit>
inline void visit_step(const Step& step, Visit& visit) {
  switch (step.types) {
    case StepTypes::f32_f32:
      visit_sizes<float, float>(step, visit);
      break;
    case StepTypes::f32_f16:
      visit_sizes<float, float16>(step, visit);
      break;
    case StepTypes::f32_bf16:
      visit_sizes<float, bfloat16>(step, visit);
      break;
    case StepTypes::f64_f64:
      visit_sizes<double, double>(step, visit);
      break;
  }
}

}  // namespace fastdiff::FASTDIFF_ISA

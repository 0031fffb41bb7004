// A driver called by Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "fastdiff/parallel.h"

namespace fastdiff {

// Calls a driver without Python's lock. Not where the work is on few numbers: releasing the lock and taking it again
// costs about 0.1 us, a tenth of a small norm, and where another thread of Python waits for it, up to the interval at
// which these take turns, 5 ms.
template <class Op>
void run(void (*driver)(Op, int), const std::common_type_t<Op>& op, int threads, int64_t numbers = INT64_MAX) {
  if (numbers <= kSerialElements) return driver(op, threads);
  const pybind11::gil_scoped_release released;
  driver(op, threads);
}

}  // namespace fastdiff

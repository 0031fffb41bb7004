// Work split over threads.
#pragma once

#include <stdint.h>

namespace fastdiff {

// A kernel over fewer numbers than this is not worth waking a thread for.
constexpr int64_t kSerialElements = 32768;

// Calls body(begin, end) on ranges that cover [0, count), on at most `num_threads` threads, this one included. With
// OpenMP they are the threads of torch's own runtime, which is already loaded; elsewhere a pool of our own.
void parallel_ranges(int64_t count, int num_threads, void (*body)(const void* context, int64_t begin, int64_t end),
                     const void* context);
template <class Body>
void parallel_for(int64_t count, int num_threads, const Body& body) {
  const auto call = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  parallel_ranges(count, num_threads, call, &body);
}

// "OpenMP" or "std::thread".
const char* threading();

}  // namespace fastdiff

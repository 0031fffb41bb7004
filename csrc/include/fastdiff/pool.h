// Memory for large results that is kept when a tensor dies and used again by the next one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "fastdiff/dlpack.h"

namespace fastdiff {

// Results from this size on come from the pool: glibc's malloc maps those afresh for every call (its
// DEFAULT_MMAP_THRESHOLD_MAX), and the kernel clears each page when it is first written.
constexpr size_t kPoolMinimum = size_t{4} << 20;

// Whether there is a pool on this system.
bool pool_available();

// Memory without values, in whole huge pages, to be given back as it is. Throws std::bad_alloc if there is none.
struct PoolBlock {
  char* data = nullptr;
  size_t size = 0;
};
PoolBlock pool_take(size_t bytes);
void pool_give(PoolBlock block);

// A tensor on the CPU without values. The consumer calls its deleter, which gives the memory back; no lock of Python's
// is needed for that. Throws std::bad_alloc if there is no memory, std::invalid_argument for a negative size.
DLManagedTensor* pool_tensor(const std::vector<int64_t>& shape, bool channels_last, DLDataType dtype);

// At most this many bytes are kept while no tensor uses them. What is over is returned to the system, highest addresses
// first.
void pool_set_limit(size_t bytes);

struct PoolStatistics {
  size_t limit, used, idle;  // bytes: allowed to be idle; of living tensors; kept for the next ones
  size_t mapped, reused;     // blocks taken so far: from the system; from those kept
};
PoolStatistics pool_statistics();

// Returns all idle memory to the system; the bytes.
size_t pool_release();

}  // namespace fastdiff

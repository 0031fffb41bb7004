// Blocks of whole huge pages, mapped once and used by one tensor after the other.
#include "fastdiff/pool.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <stdexcept>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastdiff {

#if defined(__linux__)

namespace {

constexpr size_t kPage = size_t{2} << 20;  // a huge page

struct Block {
  char* data = nullptr;
  size_t size = 0;
};

// Whole huge pages at a multiple of their size: so much more is mapped, and both ends are returned.
Block map(size_t size) {
  void* address = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return {};
  char* data = static_cast<char*>(address);
  const size_t before = (kPage - reinterpret_cast<uintptr_t>(data) % kPage) % kPage;
  if (before) munmap(data, before);
  data += before;
  if (kPage - before) munmap(data + size, kPage - before);
  madvise(data, size, MADV_HUGEPAGE);  // advice: without huge pages it is slower and no less right
  return {data, size};
}

class Pool {
 public:
  // Never destroyed: tensors may outlive every static object.
  static Pool& get() {
    static Pool* pool = [] {
      Pool* made = new Pool;
      // A fork while another thread holds the mutex would leave it locked in the child for ever. And what is idle would be
      // copied page by page as the child writes to it: the child starts without.
      pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); },
                     [] {
                       get().trim(0);
                       get().mutex_.unlock();
                     });
      return made;
    }();
    return *pool;
  }

  Block take(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that fits without wasting more than a quarter; of equal ones that used last.
    auto best = idle_.end();
    for (auto block = idle_.begin(); block != idle_.end(); ++block)
      if (block->size >= size && block->size <= size + size / 4 && (best == idle_.end() || block->size <= best->size))
        best = block;
    Block block;
    if (best != idle_.end()) {
      block = *best;
      idle_.erase(best);
      statistics_.idle -= block.size;
      ++statistics_.reused;
    } else {
      block = map(size);
      if (!block.data) {
        trim(0);
        block = map(size);
      }
      if (!block.data) throw std::bad_alloc();
      ++statistics_.mapped;
    }
    statistics_.used += block.size;
    return block;
  }

  void give(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    statistics_.used -= block.size;
    if (block.size <= statistics_.limit) {
      trim(statistics_.limit - block.size);
      try {
        idle_.push_back(block);
        statistics_.idle += block.size;
        return;
      } catch (const std::bad_alloc&) {  // no memory to note it down: it is not kept
      }
    }
    munmap(block.data, block.size);
  }

  void set_limit(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    statistics_.limit = bytes;
    trim(bytes);
  }

  size_t release() {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t before = statistics_.idle;
    trim(0);
    return before;
  }

  PoolStatistics statistics() {
    std::lock_guard<std::mutex> lock(mutex_);
    return statistics_;
  }

 private:
  // With the mutex held: the oldest idle blocks go until at most `bytes` are left.
  void trim(size_t bytes) {
    auto block = idle_.begin();
    for (; block != idle_.end() && statistics_.idle > bytes; ++block) {
      munmap(block->data, block->size);
      statistics_.idle -= block->size;
    }
    idle_.erase(idle_.begin(), block);
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // the one that became idle last is the last
  PoolStatistics statistics_{};
};

// What a tensor of the pool holds until its deleter is called.
struct Held {
  DLManagedTensor managed;
  Block block;
  std::vector<int64_t> shape, strides;
};

}  // namespace

bool pool_available() { return true; }

DLManagedTensor* pool_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, DLDataType dtype) {
  size_t bytes = dtype.bits / 8;
  for (int64_t size : shape) {
    if (size < 0) throw std::invalid_argument("a negative size");
    if (size > 0 && bytes > SIZE_MAX / 2 / static_cast<size_t>(size)) throw std::bad_alloc();
    bytes *= static_cast<size_t>(size);
  }
  Held* held = new Held{{}, {}, shape, strides};
  try {
    held->block = Pool::get().take(bytes);
  } catch (const std::bad_alloc&) {
    delete held;
    throw;
  }
  held->managed = {{held->block.data, {kDLCPU, 0}, static_cast<int32_t>(shape.size()), dtype, held->shape.data(),
                    held->strides.data(), 0},
                   held,
                   [](DLManagedTensor* self) {
                     Held* held = static_cast<Held*>(self->context);
                     Pool::get().give(held->block);
                     delete held;
                   }};
  return &held->managed;
}

void pool_set_limit(size_t bytes) { Pool::get().set_limit(bytes); }
PoolStatistics pool_statistics() { return Pool::get().statistics(); }
size_t pool_release() { return Pool::get().release(); }

#else

bool pool_available() { return false; }
DLManagedTensor* pool_tensor(const std::vector<int64_t>&, const std::vector<int64_t>&, DLDataType) { throw std::bad_alloc(); }
void pool_set_limit(size_t) {}
PoolStatistics pool_statistics() { return {}; }
size_t pool_release() { return 0; }

#endif

}  // namespace fastdiff

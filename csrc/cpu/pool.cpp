// Blocks of whole huge pages, cut from a few large mappings and joined again when they are free, so that tensors of any
// sizes use the same memory one after the other.
#include "fastdiff/pool.h"

#include <algorithm>
#include <map>
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

constexpr size_t kPage = size_t{2} << 20;     // a huge page
constexpr size_t kMapping = size_t{1} << 30;  // of addresses; memory comes with the first write

// Whole huge pages at a multiple of their size: so much more is mapped, and both ends are returned.
PoolBlock map(size_t size) {
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
      // A fork while another thread holds the mutex would leave it locked in the child for ever. And what is idle would
      // be copied page by page as the child writes to it: the child starts without.
      pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); },
                     [] {
                       get().trim(0);
                       get().mutex_.unlock();
                     });
      return made;
    }();
    return *pool;
  }

  PoolBlock take(size_t bytes) {
    const size_t size = std::max(kPage, (bytes + kPage - 1) / kPage * kPage);
    std::lock_guard<std::mutex> lock(mutex_);
    Run best = find(size);
    if (!best.size) {
      grow(size);
      best = find(size);
    }
    const PoolBlock block = {best.data, size};
    cut(block);
    ++(best.written < size ? statistics_.mapped : statistics_.reused);
    statistics_.used += size;
    return block;
  }

  void give(PoolBlock block) {
    std::lock_guard<std::mutex> lock(mutex_);
    statistics_.used -= block.size;
    try {
      add(block, true);
      trim(statistics_.limit);
    } catch (const std::bad_alloc&) {  // no memory to note it down: it is not kept
      munmap(block.data, block.size);
    }
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
  // Memory that no tensor uses. written: the system has given pages for it, and they were not returned.
  struct Free {
    size_t size;
    bool written;
  };
  // Free ranges one after the other: how much of the bytes that were asked for is written.
  struct Run {
    char* data = nullptr;
    size_t size = 0, written = 0;
  };
  using Ranges = std::map<char*, Free>;

  // All of these are called with the mutex held.

  // Where `size` bytes fit: where most of them are written, and then in the smallest such place. No size if there is
  // none.
  Run find(size_t size) const {
    Run best, run;
    const auto consider = [&] {
      const bool better = run.written > best.written || (run.written == best.written && run.size < best.size);
      if (run.size >= size && (!best.size || better)) best = run;
    };
    for (const auto& [data, range] : free_) {
      if (run.data + run.size != data) {
        consider();
        run = {data, 0, 0};
      }
      if (range.written && run.size < size) run.written += std::min(range.size, size - run.size);
      run.size += range.size;
    }
    consider();
    return best;
  }

  void grow(size_t size) {
    PoolBlock made = map(std::max(size, kMapping));
    if (!made.data) made = map(size);
    if (!made.data) throw std::bad_alloc();
    add(made, false);
  }

  // The block is no longer free.
  void cut(PoolBlock block) {
    auto range = free_.lower_bound(block.data);
    while (block.size) {
      const Free found = range->second;
      const size_t size = std::min(found.size, block.size);
      if (found.written) statistics_.idle -= size;
      if (size < found.size) free_.emplace(range->first + size, Free{found.size - size, found.written});
      free_.erase(range);
      block = {block.data + size, block.size - size};
      range = free_.find(block.data);
    }
  }

  // The block is free, and one with its neighbours that are like it.
  void add(PoolBlock block, bool written) {
    const size_t more = written ? block.size : 0;
    auto next = free_.lower_bound(block.data);
    if (next != free_.end() && next->first == block.data + block.size && next->second.written == written) {
      block.size += next->second.size;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      auto& [data, range] = *std::prev(next);
      if (data + range.size == block.data && range.written == written) {
        range.size += block.size;
        statistics_.idle += more;
        return;
      }
    }
    free_.emplace_hint(next, block.data, Free{block.size, written});
    statistics_.idle += more;
  }

  // Pages go back to the system, the highest addresses first, until at most `bytes` are idle.
  void trim(size_t bytes) {
    while (statistics_.idle > bytes) {
      auto range = std::prev(free_.end());
      while (!range->second.written) --range;
      const size_t size = std::min(range->second.size, (statistics_.idle - bytes + kPage - 1) / kPage * kPage);
      const PoolBlock block = {range->first + range->second.size - size, size};
      madvise(block.data, block.size, MADV_DONTNEED);
      cut_end(range, size);
      add(block, false);
    }
  }
  void cut_end(Ranges::iterator range, size_t size) {
    statistics_.idle -= size;
    range->second.size -= size;
    if (!range->second.size) free_.erase(range);
  }

  std::mutex mutex_;
  Ranges free_;
  PoolStatistics statistics_{};
};

// What a tensor of the pool holds until its deleter is called.
struct Held {
  DLManagedTensor managed;
  PoolBlock block;
  std::vector<int64_t> shape, strides;
};

}  // namespace

bool pool_available() { return true; }
PoolBlock pool_take(size_t bytes) { return Pool::get().take(bytes); }
void pool_give(PoolBlock block) { Pool::get().give(block); }

// In elements. channels_last: the second dimension is the innermost.
static std::vector<int64_t> dense_strides(const std::vector<int64_t>& shape, bool channels_last) {
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  if (channels_last) strides[1] = step, step *= shape[1];
  for (size_t i = shape.size(); i-- > 0;) {
    if (channels_last && i == 1) continue;
    strides[i] = step, step *= shape[i];
  }
  return strides;
}

DLManagedTensor* pool_tensor(const std::vector<int64_t>& shape, bool channels_last, DLDataType dtype) {
  if (channels_last && shape.size() < 2) throw std::invalid_argument("channels-last needs channels");
  size_t bytes = dtype.bits / 8;
  for (int64_t size : shape) {
    if (size < 0) throw std::invalid_argument("a negative size");
    if (size > 0 && bytes > SIZE_MAX / 2 / static_cast<size_t>(size)) throw std::bad_alloc();
    bytes *= static_cast<size_t>(size);
  }
  Held* held = new Held{{}, {}, shape, dense_strides(shape, channels_last)};
  try {
    held->block = Pool::get().take(bytes);
  } catch (const std::bad_alloc&) {
    delete held;
    throw;
  }
  held->managed = {{held->block.data,
                    {kDLCPU, 0},
                    static_cast<int32_t>(shape.size()),
                    dtype,
                    held->shape.data(),
                    held->strides.data(),
                    0},
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
PoolBlock pool_take(size_t) { throw std::bad_alloc(); }
void pool_give(PoolBlock) {}
DLManagedTensor* pool_tensor(const std::vector<int64_t>&, bool, DLDataType) { throw std::bad_alloc(); }
void pool_set_limit(size_t) {}
PoolStatistics pool_statistics() { return {}; }
size_t pool_release() { return 0; }

#endif

}  // namespace fastdiff

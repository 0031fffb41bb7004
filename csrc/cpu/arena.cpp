#include "fastdiff/arena.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdiff {
namespace {

constexpr size_t kLine = 64, kPage = 4096, kHugePage = size_t{2} << 20;
// From this size on a block is of huge pages: what writes to many places at once, as Winograd's transforms do to 36,
// would need more pages of 4 KiB than the processor keeps the addresses of.
constexpr size_t kLarge = size_t{512} << 10;

// With AddressSanitizer every piece is a block of its own, so that it sees what is written beside one.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTDIFF_APART
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(FASTDIFF_APART)
constexpr bool kApart = true;
#else
constexpr bool kApart = false;
#endif

size_t round_up(size_t size, size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

void* allocate(size_t alignment, size_t size) {
#if defined(_MSC_VER)
  void* data = _aligned_malloc(size, alignment);
#else
  void* data = std::aligned_alloc(alignment, size);
#endif
  if (!data) throw std::bad_alloc();
  return data;
}

void release(void* data) {
#if defined(_MSC_VER)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

// The thread's block. wanted: what the arenas that live would use if it were large enough; most: the largest so far.
struct Stack {
  char* data = nullptr;
  size_t size = 0, used = 0, wanted = 0, most = 0;

  void grow(size_t bytes) {
    if (data) release(data);
    data = nullptr, size = 0;
    const size_t page = bytes < kLarge ? kPage : kHugePage, whole = round_up(bytes, page);
    data = static_cast<char*>(allocate(page, whole));
    size = whole;
#if defined(__linux__)
    if (page == kHugePage)
      madvise(data, whole, MADV_HUGEPAGE);  // advice: without huge pages it is slower, no less right
#endif
  }
  ~Stack() {
    if (data) release(data);
  }
};

thread_local Stack stack;

std::atomic<bool> poisoned{false};

}  // namespace

Arena::Arena() : used_(stack.used), wanted_(stack.wanted) {}

Arena::~Arena() {
  for (void* data : apart_) release(data);
  for (const PoolBlock& block : pooled_) pool_give(block);
  stack.used = used_, stack.wanted = wanted_;
}

void* Arena::bytes(size_t size) {
  void* data = find(size = round_up(size, kLine));
  if (poisoned.load(std::memory_order_relaxed)) std::memset(data, 0xff, size);  // a NaN of every type
  return data;
}

void* Arena::find(size_t size) {
  if (kApart || size >= kPoolMinimum) return apart(size);
  stack.wanted += size;
  stack.most = std::max(stack.most, stack.wanted);
  if (!stack.used && stack.size < stack.most) stack.grow(stack.most);
  if (stack.used + size > stack.size) return apart(size);  // the next time the block is large enough for all
  void* data = stack.data + stack.used;
  stack.used += size;
  return data;
}

// Of its own, until the arena ends.
void* Arena::apart(size_t size) {
  if (!kApart && size >= kPoolMinimum && pool_available()) {
    pooled_.reserve(pooled_.size() + 1);
    pooled_.push_back(pool_take(size));
    return pooled_.back().data;
  }
  apart_.reserve(apart_.size() + 1);
  apart_.push_back(allocate(kLine, std::max(size, kLine)));
  return apart_.back();
}

void poison_arenas(bool poison) { poisoned.store(poison, std::memory_order_relaxed); }

}  // namespace fastdiff

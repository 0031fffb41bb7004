// One block a thread, as large as the largest that it asked for, in huge pages where they are to be had.
#include "fastdiff/scratch.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdiff {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

struct Block {
  void* data = nullptr;
  size_t size = 0;

  void free() {
#if defined(_MSC_VER)
    _aligned_free(data);
#else
    std::free(data);
#endif
    data = nullptr, size = 0;
  }
  void grow(size_t bytes) {
    free();
    const size_t page = bytes < kHugePage ? kPage : kHugePage, whole = (bytes + page - 1) / page * page;
#if defined(_MSC_VER)
    data = _aligned_malloc(whole, page);
#else
    data = std::aligned_alloc(page, whole);
#endif
    if (!data) throw std::bad_alloc();
    size = whole;
#if defined(__linux__)
    if (page == kHugePage)
      madvise(data, whole, MADV_HUGEPAGE);  // advice: without huge pages it is slower and no less right
#endif
  }
  ~Block() { free(); }
};

thread_local Block block;

}  // namespace

void* scratch(int64_t bytes) {
  if (!block.data || block.size < static_cast<size_t>(bytes)) block.grow(static_cast<size_t>(bytes));
  return block.data;
}

}  // namespace fastdiff

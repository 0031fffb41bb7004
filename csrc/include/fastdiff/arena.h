// Memory for a function to work in.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "fastdiff/pool.h"

namespace fastdiff {

// Everything taken from it lives until the arena ends. Small blocks are cut from one that the thread keeps from call to
// call, in huge pages where it is large; those from kPoolMinimum on come from the pool and go back to it. An arena made
// while another one of the thread lives goes on behind it, and is the only one to take from meanwhile.
class Arena {
public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Room for `count` numbers at a multiple of 64 bytes, with whatever is there. Throws std::bad_alloc.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(static_cast<size_t>(count) * sizeof(T)));
  }

private:
  void* bytes(size_t size);
  void* find(size_t size);
  void* apart(size_t size);

  size_t used_, wanted_;  // of the thread's block when the arena began
  std::vector<void*> apart_;
  std::vector<PoolBlock> pooled_;
};

// For tests: from now on what is taken is filled with NaN, or, as usual, not.
void poison_arenas(bool poison);

}  // namespace fastdiff

// Memory for what a kernel packs: each thread's own, kept from call to call.
#pragma once

#include <stdint.h>

namespace fastdiff {

// At least `bytes`, at a multiple of 4096, with whatever is there; this thread's until its next call. Throws
// std::bad_alloc.
void* scratch(int64_t bytes);

}  // namespace fastdiff

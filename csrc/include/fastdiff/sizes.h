// Arithmetic of sizes.
#pragma once

#include <stdint.h>

namespace fastdiff {

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace fastdiff

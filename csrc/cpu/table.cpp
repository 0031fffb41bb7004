// The kernels of one instruction set, together. Compiled once an instruction set (see simd.h).
#include "fastdiff/kernels.h"
#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {

FASTDIFF_KERNELS(FASTDIFF_DECLARE)

#define FASTDIFF_STRING_(x) #x
#define FASTDIFF_STRING(x) FASTDIFF_STRING_(x)
#define FASTDIFF_NAME(type, name) name,
extern const Kernels table;
const Kernels table = {FASTDIFF_STRING(FASTDIFF_ISA), FASTDIFF_KERNELS(FASTDIFF_NAME)};

}  // namespace fastdiff::FASTDIFF_ISA

// Functions that run on the CPU and on a GPU alike. Both are compiled without floating-point contraction, so that they
// round alike.
#pragma once

#if defined(__CUDACC__)
#define FASTDIFF_DEVICE __host__ __device__ inline
#define FASTDIFF_UNROLL _Pragma("unroll")  // what stays a loop keeps its arrays in memory
#else
#define FASTDIFF_DEVICE inline
#define FASTDIFF_UNROLL
#endif

// The solver's step on an NVIDIA GPU: the counterpart of csrc/cpu/linear_combine.cpp. No GPU has run it.
//
// A library of its own with a C interface, so that the extension links nothing of CUDA and loads without a driver; the
// extension is given the address of fastdiff_cuda_step (see fastdiff/step_plan.h). Compiled with --fmad=false: the
// arithmetic is that of step_thread.h, rounded as on the CPU.
#include <cuda_runtime.h>
#include <stdint.h>

#define FASTDIFF_ISA cuda
#include "fastdiff/step_thread.h"

#if defined(_WIN32)
#define FASTDIFF_EXPORT extern "C" __declspec(dllexport)
#else
#define FASTDIFF_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace fastdiff::cuda {
namespace {

constexpr int kBlock = 256;

// A step is small enough to be passed by value: its addresses are read from constant memory.
template <class T, class H, int M, bool packed>
__global__ void __launch_bounds__(kBlock) step_kernel(const __grid_constant__ Step step, int64_t threads) {
  const int64_t index = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (index < threads) step_thread<T, H, M, packed>(step, index);
}

struct Launch {
  const Step& step;
  cudaStream_t stream;

  template <class T, class H, int M, bool packed>
  void run() const {
    const int64_t threads = step_threads(step);
    const unsigned blocks = static_cast<unsigned>((threads + kBlock - 1) / kBlock);
    step_kernel<T, H, M, packed><<<blocks, kBlock, 0, stream>>>(step, threads);
  }
};

}  // namespace
}  // namespace fastdiff::cuda

// Queue a step on a stream of a device. Returns a cudaError_t.
FASTDIFF_EXPORT int fastdiff_cuda_step(const void* step, int device, uintptr_t stream) {
  // The runtime in here is linked statically and has a current device of its own.
  if (const cudaError_t error = cudaSetDevice(device)) return error;
  const fastdiff::cuda::Launch launch{*static_cast<const fastdiff::Step*>(step),
                                      reinterpret_cast<cudaStream_t>(stream)};
  fastdiff::cuda::visit_step(launch.step, launch);
  return cudaGetLastError();
}

// How many devices there are. Returns a cudaError_t, also where there is no driver.
FASTDIFF_EXPORT int fastdiff_cuda_devices(int* count) { return cudaGetDeviceCount(count); }

FASTDIFF_EXPORT const char* fastdiff_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// The CUDA release that this was built with, 1000 * major + 10 * minor.
FASTDIFF_EXPORT int fastdiff_cuda_version() { return CUDART_VERSION; }

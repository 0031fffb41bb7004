// The structs of DLPack's C interface, version 0.8: how a tensor is handed to torch without linking it.
// https://dmlc.github.io/dlpack/latest/c_api.html. Fields, their order and the values used are fixed by that document.
#pragma once

#include <stdint.h>

namespace fastdiff {

struct DLDevice {
  int32_t type;  // kDLCPU
  int32_t id;
};
constexpr int32_t kDLCPU = 1;

struct DLDataType {
  uint8_t code;  // kDLFloat or kDLBfloat
  uint8_t bits;
  uint16_t lanes;
};
constexpr uint8_t kDLFloat = 2, kDLBfloat = 4;

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor* self);  // called by the consumer, once, on any thread
};

}  // namespace fastdiff

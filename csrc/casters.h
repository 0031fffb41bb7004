// How what Python passes is read: addresses are numbers, strides and sizes tuples of them, and choices strings.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "fastdiff/dlpack.h"
#include "fastdiff/kernels.h"

namespace fastdiff {

// Of numbers of any type; null for 0.
struct Address {
  void* data = nullptr;
  template <class T>
  operator T*() const {
    return static_cast<T*>(data);
  }
};

// So many sizes, strides or addresses.
template <size_t size>
using Numbers = std::array<int64_t, size>;
template <size_t size>
using Addresses = std::array<Address, size>;

inline Address address_of(int64_t number) { return {reinterpret_cast<void*>(static_cast<uintptr_t>(number))}; }

inline Rows rows_of(const Numbers<3>& n) { return {address_of(n[0]), n[1], n[2]}; }
inline Heads heads_of(const Numbers<4>& n) { return {address_of(n[0]), n[1], n[2], n[3]}; }
inline Image image_of(const Numbers<5>& n) { return {address_of(n[0]), n[1], n[2], n[3], n[4]}; }
inline LinearWeight linear_weight_of(const Numbers<4>& n) { return {address_of(n[0]), address_of(n[1]), n[2], n[3]}; }

template <class T>
struct Name {
  const char* name;
  T value;
};
constexpr Name<Type> kTypes[] = {{"float32", Type::float32}, {"bfloat16", Type::bfloat16}, {"float16", Type::float16}};
constexpr Name<Mask> kMasks[] = {{"none", Mask::none}, {"additive", Mask::additive}, {"boolean", Mask::boolean}};
constexpr Name<Activation> kActivations[] = {{"none", Activation::none},
                                             {"silu", Activation::silu},
                                             {"gelu", Activation::gelu},
                                             {"gelu_tanh", Activation::gelu_tanh}};
constexpr Name<Way> kWays[] = {
    {"winograd", Way::pretransformed}, {"winograd-on-the-fly", Way::on_the_fly}, {"winograd-amx", Way::in_stages}};
constexpr Name<DLDataType> kPoolTypes[] = {{"float64", {kDLFloat, 64, 1}},
                                           {"float32", {kDLFloat, 32, 1}},
                                           {"float16", {kDLFloat, 16, 1}},
                                           {"bfloat16", {kDLBfloat, 16, 1}}};

}  // namespace fastdiff

namespace pybind11::detail {

// Of a tuple or list. pybind11's own conversion takes ten times as long, longer than a small kernel.
template <size_t size>
struct type_caster<fastdiff::Numbers<size>> {
  PYBIND11_TYPE_CASTER(fastdiff::Numbers<size>, const_name("tuple"));
  bool load(handle source, bool) {
    PyObject* s = source.ptr();
    if (!(PyTuple_Check(s) || PyList_Check(s)) || PySequence_Fast_GET_SIZE(s) != Py_ssize_t{size})
      throw type_error("expected " + std::to_string(size) + " numbers in a tuple");
    for (size_t i = 0; i < size; ++i) {
      value[i] = PyLong_AsLongLong(PySequence_Fast_ITEMS(s)[i]);
      if (value[i] == -1 && PyErr_Occurred()) throw error_already_set();
    }
    return true;
  }
};

template <class T, size_t size, T (*make)(const fastdiff::Numbers<size>&)>
struct numbers_caster {
  PYBIND11_TYPE_CASTER(T, const_name("tuple"));
  bool load(handle source, bool convert) {
    type_caster<fastdiff::Numbers<size>> numbers;
    numbers.load(source, convert);
    value = make(numbers);
    return true;
  }
};
template <>
struct type_caster<fastdiff::Rows> : numbers_caster<fastdiff::Rows, 3, fastdiff::rows_of> {};
template <>
struct type_caster<fastdiff::Heads> : numbers_caster<fastdiff::Heads, 4, fastdiff::heads_of> {};
template <>
struct type_caster<fastdiff::Image> : numbers_caster<fastdiff::Image, 5, fastdiff::image_of> {};
template <>
struct type_caster<fastdiff::LinearWeight> : numbers_caster<fastdiff::LinearWeight, 4, fastdiff::linear_weight_of> {};

template <>
struct type_caster<fastdiff::Address> {
  PYBIND11_TYPE_CASTER(fastdiff::Address, const_name("int"));
  bool load(handle source, bool) {
    value.data = PyLong_AsVoidPtr(source.ptr());
    if (!value.data && PyErr_Occurred()) throw error_already_set();
    return true;
  }
};

template <size_t size>
struct type_caster<fastdiff::Addresses<size>> {
  PYBIND11_TYPE_CASTER(fastdiff::Addresses<size>, const_name("tuple"));
  bool load(handle source, bool convert) {
    type_caster<fastdiff::Numbers<size>> numbers;
    numbers.load(source, convert);
    for (size_t i = 0; i < size; ++i)
      value[i] = fastdiff::address_of(static_cast<fastdiff::Numbers<size>&>(numbers)[i]);
    return true;
  }
};

template <class T, const auto& names>
struct name_caster {
  PYBIND11_TYPE_CASTER(T, const_name("str"));
  bool load(handle source, bool) {
    const char* given = PyUnicode_AsUTF8(source.ptr());
    if (!given) throw error_already_set();
    for (const auto& each : names)
      if (std::strcmp(each.name, given) == 0) {
        value = each.value;
        return true;
      }
    throw std::invalid_argument(std::string("no kernel for ") + given);
  }
};
template <>
struct type_caster<fastdiff::Type> : name_caster<fastdiff::Type, fastdiff::kTypes> {};
template <>
struct type_caster<fastdiff::Mask> : name_caster<fastdiff::Mask, fastdiff::kMasks> {};
template <>
struct type_caster<fastdiff::Activation> : name_caster<fastdiff::Activation, fastdiff::kActivations> {};
template <>
struct type_caster<fastdiff::Way> : name_caster<fastdiff::Way, fastdiff::kWays> {};
template <>
struct type_caster<fastdiff::DLDataType> : name_caster<fastdiff::DLDataType, fastdiff::kPoolTypes> {};

}  // namespace pybind11::detail

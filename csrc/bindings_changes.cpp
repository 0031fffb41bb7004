// For Python: whether a weight, or what some dictionaries hold, has changed.
#include <optional>
#include <vector>

#include "casters.h"
#include "fastdiff/contents.h"

namespace py = pybind11;
using namespace fastdiff;

namespace {

// What some dictionaries hold, to see whether it was replaced: 10 us for a thousand, which take Python a hundred.
class Held {
public:
  explicit Held(std::vector<py::dict> dictionaries) : dictionaries_(std::move(dictionaries)) {
    visit([this](PyObject* value) {
      values_.push_back(value);
      return true;
    });
  }

  bool same() const {
    size_t place = 0;
    return visit([&](PyObject* value) { return place < values_.size() && values_[place++] == value; }) &&
           place == values_.size();
  }

private:
  template <class Body>
  bool visit(const Body& body) const {
    for (const py::dict& dictionary : dictionaries_) {
      PyObject *key, *value;
      for (Py_ssize_t place = 0; PyDict_Next(dictionary.ptr(), &place, &key, &value);) {
        if (!body(value)) return false;
      }
    }
    return true;
  }

  std::vector<py::dict> dictionaries_;
  std::vector<PyObject*> values_;  // compared only
};

}  // namespace

void bind_changes(py::module_& module) {
  // Addresses, bytes, and sizes and strides in numbers of `item` bytes.
  py::class_<Contents>(module, "Contents")
      .def(py::init([](Address data, int64_t bytes, const std::vector<int64_t>& sizes,
                       const std::vector<int64_t>& strides, int64_t item, int threads) {
        const py::gil_scoped_release released;
        return new Contents(data, bytes, sizes, strides, item, threads);
      }))
      .def("same_sample", [](const Contents& contents, Address data) { return contents.same_sample(data); })
      .def("same", [](Contents& contents, Address data, double share, int threads) {
        std::optional<py::gil_scoped_release> released;
        if (contents.is_long(share)) released.emplace();
        return contents.same(data, share, threads);
      });
  py::class_<Held>(module, "Held").def(py::init<std::vector<py::dict>>()).def("same", &Held::same);
}

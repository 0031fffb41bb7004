// Whether memory still holds what it held. Python writes to a tensor without a trace (`weight.data[0] = 0`), and what
// was made of it is then wrong.
#pragma once

#include <stdint.h>

#include <atomic>
#include <vector>

namespace fastdiff {

constexpr int64_t kSlice = 16384;  // bytes that are compared at a time
constexpr int64_t kRounds = 2;     // numbers of each row and column in the sample

// Sums of 64-bit words and sums of these sums (Fletcher 1982): a change of one word, or of two that swap, changes them.
uint64_t digest(const char* data, int64_t bytes);

class Contents {
public:
  // Of a tensor in the `bytes` from `data` on. sizes, strides: in numbers of `item` bytes.
  Contents(const char* data, int64_t bytes, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
           int64_t item, int threads);

  // Whether some numbers of each row, column and tap of a kernel are the same: a row is an index of the first
  // dimension, a column one of the second.
  bool same_sample(const char* data) const { return sample(data) == sampled_; }

  // Whether the slices whose turn it is are the same: this share of all, at least one.
  bool same(const char* data, double share, int threads);

  // Whether that takes long enough to let others work meanwhile.
  bool is_long(double share) const { return share * bytes_ > (1 << 20); }

private:
  uint64_t sample(const char* data) const;
  int64_t length(int64_t slice) const;

  int64_t bytes_, item_;
  std::vector<int64_t> places_;  // of the sample's numbers, in bytes
  std::vector<uint64_t> slices_;
  uint64_t sampled_;
  std::atomic<int64_t> turn_{0};
};

}  // namespace fastdiff

#include "fastdiff/contents.h"

#include <algorithm>
#include <cstring>

#include "fastdiff/parallel.h"

namespace fastdiff {

namespace {

constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;  // of Fibonacci hashing, odd
constexpr int64_t kWords = 8;                    // sums side by side, a cache line

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kPrime;
  return hash ^ (hash >> 29);
}

// The threads that are worth it for so many slices.
int threads_for(int64_t slices, int threads) { return slices * kSlice < (int64_t{1} << 20) ? 1 : threads; }

}  // namespace

uint64_t digest(const char* data, int64_t bytes) {
  uint64_t sum[kWords] = {}, sums[kWords] = {}, words[kWords];
  const auto add = [&] {
    for (int64_t j = 0; j < kWords; ++j) sum[j] += words[j];
    for (int64_t j = 0; j < kWords; ++j) sums[j] += sum[j];
  };
  int64_t done = 0;
  for (; done + int64_t{sizeof words} <= bytes; done += sizeof words) {
    memcpy(words, data + done, sizeof words);
    add();
  }
  if (done < bytes) {
    memset(words, 0, sizeof words);
    memcpy(words, data + done, bytes - done);
    add();
  }
  uint64_t hash = 0;
  for (int64_t j = 0; j < kWords; ++j) hash = mix(mix(hash, sum[j]), sums[j]);
  return hash;
}

Contents::Contents(const char* data, int64_t bytes, const std::vector<int64_t>& sizes,
                   const std::vector<int64_t>& strides, int64_t item, int threads)
    : bytes_(bytes), item_(item) {
  const int64_t longest =
      sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.begin() + std::min<size_t>(2, sizes.size()));
  const int64_t count = bytes ? kRounds * std::max<int64_t>(longest, 16) : 0;
  places_.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    // Row i, column i, shifted by a part of the columns in each round; the taps in turn.
    int64_t place = 0, taps = i;
    for (size_t dim = 0; dim < sizes.size(); ++dim) {
      const int64_t size = sizes[dim], round = i / std::max<int64_t>(longest, 1) % kRounds;
      place += strides[dim] * (dim == 0 ? i % size : dim == 1 ? (i + round * size / kRounds) % size : taps % size);
      if (dim > 1) taps /= size;
    }
    places_.push_back(place * item);
  }
  std::sort(places_.begin(), places_.end());
  places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
  slices_.resize((bytes + kSlice - 1) / kSlice);
  const int64_t slices = slices_.size();
  parallel_for(slices, threads_for(slices, threads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) slices_[i] = digest(data + i * kSlice, length(i));
  });
  sampled_ = sample(data);
}

int64_t Contents::length(int64_t slice) const { return std::min(kSlice, bytes_ - slice * kSlice); }

uint64_t Contents::sample(const char* data) const {
  const int64_t count = places_.size(), item = std::min<int64_t>(item_, sizeof(uint64_t));
  const auto word = [&](int64_t i) {
    uint64_t found = 0;
    if (item == 4) {  // a load, where the other is a call
      memcpy(&found, data + places_[i], 4);
    } else {
      memcpy(&found, data + places_[i], item);
    }
    return found;
  };
  uint64_t hashes[4] = {};  // side by side, as each waits for the one before
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t j = 0; j < 4; ++j) hashes[j] = mix(hashes[j], word(i + j));
  }
  for (; i < count; ++i) hashes[0] = mix(hashes[0], word(i));
  return mix(mix(mix(hashes[0], hashes[1]), hashes[2]), hashes[3]);
}

bool Contents::same(const char* data, double share, int threads) {
  const int64_t slices = slices_.size();
  if (!slices) return true;
  const int64_t count = std::clamp<int64_t>(static_cast<int64_t>(share * slices) + 1, 1, slices);
  const int64_t first = turn_.fetch_add(count, std::memory_order_relaxed) % slices;
  std::atomic<bool> same{true};
  parallel_for(count, threads_for(count, threads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slice = (first + i) % slices;
      if (digest(data + slice * kSlice, length(slice)) != slices_[slice]) same.store(false, std::memory_order_relaxed);
    }
  });
  return same;
}

}  // namespace fastdiff

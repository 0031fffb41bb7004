// Loops over rows of contiguous numbers. A body is called with a place in the row, from which it loads one vector: a
// whole one, or the part that is left at the end; it is compiled for both, so that the loop over whole vectors has no
// branches. For the files that are compiled once an instruction set (see simd.h).
#pragma once

#include "fastdiff/simd.h"

namespace fastdiff::FASTDIFF_ISA {

struct Whole {
  int64_t i;
  template <class T>
  F load(const T* p) const {
    return FASTDIFF_ISA::load(p + i);
  }
  template <class T>
  void store(T* p, F value) const {
    FASTDIFF_ISA::store(p + i, value);
  }
};

struct Part {
  int64_t i, n;
  template <class T>
  F load(const T* p) const {
    return load_some(p + i, n);
  }
  template <class T>
  void store(T* p, F value) const {
    store_some(p + i, value, n);
  }
};

// body(place of i) for i in [0, size).
template <class Body>
inline void each(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + F::size <= size; i += F::size) body(Whole{i});
  if (i < size) body(Part{i, size - i});
}

// out[i] = body(place of i) for i in [0, size).
template <class T, class Body>
inline void map(T* out, int64_t size, Body body) {
  int64_t i = 0;
  for (; i + 2 * F::size <= size; i += 2 * F::size) store_two(out + i, body(Whole{i}), body(Whole{i + F::size}));
  if (i + F::size <= size) {
    store(out + i, body(Whole{i}));
    i += F::size;
  }
  if (i < size) store_some(out + i, body(Part{i, size - i}), size - i);
}

// The same for results that go to memory: as many numbers at `later`, which will be written, and at `next`, which will
// be read, are asked for meanwhile. Without that, memory waits while there is arithmetic to do.
template <class T, class Body>
inline void map_before(T* out, int64_t size, const T* later, const T* next, Body body) {
  int64_t i = 0;
  for (; i + 2 * F::size <= size; i += 2 * F::size) {
    prefetch<2>(later + i);
    prefetch<2>(next + i);
    store_two(out + i, body(Whole{i}), body(Whole{i + F::size}));
  }
  if (i + F::size <= size) {
    store(out + i, body(Whole{i}));
    i += F::size;
  }
  if (i < size) store_some(out + i, body(Part{i, size - i}), size - i);
}

// The same where the lines that follow are written later.
template <class T, class Body>
inline void map_ahead(T* out, int64_t size, const T* next, Body body) {
  map_before(out, size, out + 8192 / static_cast<int64_t>(sizeof(T)), next, body);
}

// The same for results that will have left the caches before they are read: whole lines are written around these. A
// stream_fence() belongs after the last one.
template <class T, class Body>
inline void map_stream(T* out, int64_t size, const T* next, Body body) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t past_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / sizeof(T)) % kLine;
  int64_t i = 0, head = past_line ? kLine - past_line : 0;
  for (head = head < size ? head : size; i < head;) {
    const int64_t n = head - i < F::size ? head - i : F::size;
    n == F::size ? store(out + i, body(Whole{i})) : store_some(out + i, body(Part{i, n}), n);
    i += n;
  }
  for (; i + 2 * F::size <= size; i += 2 * F::size) {
    prefetch<2>(next + i);
    stream_two(out + i, body(Whole{i}), body(Whole{i + F::size}));
  }
  for (; i < size; i += F::size) {
    const int64_t n = size - i;
    n >= F::size ? store(out + i, body(Whole{i})) : store_some(out + i, body(Part{i, n}), n);
  }
}

// The row itself, or a copy as float32 in `buffer`.
inline const float* widen_row(const float* x, float*, int64_t) { return x; }
template <class T>
inline const float* widen_row(const T* x, float* buffer, int64_t size) {
  map(buffer, size, [x](auto at) { return at.load(x); });
  return buffer;
}

// One number.
inline float value(const float* p) { return *p; }
template <class T>
inline float value(const T* p) {
  float lanes[F::size];
  load_some(p, 1).store(lanes);
  return lanes[0];
}

}  // namespace fastdiff::FASTDIFF_ISA

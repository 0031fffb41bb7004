// The rest of the contract of simd.h for instruction sets without masks and without steps across the lanes: by way of
// an array. For the end of the other files in this folder, which have load and store.
#pragma once

namespace fastdiff::FASTDIFF_ISA {

inline F split_exponent(F x, F* power) {
  x = min(F::broadcast(200.0f), max(F::broadcast(-150.0f), x));  // what times_power_of_two can take
  *power = round(x - F::broadcast(0.5f));
  return x - *power;
}
inline float sum(F a) {
  float lanes[F::size], total = 0;
  a.store(lanes);
  for (int64_t i = 0; i < F::size; ++i) total += lanes[i];
  return total;
}
inline float max(F a) {
  float lanes[F::size];
  a.store(lanes);
  for (int64_t i = 1; i < F::size; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

template <class H>
inline F load_some(const H* p, int64_t n) {
  H values[F::size] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = p[i];
  return load(values);
}
template <class H>
inline void store_some(H* p, F a, int64_t n) {
  H values[F::size];
  store(values, a);
  for (int64_t i = 0; i < n; ++i) p[i] = values[i];
}
template <class H>
inline void store_two(H* p, F a, F b) {
  store(p, a);
  store(p + F::size, b);
}

inline void transpose(F* rows) {
  float from[F::size * F::size], to[F::size * F::size];
  for (int64_t i = 0; i < F::size; ++i) rows[i].store(from + i * F::size);
  for (int64_t i = 0; i < F::size; ++i)
    for (int64_t j = 0; j < F::size; ++j) to[j * F::size + i] = from[i * F::size + j];
  for (int64_t i = 0; i < F::size; ++i) rows[i] = F::load(to + i * F::size);
}

}  // namespace fastdiff::FASTDIFF_ISA

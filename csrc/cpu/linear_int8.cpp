// A linear layer of 8-bit factors. A row of W has one scale, a row of x has one of its own in each call: the largest
// number becomes 127, and all others are rounded to whole numbers. With AVX-512's instruction for it (VNNI) four
// products are added to each sum at a time, in integers; elsewhere the whole numbers are multiplied as float32, which
// is exact up to 2^24.
#include "fastdiff/linear_low.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr float kLargest = 127;
#if defined(FASTDIFF_ISA_AVX512_VNNI)
// The instruction multiplies unsigned numbers, x + 128, by signed ones. 128 times the sum of a row of W is taken off.
constexpr int64_t kDepth = 4;  // numbers of a row side by side in a lane
using Number = uint8_t;        // of x
constexpr float kOffset = 128;
#else
constexpr int64_t kDepth = 1;
using Number = float;
constexpr float kOffset = 0;
#endif
constexpr int64_t kHead = 64;  // bytes in front of a row of x: its scale

// What a number of this size at most is multiplied by to become a whole number, and the way back. 0 and what has no
// inverse: all are 0, or far below what products could show.
struct Scale {
  float to_whole, back;
};
Scale scale_of(float largest) {
  if (!(largest > 1e-30f)) return {0, 0};
  return {kLargest / largest, largest / kLargest};
}

float size_of(float x) { return x < 0 ? -x : x; }

struct Int8 {
  static constexpr bool kInt8 = true;

  static int64_t row_bytes(int64_t inputs) {
    return kHead + round_up(inputs, 16) * static_cast<int64_t>(sizeof(Number)) + 64;
  }

  // [inputs / depth][32][depth], then the scales and kOffset times the sums of the 32 rows.
  static void round_block(const LowLinear& op, int64_t block, int64_t half, uint8_t* bytes) {
    const Linear& layer = op.layer;
    const LinearWeight& weight = layer.weights[0];
    const int64_t inputs = layer.inputs, padded = round_up(inputs, 4), first = block * kBlock;
    int8_t* to = reinterpret_cast<int8_t*>(bytes);
    float* scales = reinterpret_cast<float*>(bytes + padded * kBlock);
    for (int64_t c = 0; c < kBlock; ++c) {
      const bool there = first + c < layer.outputs;
      const float* from = weight.data + row_of_weight(layer, there ? first + c : 0, half) * weight.row;
      const auto number = [&](int64_t k) { return there && k < inputs ? from[k] : 0.0f; };
      float largest = 0;
      for (int64_t k = 0; k < inputs; ++k) largest = size_of(number(k)) > largest ? size_of(number(k)) : largest;
      const Scale scale = scale_of(largest);
      int32_t sum = 0;
      for (int64_t k = 0; k < padded; ++k) {
        const float scaled = number(k) * scale.to_whole;
        const int32_t whole = static_cast<int32_t>(scaled + (scaled < 0 ? -0.5f : 0.5f));
        to[(k / kDepth * kBlock + c) * kDepth + k % kDepth] = static_cast<int8_t>(whole);
        sum += whole;
      }
      scales[c] = scale.back;
      scales[kBlock + c] = kOffset * static_cast<float>(sum);
    }
  }

  static void round_row(const LowLinear& op, const float* x, uint8_t* bytes) {
    const int64_t inputs = op.layer.inputs;
    const auto numbers = [&](int64_t k) { return load_up_to(x + k, at_most(kLanes, inputs - k)); };
    F largest = F::broadcast(0), zeros = F::broadcast(0);
    for (int64_t k = 0; k < inputs; k += kLanes) {
      const F found = numbers(k);
      largest = max(largest, max(found, F::broadcast(0) - found));
      zeros = fma(found, F::broadcast(0), zeros);
    }
    const bool finite = sum(zeros) == 0;
    const Scale scale = scale_of(max(largest));
    float* head = reinterpret_cast<float*>(bytes);
    *head = finite ? scale.back : float_of(0x7fc00000);  // a row with an infinity or NaN has results of NaN
    Number* to = reinterpret_cast<Number*>(bytes + kHead);
    for (int64_t k = 0; k < round_up(inputs, 16); k += kLanes) {
      F whole = F::broadcast(kOffset);
      if (k < inputs && finite) whole = whole + round(numbers(k) * F::broadcast(scale.to_whole));
#if defined(FASTDIFF_ISA_AVX512_VNNI)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(whole.v)));
#else
      whole.store(to + k);
#endif
    }
  }

  template <int rows>
  static void products(const uint8_t* x, int64_t row, const uint8_t* w, int64_t inputs, float* to) {
    const float* scales = reinterpret_cast<const float*>(w + round_up(inputs, 4) * kBlock);
    const uint8_t* numbers = x + kHead;
#if defined(FASTDIFF_ISA_AVX512_VNNI)
    __m512i sums[rows][kVectors];
    for (auto& each : sums)
      for (int64_t v = 0; v < kVectors; ++v)
        each[v] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_cvtps_epi32(F::load(scales + kBlock + v * kLanes).v));
    for (int64_t step = 0; step < divide_up(inputs, kDepth); ++step, numbers += kDepth, w += kBlock * kDepth) {
      __m512i of_w[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) of_w[v] = _mm512_loadu_si512(w + v * kLanes * kDepth);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < rows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, numbers + r * row, 4);
        for (int64_t v = 0; v < kVectors; ++v)
          sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], _mm512_set1_epi32(four), of_w[v]);
      }
    }
    const auto total = [&](int r, int64_t v) { return F{_mm512_cvtepi32_ps(sums[r][v])}; };
#else
    F sums[rows][kVectors];
    for (auto& each : sums)
      for (F& sum : each) sum = F::broadcast(0);
    for (int64_t k = 0; k < inputs; ++k, numbers += sizeof(float), w += kBlock) {
      const int8_t* columns = reinterpret_cast<const int8_t*>(w);
      float wide[kBlock];
      for (int64_t c = 0; c < kBlock; ++c) wide[c] = static_cast<float>(columns[c]);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < rows; ++r) {
        const F of_x = F::broadcast(*reinterpret_cast<const float*>(numbers + r * row));
        for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = fma(of_x, F::load(wide + v * kLanes), sums[r][v]);
      }
    }
    const auto total = [&](int r, int64_t v) { return sums[r][v]; };
#endif
    for (int r = 0; r < rows; ++r) {
      const F of_row = F::broadcast(*reinterpret_cast<const float*>(x + r * row));
      for (int64_t v = 0; v < kVectors; ++v)
        (total(r, v) * of_row * F::load(scales + v * kLanes)).store(to + r * kBlock + v * kLanes);
    }
  }
};

}  // namespace

void linear_int8_weight(const LowLinear& op, int64_t begin, int64_t end) { round_blocks<Int8>(op, begin, end); }
void linear_int8_rows(const LowLinear& op, int64_t begin, int64_t end) { round_rows<Int8>(op, begin, end); }
void linear_int8_products(const LowLinear& op, int64_t begin, int64_t end) { multiply_blocks<Int8>(op, begin, end); }

}  // namespace fastdiff::FASTDIFF_ISA

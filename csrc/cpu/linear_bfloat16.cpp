// A linear layer of bfloat16 factors with float32 sums. With AVX-512's instruction for it two products are added to
// each sum at a time; elsewhere the factors are widened, and multiplied as float32.
#include "fastdiff/linear_low.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

#if defined(FASTDIFF_ISA_AVX512_BFLOAT16)
constexpr int64_t kDepth = 2;  // numbers of a row side by side in a lane
using Number = bfloat16;       // of x
#else
constexpr int64_t kDepth = 1;
using Number = float;
#endif

struct BFloat16 {
  static constexpr bool kInt8 = false;

  // Not a multiple of 4 KiB, so that rows do not take each other's place in the first cache.
  static int64_t row_bytes(int64_t inputs) { return round_up(inputs, 16) * static_cast<int64_t>(sizeof(Number)) + 64; }

  // [inputs / depth][32][depth]
  static void round_block(const LowLinear& op, int64_t block, int64_t half, uint8_t* bytes) {
    const Linear& layer = op.layer;
    const LinearWeight& weight = layer.weights[0];
    const int64_t first = block * kBlock, columns = at_most(kBlock, layer.outputs - first);
    bfloat16* to = reinterpret_cast<bfloat16*>(bytes);
    for (int64_t k = 0; k < round_up(layer.inputs, 2); ++k)
      for (int64_t c = 0; c < kBlock; ++c) {
        const bool there = c < columns && k < layer.inputs;
        const float* from = weight.data + row_of_weight(layer, first + c, half) * weight.row + k;
        to[(k / kDepth * kBlock + c) * kDepth + k % kDepth] = narrow(there ? *from : 0.0f, bfloat16{});
      }
  }

  static void round_row(const LowLinear& op, const float* x, uint8_t* bytes) {
    Number* to = reinterpret_cast<Number*>(bytes);
    const int64_t inputs = op.layer.inputs;
    for (int64_t k = 0; k < inputs; k += kLanes) {  // what is behind the end is 0
      const F numbers = load_up_to(x + k, at_most(kLanes, inputs - k));
#if defined(FASTDIFF_ISA_AVX512_BFLOAT16)
      store(to + k, numbers);
#else
      bfloat16 rounded[kLanes];
      store(rounded, numbers);
      load(rounded).store(to + k);
#endif
    }
  }

  template <int rows>
  static void products(const uint8_t* x, int64_t row, const uint8_t* w, int64_t inputs, float* to) {
    F sums[rows][kVectors];
    for (auto& each : sums)
      for (F& sum : each) sum = F::broadcast(0);
    const int64_t bytes = kDepth * static_cast<int64_t>(sizeof(Number));
    for (int64_t step = 0; step < divide_up(inputs, kDepth); ++step, x += bytes, w += kBlock * kDepth * 2) {
      const bfloat16* columns = reinterpret_cast<const bfloat16*>(w);
#if defined(FASTDIFF_ISA_AVX512_BFLOAT16)
      __m512bh of_w[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) of_w[v] = (__m512bh)_mm512_loadu_si512(columns + v * kLanes * kDepth);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < rows; ++r) {
        int32_t pair;
        __builtin_memcpy(&pair, x + r * row, 4);
        const __m512bh of_x = (__m512bh)_mm512_set1_epi32(pair);
        for (int64_t v = 0; v < kVectors; ++v) sums[r][v].v = _mm512_dpbf16_ps(sums[r][v].v, of_x, of_w[v]);
      }
#else
      F of_w[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) of_w[v] = load(columns + v * kLanes);
      FASTDIFF_UNROLL_16
      for (int r = 0; r < rows; ++r) {
        const F of_x = F::broadcast(*reinterpret_cast<const float*>(x + r * row));
        for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = fma(of_x, of_w[v], sums[r][v]);
      }
#endif
    }
    for (int r = 0; r < rows; ++r)
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v].store(to + r * kBlock + v * kLanes);
  }
};

}  // namespace

void linear_bfloat16_weight(const LowLinear& op, int64_t begin, int64_t end) { round_blocks<BFloat16>(op, begin, end); }
void linear_bfloat16_rows(const LowLinear& op, int64_t begin, int64_t end) { round_rows<BFloat16>(op, begin, end); }
void linear_bfloat16_products(const LowLinear& op, int64_t begin, int64_t end) {
  multiply_blocks<BFloat16>(op, begin, end);
}

}  // namespace fastdiff::FASTDIFF_ISA

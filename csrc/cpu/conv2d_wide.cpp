#include "fastdiff/conv2d_wide.h"

#include <float.h>
#include <math.h>

#include "fastdiff/arena.h"

namespace fastdiff {
namespace {

float larger(float a, float b) { return a > b ? a : b; }
float larger(float a, float b, float c) { return larger(larger(a, b), c); }

// Whether any pixel of a patch is not 0; of tiny ones the energy is.
bool any_number(const Conv2d& op, int64_t sample, int64_t top, int64_t left) {
  for (int64_t i = 0; i < kPatch * kPatch; ++i) {
    const int64_t row = top + i / kPatch - op.padding, column = left + i % kPatch - op.padding;
    if (row < 0 || row >= op.height || column < 0 || column >= op.width) continue;
    for (int n = 0; n < op.num_inputs; ++n) {
      const Image& x = op.x[n];
      const float* pixel =
          x.data + sample * x.batch + (row >> op.upsample) * x.row + (column >> op.upsample) * x.column;
      for (int64_t c = 0; c < x.channels; ++c)
        if (pixel[c] != 0) return true;
    }
  }
  return false;
}

// Six rows of energies, summed over the slots; what is no number counts as infinite.
void read_energies(const Conv2d& op, int64_t slots, int64_t row, int64_t columns, float* to) {
  const int64_t size = energies_of(op);
  for (int64_t i = 0; i < kPatch * columns; ++i) to[i] = op.energies[row * columns + i];
  for (int64_t slot = 1; slot < slots; ++slot)
    for (int64_t i = 0; i < kPatch * columns; ++i) to[i] += op.energies[slot * size + row * columns + i];
  for (int64_t i = 0; i < kPatch * columns; ++i) to[i] = to[i] <= FLT_MAX ? to[i] : INFINITY;
}

}  // namespace

void mark_wide_tiles(const Conv2d& op, int64_t slots, bool* wide, int64_t begin, int64_t end) {
  const int64_t across = tiles_of(op.out_width), down = tiles_of(op.out_height), columns = energy_columns(op);
  Arena arena;
  float* energies = arena.take<float>(kPatch * columns);
  float* windows = arena.take<float>(kOutTile * columns);  // of three rows each
  float *most = arena.take<float>(columns), *least = arena.take<float>(columns);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / down, top = unit % down * kOutTile;
    read_energies(op, slots, sample * energy_rows(op) + top, columns, energies);
    for (int64_t i = 0; i < kOutTile * columns; ++i)
      windows[i] = larger(energies[i], energies[i + columns], energies[i + 2 * columns]);
    const float* last = windows + (kOutTile - 1) * columns;
    for (int64_t j = 0; j < columns; ++j) most[j] = larger(windows[j], last[j]);
    // Of results that there are.
    const int64_t rows = at_most(kOutTile, op.out_height - top);
    for (int64_t j = 0; j + 2 < columns; ++j) least[j] = larger(windows[j], windows[j + 1], windows[j + 2]);
    for (int64_t r = 1; r < rows; ++r)
      for (int64_t j = 0; j + 2 < columns; ++j) {
        const float* window = windows + r * columns + j;
        const float nine = larger(window[0], window[1], window[2]);
        least[j] = nine < least[j] ? nine : least[j];
      }
    for (int64_t tile = 0; tile < across; ++tile) {
      const int64_t left = tile * kOutTile;
      float largest = 0, smallest = INFINITY;
      for (int64_t j = 0; j < kPatch; ++j) largest = larger(largest, most[left + j]);
      for (int64_t j = left; j < left + kOutTile && j < op.out_width; ++j)
        smallest = least[j] < smallest ? least[j] : smallest;
      bool is_wide = largest > kMostUneven * smallest || largest > kMostEnergy;
      if (largest < kLeastEnergy) is_wide = any_number(op, sample, top, left);
      wide[unit * across + tile] = is_wide;
    }
  }
}

}  // namespace fastdiff

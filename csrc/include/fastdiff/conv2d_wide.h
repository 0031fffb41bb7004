// Tiles of a convolution whose pixels differ too much in size for Winograd's algorithm. A result of it errs by what the
// largest of the 36 pixels of its patch would leave, though only nine of them are its own: beside a pixel of 10^5 a
// result of 1 is good for two digits. An infinity makes all of the tile NaN. Such tiles are found by the energies of
// their pixels, the sums of squares over the channels, and are computed again directly. Raw pointers and sizes.
#pragma once

#include "fastdiff/conv2d.h"

namespace fastdiff {

// Energies: [slots][samples][rows][columns] of the image as the patches cut it, with the padding, which has none. A
// slot belongs to the channels that are transformed together; the sum over the slots is the pixel's.
static inline int64_t energy_rows(const Conv2d& op) { return kOutTile * tiles_of(op.out_height) + kPatch - kOutTile; }
static inline int64_t energy_columns(const Conv2d& op) { return kOutTile * tiles_of(op.out_width) + kPatch - kOutTile; }
static inline int64_t energies_of(const Conv2d& op) { return op.batch * energy_rows(op) * energy_columns(op); }

// The energy of a tile's largest pixel is at most so many times that of the largest of the nine that a result is made
// of. Up to eight times the size, the error is at most about twice what it is with pixels of one size.
constexpr float kMostUneven = 64;
// And it lies in this range, beyond which a transform or a product overflows, or loses bits below the normal numbers
// (on AMX low terms).
constexpr float kMostEnergy = 0x1p100f, kLeastEnergy = 0x1p-100f;

// Marks the wide ones among the tiles of rows [begin, end), counted through all samples.
void mark_wide_tiles(const Conv2d& op, int64_t slots, bool* wide, int64_t begin, int64_t end);

// Results of some tiles by the sum itself, a block of channels at a time. Units are groups of tiles of each vector of
// output channels.
struct Conv2dDirect {
  const Conv2d* op;
  const int64_t* tiles;
  int64_t count;
};
constexpr int64_t kDirectTiles = 32;  // of a group
static inline int64_t direct_groups(const Conv2dDirect& direct) { return divide_up(direct.count, kDirectTiles); }
using Conv2dDirectKernel = void (*)(const Conv2dDirect& direct, int64_t begin, int64_t end);

}  // namespace fastdiff

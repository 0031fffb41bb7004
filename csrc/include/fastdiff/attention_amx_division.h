// How attention's queries are divided into units of work. Heads whose keys and values stay in L2 together, a group,
// take turns in a block of queries: what they read and write lies side by side in the (B, S, H, D) layout.
#pragma once

#include "fastdiff/kernels.h"

namespace fastdiff::amx {
namespace {

struct Division {
  // A block of queries of a head, which is number `slot` of its group.
  struct Unit {
    int64_t group, slot, b, h, query, count;
  };

  int64_t heads, blocks, queries;  // of a group; of a head; of a block
  int64_t all_heads, all_queries;  // of a sample; of a head

  // head_size: of the keys and values of a head. room: for those of a group. most: queries of a block, a multiple of
  // 32, where a group is one head; otherwise 32.
  Division(const Attention& op, int64_t head_size, int64_t room, int64_t most)
      : heads(op.heads), blocks(0), queries(0), all_heads(op.heads), all_queries(op.queries) {
    while (heads > 1 && (op.heads % heads != 0 || heads * head_size > room)) --heads;
    const int64_t limit = heads > 1 ? 32 : most;
    blocks = (op.queries + limit - 1) / limit;
    if (blocks) queries = (op.queries + 32 * blocks - 1) / (32 * blocks) * 32;
  }

  Unit unit(int64_t index) const {
    const int64_t group = index / (blocks * heads), inside = index % (blocks * heads), slot = inside % heads;
    const int64_t head = group * heads + slot, query = inside / heads * queries, rest = all_queries - query;
    return {group, slot, head / all_heads, head % all_heads, query, rest < queries ? rest : queries};
  }
};

}  // namespace
}  // namespace fastdiff::amx

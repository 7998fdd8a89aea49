#include "cache.hpp"

#include <cstring>

namespace drafthouse {

void copy_row(const Cache& cache, Place from, Place to) {
  size_t value = cache.value_bytes(), row = value * cache.head_size;
  bool bytes = cache.precision == Precision::kInt8;
  // Of a row that lies across: how much lies together, how far apart that is, how often it occurs.
  size_t piece = bytes ? 4 : value, stride = piece * kBlockRows, pieces = row / piece;
  for (int layer = 0; layer < cache.layers; ++layer)
    for (int head = 0; head < cache.kv_heads; ++head) {
      const std::byte* key = cache.keys(layer, from.block, head) + from.row * piece;
      std::byte* new_key = cache.keys(layer, to.block, head) + to.row * piece;
      for (size_t i = 0; i < pieces; ++i) std::memmove(new_key + i * stride, key + i * stride, piece);
      const std::byte* values = cache.values(layer, from.block, head);
      std::byte* new_values = cache.values(layer, to.block, head);
      if (!bytes) {
        std::memmove(new_values + to.row * row, values + from.row * row, row);
        continue;
      }
      values += from.row / 4 * row * 4 + from.row % 4;
      new_values += to.row / 4 * row * 4 + to.row % 4;
      for (int d = 0; d < cache.head_size; ++d) new_values[d * 4] = values[d * 4];
      cache.key_scales(layer, to.block, head)[to.row] = cache.key_scales(layer, from.block, head)[from.row];
      cache.value_scales(layer, to.block, head)[to.row] = cache.value_scales(layer, from.block, head)[from.row];
    }
}

}  // namespace drafthouse

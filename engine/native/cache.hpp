// The paged KV cache: how the rows of a block lie in memory.
//
// A block holds 32 rows of one layer, key head after key head. Keys are stored across, so that one load brings the
// same dimension of 16 rows; values along. In fp32 and fp16:
//
//   keys [head size][32], values [32][head size]
//
// In int8, with a scale for each row and head, and bytes in fours, as one instruction multiplies and adds them:
//
//   keys [head size / 4][32][4], values [32 / 4][head size][4], key scales [32], value scales [32]
//
// Bytes of values are signed; a byte b of keys, unsigned, stands for b - 128.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drafthouse {

constexpr int kBlockRows = 32;
constexpr int kLeastHeadSize = 16, kMostHeadSize = 256;  // and multiples of the least

enum class Precision : int { kFp32 = 0, kFp16 = 1, kInt8 = 2 };

struct Cache {
  int layers, blocks, kv_heads, head_size;
  Precision precision;
  std::byte* memory;

  size_t value_bytes() const { return precision == Precision::kFp32 ? 4 : precision == Precision::kFp16 ? 2 : 1; }
  // Bytes of one block of one key head of one layer.
  size_t block_bytes() const {
    size_t rows = 2 * size_t(kBlockRows) * head_size * value_bytes();
    return rows + (precision == Precision::kInt8 ? 2 * kBlockRows * sizeof(float) : 0);
  }
  size_t bytes() const { return block_bytes() * kv_heads * blocks * layers; }

  std::byte* keys(int layer, int block, int head) const {
    return memory + ((size_t(layer) * blocks + block) * kv_heads + head) * block_bytes();
  }
  std::byte* values(int layer, int block, int head) const {
    return keys(layer, block, head) + size_t(kBlockRows) * head_size * value_bytes();
  }
  float* key_scales(int layer, int block, int head) const {
    return reinterpret_cast<float*>(keys(layer, block, head) + 2 * size_t(kBlockRows) * head_size);
  }
  float* value_scales(int layer, int block, int head) const { return key_scales(layer, block, head) + kBlockRows; }
};

struct Place {
  int block, row;
};

// Copies a row of all layers and heads; the two may be the same.
void copy_row(const Cache& cache, Place from, Place to);

}  // namespace drafthouse

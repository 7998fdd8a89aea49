// Linear layers on packed weights, of four or of eight bits.
//
// Four bits: groups of 32 inputs, each with a scale and a least value (the blocks of GGUF's Q4_1): about
// scale * code + least, codes 0 to 15. Eight bits: scale * value, values -127 to 127, a scale an output.
//
// A row's inputs are rounded to eight bits in groups of 32, symmetrically, so a group's products are a sum of integers,
// which is exact in any order. Groups are added up as floats from the first to the last. So a row's output is a function
// of its inputs alone: it does not matter how many rows there are, or who computes which outputs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention.hpp"

namespace drafthouse {

constexpr int kGroup = 32;         // inputs
constexpr int kTileOutputs = 16;   // outputs that are computed at once
constexpr int kShift = 128;        // what is added to values of eight bits, so that they have no sign

// Weights of a layer, packed once for any number of rows.
struct PackedWeights {
  int bits = 0;                    // 4 or 8
  int inputs = 0;                  // a multiple of kGroup
  int outputs = 0;                 // a multiple of kTileOutputs
  // For each tile of outputs and group:
  // 4 bits: 4 x 64 bytes of codes, vector j holding inputs 4j..4j+3 of the sixteen outputs in its low halves and inputs
  //   4(j+4).. in its high ones; sixteen scales, and sixteen least values (halves).
  // 8 bits: 8 x 64 bytes of values + kShift, vector j holding inputs 4j..4j+3 of the sixteen outputs.
  std::unique_ptr<std::byte[]> memory;
  std::byte* groups = nullptr;     // in it, on a line of the processor's cache
  std::vector<float> scales;       // of 8 bits, [outputs]

  int group_count() const { return inputs / kGroup; }
  int tile_count() const { return outputs / kTileOutputs; }
  size_t tile_bytes() const {
    return size_t(group_count()) * kTileOutputs * (bits == 4 ? kGroup / 2 + 2 + 2 : kGroup);
  }
};

// Lays out what comes as codes [outputs, inputs / 2] (input 2i in the low half of byte i), scales and least values
// [outputs, inputs / kGroup] as halves.
std::unique_ptr<PackedWeights> pack_four_bits(int inputs, int outputs, const uint8_t* codes, const uint16_t* scales,
                                              const uint16_t* least);

// Lays out values [outputs, inputs] and scales [outputs].
std::unique_ptr<PackedWeights> pack_eight_bits(int inputs, int outputs, const int8_t* values, const float* scales);

struct LinearRows {
  const PackedWeights* weights;
  int64_t rows;
  const float* inputs;             // [rows, inputs]
  float* outputs;                  // [rows, outputs]
};

using Multiply = void(const LinearRows&, const Parallel&);

namespace avx2 {
Multiply multiply;
}
namespace avx512 {
Multiply multiply;
}

}  // namespace drafthouse

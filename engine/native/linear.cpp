#include "linear.hpp"

#include <cstring>

namespace drafthouse {
namespace {

std::unique_ptr<PackedWeights> no_weights(int bits, int inputs, int outputs) {
  constexpr size_t kLine = 64;
  auto packed = std::make_unique<PackedWeights>();
  packed->bits = bits;
  packed->inputs = inputs;
  packed->outputs = outputs;
  packed->memory.reset(new std::byte[packed->tile_count() * packed->tile_bytes() + kLine]);
  auto address = reinterpret_cast<uintptr_t>(packed->memory.get());
  packed->groups = packed->memory.get() + (kLine - address % kLine) % kLine;
  return packed;
}

// Calls with a group's place in the packed weights, its output, that output's lane in the tile, and the group.
template <class Pack>
void for_each_group(const PackedWeights& packed, const Pack& pack) {
  size_t group_bytes = packed.tile_bytes() / packed.group_count();
  for (int output = 0; output < packed.outputs; ++output) {
    std::byte* tile = packed.groups + output / kTileOutputs * packed.tile_bytes();
    for (int group = 0; group < packed.group_count(); ++group)
      pack(tile + group * group_bytes, size_t(output), output % kTileOutputs, group);
  }
}

}  // namespace

std::unique_ptr<PackedWeights> pack_four_bits(int inputs, int outputs, const uint8_t* codes, const uint16_t* scales,
                                              const uint16_t* least) {
  auto packed = no_weights(4, inputs, outputs);
  for_each_group(*packed, [&](std::byte* to, size_t output, int lane, int group) {
    auto* bytes_to = reinterpret_cast<uint8_t*>(to);
    const uint8_t* from = codes + (output * inputs + size_t(group) * kGroup) / 2;
    auto code = [from](int input) { return (from[input / 2] >> (input % 2 * 4)) & 15; };
    for (int input = 0; input < kGroup / 2; ++input)
      bytes_to[(input / 4 * kTileOutputs + lane) * 4 + input % 4] = uint8_t(code(input) | code(input + kGroup / 2) << 4);
    size_t at = output * packed->group_count() + group;
    std::memcpy(to + kGroup / 2 * kTileOutputs + 2 * lane, scales + at, 2);
    std::memcpy(to + (kGroup / 2 + 2) * kTileOutputs + 2 * lane, least + at, 2);
  });
  return packed;
}

std::unique_ptr<PackedWeights> pack_eight_bits(int inputs, int outputs, const int8_t* values, const float* scales) {
  auto packed = no_weights(8, inputs, outputs);
  packed->scales.assign(scales, scales + outputs);
  for_each_group(*packed, [&](std::byte* to, size_t output, int lane, int group) {
    auto* bytes_to = reinterpret_cast<uint8_t*>(to);
    const int8_t* from = values + output * inputs + size_t(group) * kGroup;
    for (int input = 0; input < kGroup; ++input)
      bytes_to[(input / 4 * kTileOutputs + lane) * 4 + input % 4] = uint8_t(from[input] + kShift);
  });
  return packed;
}

}  // namespace drafthouse

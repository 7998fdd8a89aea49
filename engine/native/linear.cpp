#include "linear.hpp"

#include <cstring>

namespace drafthouse {

std::unique_ptr<PackedWeights> pack_weights(int inputs, int outputs, const uint8_t* codes, const uint16_t* scales,
                                            const uint16_t* least) {
  constexpr size_t kLine = 64;
  auto packed = std::make_unique<PackedWeights>();
  packed->inputs = inputs;
  packed->outputs = outputs;
  int groups = packed->group_count(), tiles = packed->tile_count();
  size_t bytes = size_t(tiles) * groups * kGroupBytes;
  packed->memory.reset(new std::byte[bytes + kLine]);
  auto address = reinterpret_cast<uintptr_t>(packed->memory.get());
  packed->groups = packed->memory.get() + (kLine - address % kLine) % kLine;
  for (int tile = 0; tile < tiles; ++tile) {
    for (int group = 0; group < groups; ++group) {
      std::byte* to = packed->groups + (size_t(tile) * groups + group) * kGroupBytes;
      auto* bytes_to = reinterpret_cast<uint8_t*>(to);
      for (int lane = 0; lane < kTileOutputs; ++lane) {
        size_t output = size_t(tile) * kTileOutputs + lane;
        const uint8_t* from = codes + (output * inputs + size_t(group) * kGroup) / 2;
        auto code = [from](int input) { return (from[input / 2] >> (input % 2 * 4)) & 15; };
        for (int input = 0; input < kGroup / 2; ++input)
          bytes_to[(input / 4 * kTileOutputs + lane) * 4 + input % 4] = uint8_t(code(input) | code(input + kGroup / 2) << 4);
        std::memcpy(to + kGroup / 2 * kTileOutputs + 2 * lane, scales + output * groups + group, 2);
        std::memcpy(to + (kGroup / 2 + 2) * kTileOutputs + 2 * lane, least + output * groups + group, 2);
      }
    }
  }
  return packed;
}

}  // namespace drafthouse

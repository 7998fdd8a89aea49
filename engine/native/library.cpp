// The functions that Python calls (see engine/native/library.py); they throw nothing and return what is wrong as text.
#include "library.hpp"

#include <cpuid.h>

#include <map>
#include <memory>
#include <mutex>
#include <thread>

namespace drafthouse {
namespace {

std::mutex guard;
std::map<int64_t, std::unique_ptr<OpenCache>> caches;
std::map<int64_t, std::shared_ptr<const PackedWeights>> weights;
int64_t next_number = 1;
thread_local std::string said;

const char* say(std::string text) {
  said = std::move(text);
  return said.empty() ? nullptr : said.c_str();
}

bool converts_halves() {  // f16c, which clang's __builtin_cpu_supports does not know
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// Products of bytes in one instruction, AVX-512's or AVX's, which is what OpenVINO multiplies int8 with.
bool multiplies_bytes() {
  unsigned a, b, c, d;
  bool known = __get_cpuid_count(7, 0, &a, &b, &c, &d);
  if (known && (c & bit_AVX512VNNI)) return true;
  return known && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVXVNNI);
}

Kernels choose() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    return {avx512::attend, avx512::multiply, "avx512"};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves())
    return {avx2::attend, avx2::multiply, "avx2"};
  return {nullptr, nullptr, ""};
}

Kernels& kernels() {
  static Kernels chosen = choose();
  return chosen;
}

// Without OpenVINO's threads: each call starts its own.
Parallel own_threads(int threads) {
  return {threads, [threads](int count, const std::function<void(int)>& item) {
            std::vector<std::thread> others;
            auto some = [&](int first) {
              for (int index = first; index < count; index += threads) item(index);
            };
            for (int i = 1; i < threads; ++i) others.emplace_back(some, i);
            some(0);
            for (auto& other : others) other.join();
          }};
}

// What is wrong with these sizes, or nothing.
std::string refused_sizes(int inputs, int outputs) {
  if (inputs >= kGroup && inputs % kGroup == 0 && outputs >= kTileOutputs && outputs % kTileOutputs == 0) return "";
  return "weights of " + std::to_string(outputs) + " outputs and " + std::to_string(inputs) +
         " inputs are not supported: multiples of 16 and 32";
}

const char* keep(std::shared_ptr<const PackedWeights> packed, int64_t* number) {
  std::lock_guard lock(guard);
  weights[*number = next_number++] = std::move(packed);
  return nullptr;
}

}  // namespace

OpenCache* find_cache(int64_t number) {
  std::lock_guard lock(guard);
  auto found = caches.find(number);
  return found == caches.end() ? nullptr : found->second.get();
}

std::shared_ptr<const PackedWeights> find_weights(int64_t number) {
  std::lock_guard lock(guard);
  auto found = weights.find(number);
  return found == weights.end() ? nullptr : found->second;
}

const Kernels& chosen_kernels() { return kernels(); }

}  // namespace drafthouse

using namespace drafthouse;

extern "C" {

// The instruction set that runs; empty if this processor has none of those that the library was made for.
const char* drafthouse_instructions() { return kernels().name; }

int drafthouse_has_vnni() { return multiplies_bytes(); }

// For tests: run another instruction set from now on; 0 if this processor does not have it.
int drafthouse_use_instructions(const char* name) {
  Kernels best = choose();
  std::string wanted = name;
  if (!best.attend || (wanted == "avx512" && best.attend != avx512::attend)) return 0;
  kernels() = wanted == "avx512" ? best : Kernels{avx2::attend, avx2::multiply, "avx2"};
  return 1;
}

int64_t drafthouse_cache_bytes(int layers, int blocks, int kv_heads, int head_size, int precision) {
  return int64_t(Cache{layers, blocks, kv_heads, head_size, Precision(precision), nullptr}.bytes());
}

// A number for a cache, which operators can be made for before it is opened.
int64_t drafthouse_cache_number() {
  std::lock_guard lock(guard);
  return next_number++;
}

// Opens a cache in zeroed memory of so many bytes, which outlives it.
const char* drafthouse_cache_open(int64_t number, int layers, int blocks, int kv_heads, int head_size, int precision,
                                  void* memory) {
  if (layers < 1 || blocks < 1 || kv_heads < 1 || head_size < kLeastHeadSize || head_size > kMostHeadSize ||
      head_size % kLeastHeadSize || precision < 0 || precision > 2)
    return say("a cache of " + std::to_string(layers) + " layers, " + std::to_string(blocks) + " blocks, " +
               std::to_string(kv_heads) + " key heads of " + std::to_string(head_size) +
               " is not supported: heads are multiples of 16, up to 256");
  std::lock_guard lock(guard);
  auto opened = std::make_unique<OpenCache>();
  opened->cache = {layers, blocks, kv_heads, head_size, Precision(precision), static_cast<std::byte*>(memory)};
  caches[number] = std::move(opened);
  return nullptr;
}

void drafthouse_cache_close(int64_t number) {
  std::lock_guard lock(guard);
  caches.erase(number);
}

const char* drafthouse_step(int64_t number, int requests, const int32_t* row_begins, const int32_t* past,
                            const int32_t* block_begins, const int32_t* blocks, const int32_t* parents,
                            const int32_t* weighed) {
  OpenCache* open = find_cache(number);
  if (!open) return say("there is no cache " + std::to_string(number));
  return say(open->step.assign(open->cache, requests, row_begins, past, block_begins, blocks, parents, weighed));
}

// What the weighed requests' blocks of the last step got, [blocks of all requests].
const char* drafthouse_block_weights(int64_t number, float* weights, int64_t count) {
  OpenCache* open = find_cache(number);
  if (!open) return say("there is no cache " + std::to_string(number));
  std::vector<float> found = open->step.block_weights();
  if (int64_t(found.size()) != count) return say("the step has " + std::to_string(found.size()) + " blocks");
  std::copy(found.begin(), found.end(), weights);
  return nullptr;
}

// Copies rows one after the other; moves is [count][from block, from row, to block, to row].
const char* drafthouse_move_rows(int64_t number, int64_t count, const int32_t* moves) {
  OpenCache* open = find_cache(number);
  if (!open) return say("there is no cache " + std::to_string(number));
  for (int64_t i = 0; i < 2 * count; ++i)
    if (moves[2 * i] < 0 || moves[2 * i] >= open->cache.blocks || moves[2 * i + 1] < 0 ||
        moves[2 * i + 1] >= kBlockRows)
      return say("there is no row " + std::to_string(moves[2 * i + 1]) + " of block " + std::to_string(moves[2 * i]));
  for (int64_t i = 0; i < count; ++i)
    copy_row(open->cache, {moves[4 * i], moves[4 * i + 1]}, {moves[4 * i + 2], moves[4 * i + 3]});
  return nullptr;
}

// One layer of the step, without a graph around it; rows are dense.
const char* drafthouse_attend(int64_t number, int layer, int heads, float scale, int window, const float* queries,
                              const float* keys, const float* values, float* outputs, int threads) {
  OpenCache* open = find_cache(number);
  if (!open) return say("there is no cache " + std::to_string(number));
  if (layer < 0 || layer >= open->cache.layers || heads < 1 || heads % open->cache.kv_heads)
    return say("layer " + std::to_string(layer) + " with " + std::to_string(heads) + " heads does not fit a cache of " +
               std::to_string(open->cache.layers) + " layers and " + std::to_string(open->cache.kv_heads) + " key heads");
  int64_t query_width = int64_t(heads) * open->cache.head_size;
  int64_t key_width = int64_t(open->cache.kv_heads) * open->cache.head_size;
  Layer work{layer, heads, scale, window, queries, keys, values, outputs, query_width, key_width, key_width, query_width};
  kernels().attend(open->cache, open->step, work, own_threads(threads));
  return nullptr;
}

// Packs the weights of a layer (see linear.hpp) and gives them a number.
const char* drafthouse_pack_four_bits(int inputs, int outputs, const uint8_t* codes, const uint16_t* scales,
                                      const uint16_t* least, int64_t* number) {
  if (auto wrong = refused_sizes(inputs, outputs); !wrong.empty()) return say(wrong);
  return keep(pack_four_bits(inputs, outputs, codes, scales, least), number);
}

const char* drafthouse_pack_eight_bits(int inputs, int outputs, const int8_t* values, const float* scales,
                                       int64_t* number) {
  if (auto wrong = refused_sizes(inputs, outputs); !wrong.empty()) return say(wrong);
  return keep(pack_eight_bits(inputs, outputs, values, scales), number);
}

void drafthouse_weights_close(int64_t number) {
  std::lock_guard lock(guard);
  weights.erase(number);
}

// A layer without a graph around it.
const char* drafthouse_multiply(int64_t number, int64_t rows, const float* inputs, float* outputs, int threads) {
  auto found = find_weights(number);
  if (!found) return say("there are no weights " + std::to_string(number));
  kernels().multiply({found.get(), rows, inputs, outputs}, own_threads(threads));
  return nullptr;
}
}

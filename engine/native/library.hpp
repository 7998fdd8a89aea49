// What a process knows of its caches and weights: the operators find them by number.
#pragma once

#include "attention.hpp"
#include "linear.hpp"

namespace drafthouse {

struct OpenCache {
  Cache cache;
  Step step;
};

// Null for a number that was not given out, or was given back.
OpenCache* find_cache(int64_t number);

std::shared_ptr<const PackedWeights> find_weights(int64_t number);

// The kernels for this processor, and its instruction set's name.
struct Kernels {
  Attend* attend;
  Multiply* multiply;
  const char* name;
};
const Kernels& chosen_kernels();

}  // namespace drafthouse

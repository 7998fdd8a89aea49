// What a process knows of its caches: the operator finds them by number.
#pragma once

#include "attention.hpp"

namespace drafthouse {

struct OpenCache {
  Cache cache;
  Step step;
};

// Null for a number that was not given out, or was given back.
OpenCache* find_cache(int64_t number);

// The kernel for this processor, and its instruction set's name.
Attend* chosen_kernel();
const char* chosen_name();

}  // namespace drafthouse

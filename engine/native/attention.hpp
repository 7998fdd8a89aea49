// Paged attention that reads each cache block once for all rows of a request.
//
// What makes it exact: a row's output is a function of its query and of the rows that it sees, computed in an order that
// is fixed by their places in the context.
//
//  * A score is one product after the other, over the dimensions of a head, whichever lane it is computed in.
//  * The context is cut into chunks of 256 rows by place. In a chunk, the largest score, the sum of exponentials and the
//    weighted values are computed over the rows in order.
//  * Chunks are joined one after the other, from the first on (the online softmax of arXiv 1805.02867).
//
// So it does not matter how many rows, requests or threads there are, who computes which chunk, or whether a row came
// with a prompt, alone, in a chain or in a tree: of a tree's row, the new part of the context is put together from its
// path, where plain decoding would find it.
#pragma once

#include <functional>

#include "cache.hpp"
#include "step.hpp"

namespace drafthouse {

constexpr int kChunkRows = 256;

// One layer's part of a step. Rows of queries, keys, values and outputs are `*_stride` floats apart.
struct Layer {
  int layer;
  int heads;             // query heads, a multiple of the cache's key heads
  float scale;           // of the scores
  int window;            // a row sees so many rows, itself included; 0: all
  const float *queries, *keys, *values;
  float* outputs;
  int64_t query_stride, key_stride, value_stride, output_stride;
};

// Runs f(0) .. f(count - 1), maybe at the same time; `threads` is how many may run at once.
struct Parallel {
  int threads;
  std::function<void(int count, const std::function<void(int)>&)> run;
};

// Writes the new rows of keys and values to the cache, and the attention of all rows to `outputs`.
using Attend = void(const Cache&, const Step&, const Layer&, const Parallel&);

namespace avx2 {
Attend attend;
}
namespace avx512 {
Attend attend;
}

}  // namespace drafthouse

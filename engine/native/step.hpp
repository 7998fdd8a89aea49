// What a step's rows are: the metadata of attention.
//
// Rows stand request after request. A request has `past` rows in the cache, in the order of its list of blocks, and
// new ones at `past ..` of that list. A new row sees all past rows, its ancestors among the new ones, and itself; the
// ancestors of a chain are the rows before it. The list of blocks need not be the request's whole context: attention
// knows no positions but the places in the list.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache.hpp"

namespace drafthouse {

constexpr int kTileRows = 16;  // new rows of a request that share a pass over its context

struct Request {
  int first_row;
  int rows;
  int past;
  const int32_t* blocks;
  int num_blocks;
  bool chain;
  const int32_t* path_begins;  // of a tree: [rows + 1], where each row's path begins in `paths`
  const int32_t* paths;        // of a tree: new rows from the root to the row itself
  float* head_weights;         // [key heads][num_blocks], or null: grows by the attention that each block gets
  int block_of(int row) const { return blocks[row / kBlockRows]; }
};

class Step {
 public:
  // Takes a step over, or returns what is wrong with it and keeps the one before.
  //
  // row_begins, block_begins: [requests + 1]; past, weighed: [requests]; parents: [rows], the request's row that each
  // follows, -1 for the past alone; null where all are chains, as `weighed` where nobody is. A weighed request has at
  // most kTileRows rows.
  std::string assign(const Cache& cache, int requests, const int32_t* row_begins, const int32_t* past,
                     const int32_t* block_begins, const int32_t* blocks, const int32_t* parents,
                     const int32_t* weighed);

  const std::vector<Request>& requests() const { return requests_; }
  int rows() const { return rows_; }
  // [blocks of all requests]: what the weighed requests' blocks got, summed over layers, rows and heads.
  std::vector<float> block_weights() const;

 private:
  std::vector<Request> requests_;
  std::vector<int32_t> blocks_, path_begins_, paths_;
  std::vector<float> head_weights_;  // request after request, [key heads][its blocks]
  int rows_ = 0, kv_heads_ = 0;
};

}  // namespace drafthouse

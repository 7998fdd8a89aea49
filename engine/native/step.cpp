#include "step.hpp"

#include <algorithm>

namespace drafthouse {
namespace {

constexpr size_t kMostPathRows = size_t(1) << 22;  // 16 MiB of paths

std::string number(int64_t value) { return std::to_string(value); }

// The first thing that is wrong with a list of places where parts begin, or nothing.
std::string check_begins(const char* what, const int32_t* begins, int count) {
  if (begins[0] != 0) return std::string(what) + " begin at " + number(begins[0]) + ", not at 0";
  for (int i = 0; i < count; ++i)
    if (begins[i + 1] <= begins[i])
      return "request " + number(i) + " has " + number(int64_t(begins[i + 1]) - begins[i]) + " " + what;
  return "";
}

bool is_chain(const int32_t* parents, int rows) {
  for (int row = 0; row < rows; ++row)
    if (parents[row] != row - 1) return false;
  return true;
}

}  // namespace

std::string Step::assign(const Cache& cache, int requests, const int32_t* row_begins, const int32_t* past,
                         const int32_t* block_begins, const int32_t* blocks, const int32_t* parents,
                         const int32_t* weighed) {
  if (requests < 1) return "a step has " + number(requests) + " requests; it needs one at least";
  for (auto& [what, begins] : {std::pair{"rows", row_begins}, std::pair{"blocks", block_begins}})
    if (auto wrong = check_begins(what, begins, requests); !wrong.empty()) return wrong;
  std::vector<uint8_t> listed(cache.blocks, 0);  // how often, up to twice
  for (int at = 0; at < block_begins[requests]; ++at) {
    if (blocks[at] < 0 || blocks[at] >= cache.blocks)
      return "block " + number(blocks[at]) + " is named; the cache has 0 to " + number(cache.blocks - 1);
    listed[blocks[at]] = std::min(listed[blocks[at]] + 1, 2);
  }
  size_t path_rows = 0;
  std::vector<int32_t> depths;
  for (int i = 0; i < requests; ++i) {
    int rows = row_begins[i + 1] - row_begins[i];
    int64_t places = int64_t(block_begins[i + 1] - block_begins[i]) * kBlockRows;
    if (past[i] < 0 || past[i] + int64_t(rows) > places)
      return "request " + number(i) + " has " + number(past[i]) + " past and " + number(rows) +
             " new rows; its blocks hold " + number(places);
    for (int block = past[i] / kBlockRows; block <= (past[i] + rows - 1) / kBlockRows; ++block)
      if (listed[blocks[block_begins[i] + block]] > 1)
        return "block " + number(blocks[block_begins[i] + block]) + ", which request " + number(i) +
               " writes to, is named more than once";
    if (weighed && weighed[i] && rows > kTileRows)
      return "request " + number(i) + " wants its blocks weighed for " + number(rows) + " rows; at most " +
             number(kTileRows) + " can be";
    if (!parents) continue;
    depths.assign(rows, 0);
    for (int row = 0; row < rows; ++row) {
      int parent = parents[row_begins[i] + row];
      if (parent < -1 || parent >= row)
        return "row " + number(row) + " of request " + number(i) + " follows row " + number(parent) +
               "; it can follow -1 to " + number(row - 1);
      depths[row] = parent < 0 ? 1 : depths[parent] + 1;
      path_rows += depths[row];
    }
    if (path_rows > kMostPathRows && !is_chain(parents + row_begins[i], rows))
      return "the trees of a step have paths of " + number(path_rows) + " rows; at most " + number(kMostPathRows) +
             " are taken";
    if (is_chain(parents + row_begins[i], rows)) path_rows -= size_t(rows) * (rows + 1) / 2;
  }

  rows_ = row_begins[requests];
  kv_heads_ = cache.kv_heads;
  blocks_.assign(blocks, blocks + block_begins[requests]);
  requests_.clear();
  path_begins_.clear();
  paths_.clear();
  size_t weights = 0;
  for (int i = 0; i < requests; ++i) {
    int rows = row_begins[i + 1] - row_begins[i], num_blocks = block_begins[i + 1] - block_begins[i];
    bool chain = !parents || is_chain(parents + row_begins[i], rows);
    requests_.push_back({row_begins[i], rows, past[i], blocks_.data() + block_begins[i], num_blocks, chain,
                         nullptr, nullptr, nullptr});
    if (weighed && weighed[i]) weights += size_t(num_blocks) * kv_heads_;
    if (chain) continue;
    for (int row = 0; row < rows; ++row) {
      path_begins_.push_back(int32_t(paths_.size()));
      for (int at = row; at >= 0; at = parents[row_begins[i] + at]) paths_.push_back(at);
      std::reverse(paths_.begin() + path_begins_.back(), paths_.end());
    }
    path_begins_.push_back(int32_t(paths_.size()));
  }
  head_weights_.assign(weights, 0.0f);
  // Only now do the arrays stay where they are.
  const int32_t* path_begins = path_begins_.data();
  float* head_weights = head_weights_.data();
  for (int i = 0; i < requests; ++i) {
    Request& request = requests_[i];
    if (!request.chain) {
      request.path_begins = path_begins;
      request.paths = paths_.data();
      path_begins += request.rows + 1;
    }
    if (weighed && weighed[i]) {
      request.head_weights = head_weights;
      head_weights += size_t(request.num_blocks) * kv_heads_;
    }
  }
  return "";
}

std::vector<float> Step::block_weights() const {
  std::vector<float> sums;
  for (const Request& request : requests_)
    for (int block = 0; block < request.num_blocks; ++block) {
      float sum = 0;
      if (request.head_weights)
        for (int head = 0; head < kv_heads_; ++head) sum += request.head_weights[head * request.num_blocks + block];
      sums.push_back(sum);
    }
  return sums;
}

}  // namespace drafthouse

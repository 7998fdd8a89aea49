// The kernels as operators of OpenVINO. `drafthouse::PagedAttention`: queries, keys and values of a step's rows in, their
// attention out; the step itself, its blocks and paths, stands with the cache (see library.hpp). `drafthouse::Linear`: rows
// in, their products with packed weights out.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <cstring>

#include "library.hpp"
#include "tbb/parallel_for.h"
#include "tbb/task_arena.h"

namespace drafthouse {

// The threads that OpenVINO runs the graph on.
Parallel openvino_threads() {
  auto run = [](int count, const std::function<void(int)>& item) {
    tbb::parallel_for(0, count, [&](int index) { item(index); });
  };
  return {tbb::this_task_arena::max_concurrency(), run};
}

class PagedAttention : public ov::op::Op {
 public:
  OPENVINO_OP("PagedAttention", "drafthouse");

  PagedAttention() = default;
  PagedAttention(const ov::OutputVector& arguments) : Op(arguments) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    set_output_type(0, ov::element::f32, get_input_partial_shape(0));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
    auto copy = std::make_shared<PagedAttention>();
    copy->set_arguments(arguments);
    copy->cache_ = cache_;
    copy->layer_ = layer_;
    copy->window_ = window_;
    copy->scale_ = scale_;
    copy->constructor_validate_and_infer_types();
    return copy;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("cache", cache_);
    visitor.on_attribute("layer", layer_);
    visitor.on_attribute("window", window_);
    visitor.on_attribute("scale", scale_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    OpenCache* open = find_cache(cache_);
    OPENVINO_ASSERT(open, "cache ", cache_, " is closed");
    const ov::Shape& shape = inputs[0].get_shape();
    outputs[0].set_shape(shape);
    size_t width = open->cache.kv_heads * size_t(open->cache.head_size);
    size_t heads = shape[1] / open->cache.head_size;
    OPENVINO_ASSERT(shape[1] == heads * open->cache.head_size && heads % open->cache.kv_heads == 0 && inputs[1].get_shape()[1] == width &&
                        inputs[2].get_shape()[1] == width && layer_ < open->cache.layers &&
                        size_t(open->step.rows()) <= shape[0],
                    "attention of ", shape, " does not fit the step of ", open->step.rows(), " rows");
    auto* output = outputs[0].data<float>();
    Layer work{int(layer_),          int(heads),           scale_,           int(window_),
               inputs[0].data<float>(), inputs[1].data<float>(), inputs[2].data<float>(), output,
               int64_t(shape[1]),    int64_t(width),        int64_t(width),   int64_t(shape[1])};
    chosen_kernels().attend(open->cache, open->step, work, openvino_threads());
    size_t computed = size_t(open->step.rows()) * shape[1];
    std::memset(output + computed, 0, (shape[0] * shape[1] - computed) * sizeof(float));  // what fills up the step
    return true;
  }

 private:
  int64_t cache_ = 0, layer_ = 0, window_ = 0;
  float scale_ = 1;
};

class Linear : public ov::op::Op {
 public:
  OPENVINO_OP("Linear", "drafthouse");

  Linear() = default;
  Linear(const ov::OutputVector& arguments) : Op(arguments) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    auto shape = get_input_partial_shape(0);
    shape[1] = outputs_;
    set_output_type(0, ov::element::f32, shape);
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
    auto copy = std::make_shared<Linear>();
    copy->set_arguments(arguments);
    copy->weights_ = weights_;
    copy->outputs_ = outputs_;
    copy->constructor_validate_and_infer_types();
    return copy;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("weights", weights_);
    visitor.on_attribute("outputs", outputs_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    auto packed = find_weights(weights_);
    OPENVINO_ASSERT(packed, "weights ", weights_, " are closed");
    const ov::Shape& shape = inputs[0].get_shape();
    OPENVINO_ASSERT(shape.size() == 2 && shape[1] == size_t(packed->inputs), "inputs of ", shape, " do not fit weights of ",
                    packed->inputs);
    outputs[0].set_shape({shape[0], size_t(packed->outputs)});
    LinearRows work{packed.get(), int64_t(shape[0]), inputs[0].data<float>(), outputs[0].data<float>()};
    chosen_kernels().multiply(work, openvino_threads());
    return true;
  }

 private:
  int64_t weights_ = 0, outputs_ = 0;
};

}  // namespace drafthouse

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<drafthouse::PagedAttention>>(),
    std::make_shared<ov::OpExtension<drafthouse::Linear>>(),
}));

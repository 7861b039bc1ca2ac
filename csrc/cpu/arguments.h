// From the ops' arguments to plain memory: checks for callers of torch.ops (the Python functions check first, and better).
#pragma once
#include "../tensors.h"
#include "executor.h"

namespace SPS_NAMESPACE {

inline Dtype dtype_of(const Tensor& logits, const char* name) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBfloat16;
    case ScalarType::Half: return kFloat16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, bfloat16 or float16");
  }
  return kFloat32;
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty_on(aoti_torch_device_type_cpu(), 0, sizes, type);
}

// Logits [rows, V], or [B, R, V] seen from request 0.
inline Rows rows_of(const Tensor& logits, const char* name) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, name, ": expected 2 or 3 dimensions, got ", dim);
  STD_TORCH_CHECK(logits.is_cpu(), name, ": expected a tensor on cpu");
  STD_TORCH_CHECK(logits.size(dim - 1) <= 1 || logits.stride(dim - 1) == 1, name,
                  ": expected a contiguous last dimension");
  const Dtype dtype = dtype_of(logits, name);
  Rows rows;
  rows.data = static_cast<const char*>(logits.const_data_ptr());
  rows.vocab = logits.size(dim - 1);
  rows.stride = logits.stride(dim - 2) * static_cast<int64_t>(logits.element_size());
  rows.passes = &cpu_capability().passes[dtype];
  return rows;
}

// An int with its optional int64 tensor of `count` values; `step` is added from one entry to the next of a plain int.
class PerRow {
 public:
  PerRow(int64_t number, const OptionalTensor& values, int64_t count, int64_t step, const char* name)
      : number_(number), step_(step) {
    if (!values) return;
    STD_TORCH_CHECK(values->scalar_type() == ScalarType::Long && values->numel() == count, name,
                    ": expected int64 with ", count, " values");
    kept_ = compact(*values);
    data_ = static_cast<const int64_t*>(kept_->const_data_ptr());
  }
  int64_t operator[](int64_t i) const {
    return data_ ? data_[i] : static_cast<int64_t>(static_cast<uint64_t>(number_) + static_cast<uint64_t>(step_ * i));
  }

 private:
  int64_t number_, step_;
  OptionalTensor kept_;
  const int64_t* data_ = nullptr;
};

// Sampling of each row: four numbers, or float64 [4, n].
class Samplings {
 public:
  Samplings(const std::vector<double>& numbers, const OptionalTensor& rows, const char* name) {
    STD_TORCH_CHECK(numbers.size() == 4, name, ": expected 4 numbers, got ", numbers.size());
    if (!rows) {
      list_ = {Sampling{numbers[0], numbers[1], numbers[2], numbers[3]}};
      return;
    }
    STD_TORCH_CHECK(rows->dim() == 2 && rows->size(0) == 4 && rows->scalar_type() == ScalarType::Double, name,
                    ": expected float64 [4, n]");
    const Tensor values = compact(*rows);
    const auto* p = static_cast<const double*>(values.const_data_ptr());
    const int64_t n = values.size(1);
    for (int64_t i = 0; i < n; ++i) list_.push_back(Sampling{p[i], p[n + i], p[2 * n + i], p[3 * n + i]});
    shared_ = false;
  }
  const Sampling& operator[](int64_t i) const { return list_[shared_ ? 0 : i]; }
  const Sampling* data() const { return list_.data(); }
  bool shared() const { return shared_; }
  int64_t size() const { return static_cast<int64_t>(list_.size()); }

 private:
  std::vector<Sampling> list_;
  bool shared_ = true;
};

// A per-node input; keeps a contiguous copy alive when it had to make one.
class NodeInts {
 public:
  NodeInts(const OptionalTensor& values, const char* name) {
    if (!values) return;
    const ScalarType type = values->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int, name, ": expected int64 or int32");
    kept_ = compact(*values);
    ints_ = Ints{kept_->const_data_ptr(), type == ScalarType::Long};
    size_ = kept_->numel();
    shared_ = kept_->dim() == 1;
  }
  // Those of request b of a dense batch, `length` each; one list may serve all requests.
  Ints dense(int64_t b, int64_t length) const { return ints_.from(shared_ ? 0 : b * length); }
  Ints packed(int64_t start) const { return ints_.from(start); }
  bool given() const { return ints_.data != nullptr; }
  int64_t size() const { return size_; }

 private:
  OptionalTensor kept_;
  Ints ints_;
  int64_t size_ = 0;
  bool shared_ = true;
};

// Run f(first, last, split) over `count` independent rows or requests of `work` logits each: spread over the threads when
// there are enough of them, else one after the other with each row's tiles spread.
template <class F>
void for_requests(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorthThreads = 32768;
  const int64_t threads = torch::stable::get_num_threads();
  if (threads > 1 && count >= threads && count * work >= kWorthThreads) {
    const int64_t grain = std::max<int64_t>(1, kWorthThreads / 4 / std::max<int64_t>(1, work));
    torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) { f(first, last, false); });
  } else {
    f(0, count, threads > 1);
  }
}

}  // namespace SPS_NAMESPACE

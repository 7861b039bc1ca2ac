// The CPU as a device of the ops: the definitions that csrc/arguments.h and the ops' headers require of each device.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../library.h"
#include "executor.h"

#if !defined(SPS_CPU_LIBRARY)  // a test registers them in a separate library, beside the extension's
#define SPS_CPU_LIBRARY SPS_OPS
#endif
#define SPS_LIBRARY SPS_CPU_LIBRARY
#define SPS_DISPATCH_KEY CPU
#define SPS_DEVICE_SCHEMES SPS_SCHEMES

namespace SPS_NAMESPACE {

constexpr const char* kDeviceName = "cpu";
constexpr int64_t kMaxVocab = INT32_MAX;
inline bool on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index(const torch::stable::Tensor&) { return 0; }
inline Rows rows_at(const char* data, int64_t vocab, int64_t stride, Dtype dtype) {
  return Rows{data, vocab, stride, &cpu_capability().passes[dtype]};
}

// Run f(first, last, split) over `count` independent rows or requests of `work` logits each: distributed over the threads if there
// are enough of them, otherwise one after another with each row's tiles distributed.
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

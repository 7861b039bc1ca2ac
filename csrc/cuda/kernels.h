// Arguments that all kernels share.
#pragma once
#include "executor.h"

// The block's shared memory.
#if defined(__CUDACC__)
#define SPS_SHARED(name) __shared__ Scratch name
#else
#define SPS_SHARED(name) Scratch& name = cuda_on_cpu::machine.shared<Scratch>()
#endif

namespace SPS_NAMESPACE {

// An int, or one value a row; `step` is added from one row to the next of a plain int.
struct PerRow {
  int64_t number, step;
  const int64_t* values;
  SPS_DEVICE int64_t operator[](int64_t i) const {
    return values ? values[i]
                  : static_cast<int64_t>(static_cast<uint64_t>(number) + static_cast<uint64_t>(step) * static_cast<uint64_t>(i));
  }
};

// Four numbers, or float64 [4, count].
struct Samplings {
  Sampling numbers;
  const double* values;
  int64_t count;
  SPS_DEVICE Sampling operator[](int64_t i) const {
    if (!values) return numbers;
    return Sampling{values[i], values[count + i], values[2 * count + i], values[3 * count + i]};
  }
};

// A per-node input. Dense: `stride` values a request (0: one list for all); packed: in the order of the rows or nodes.
struct NodeInts {
  Ints ints;
  int64_t size, stride;
};

}  // namespace SPS_NAMESPACE

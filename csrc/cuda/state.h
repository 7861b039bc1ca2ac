// What a block keeps in shared memory. All threads run a scheme with the same values, so that laws and arguments in registers
// would be held once a thread; what a pass does not need in its loop is kept here instead.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "../testing/cuda_on_cpu.h"
#endif
#include "../law.h"
#include "../philox.h"
#include "../walk.h"

#define SPS_DEVICE __device__ __forceinline__

namespace specsample {

constexpr int kRowBlock = 512, kRoundBlock = 384;  // threads of a block: schemes hold several laws in registers
constexpr int kMaxWarps = 32, kMaxTiles = 256;
constexpr int kMaxNodes = 1024;
constexpr int kBins = 2048;        // of a digit of the selection (filters.h)
constexpr int kCandidates = 2048;  // tokens of a race that may have won (race.h)

enum Dtype { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// A matrix of logits: rows at a stride, the last dimension contiguous.
struct Rows {
  const char* data;
  int64_t vocab, stride;  // stride in bytes
  int dtype;
  SPS_HD const void* at(int64_t row) const { return data + row * stride; }
};

// Winner of a race: the largest score log w - log E, the lowest id on ties.
struct Best {
  double score;
  int64_t id;

  static SPS_DEVICE Best none() { return Best{-kInfinity, -1}; }
  SPS_DEVICE void offer(double value, int64_t token) {
    if (id < 0 ? value > -kInfinity : (value > score || (value == score && token < id))) score = value, id = token;
  }
  SPS_DEVICE void merge(const Best& other) {
    if (other.id >= 0) offer(other.score, other.id);
  }
};

struct Candidate {
  float above;  // its score, in log2, is at most this
  int32_t id;
};

// What a race over a row is run on; race.h.
struct Race {
  Law target;
  bool residual;  // weights are (target_norm t - draft_norm d)+ instead of t; both laws then have a row and a mass
  Law draft;
  double target_norm, draft_norm;  // scale / mass and 1 / mass, as t and d are not normalised
  Stream stream;
  float level;           // logits are read relative to this one
  int64_t exclude;       // a token that does not take part, or -1
  const int64_t* taken;  // more of those
  int taken_count;

  SPS_DEVICE bool excludes(int64_t token) const {
    if (token == exclude) return true;
    for (int i = 0; i < taken_count; ++i)
      if (taken[i] == token) return true;
    return false;
  }
};

// A value of shared memory, which may not have a constructor: one thread sets it.
template <class T>
struct Stored {
  alignas(T) unsigned char bytes[sizeof(T)];
  SPS_DEVICE T& operator*() { return *reinterpret_cast<T*>(bytes); }
};

// What the executor reads of a request (executor.h), beside `Request`.
struct Inputs {
  Rows target, draft;  // from the request's first row
  Sampling sampling;
  // Of the draft rows: float64 [4, columns], a row's column at draft_first + row * draft_step; null: the numbers serve all.
  Sampling draft_numbers;
  const double* draft_sampling;
  int64_t draft_columns, draft_first, draft_step;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;  // RowStats of the draft rows, or null
};

struct Scratch {
  union {
    unsigned long long histogram[kBins];
    Candidate candidate[kCandidates];
  };
  double tile_sum[kMaxTiles];
  float tile_max[kMaxTiles];
  union {
    double number[kMaxWarps];
    float real[kMaxWarps];
    int64_t whole[kMaxWarps];
    Best best[kMaxWarps];
  };
  double once;
  unsigned long long above;
  int bin;
  int goal;  // of a race: what its best score is known to reach, as ordered bits
  uint32_t candidates;
  uint32_t infinite;
  Stored<Race> race;
  Stored<Request> request;
  Stored<Inputs> inputs;
  uint8_t live[kMaxNodes + 1];
  int32_t tokens[kMaxNodes], parents[kMaxNodes], rows[kMaxNodes + 1], draft_rows[kMaxNodes];
};

}  // namespace specsample

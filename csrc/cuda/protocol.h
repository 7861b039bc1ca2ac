// The contents of a block's shared memory.
//
// The last warp of a block, the conductor, runs the scheme and its scalars; the other threads, the crew, run the passes over rows.
// The conductor writes an order here and meets the crew at a barrier; they meet again when it is done. So a kernel contains each
// pass once, whatever the number of schemes, and passes and schemes do not compete for registers. If several blocks form a team
// (team.h), each has a conductor, and all of them issue the same orders: their decisions depend only on the crews' joint results.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif !defined(SPS_CUDA_ON_CPU)
#error "CUDA C++: for nvcc, or after csrc/emulator/team.h"
#endif
#include "../law.h"
#include "../philox.h"
#include "../walk.h"
#include "shape.h"

#define SPS_DEVICE __device__ __forceinline__

namespace SPS_NAMESPACE {

#if defined(__CUDACC__)
constexpr int kMaxWarps = kCrew / 32;
#else
constexpr int kMaxWarps = 32;
#endif
constexpr int kMaxTiles = 256;
constexpr int kBins = 2048;        // values of a digit in the selection (filters.h)
constexpr int kShared = 1040;      // most bins of a coupling whose histogram fits in shared memory (ratios.h)
constexpr int kBounds = 8;         // bounds of a race that a thread keeps (race_pass.h)
constexpr int kCandidates = 640;   // tokens of a race that may have won
constexpr int kRoom = 640;

enum Dtype { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// A matrix of logits: rows at a stride, the last dimension contiguous.
struct Rows {
  const char* data;
  int64_t vocab, stride;  // stride in bytes
  int dtype;
  SPS_HD const void* at(int64_t row) const { return data + row * stride; }
};

// The winner of a race: the largest score log w - log E, lowest id on ties.
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
  float above;  // an upper bound on its score, in log2
  int32_t id;
};

// Tokens that a pass skips.
struct Skip {
  const int64_t* token = nullptr;
  int64_t count = 0;
  int64_t one = -1;    // one more, or -1
  int64_t before = 0;  // and all ids below this

  SPS_DEVICE bool any() const { return one >= 0 || before > 0 || count > 0; }
  SPS_DEVICE bool has(int64_t id) const {
    if (id == one || id < before) return true;
    for (int64_t i = 0; i < count; ++i)
      if (token[i] == id) return true;
    return false;
  }
};

// The factors that turn the weights of a target and a draft into probabilities.
struct Norms {
  double t = 1, d = 1;
  SPS_DEVICE static Norms of(const Law& target, const Law& draft) { return Norms{1 / target.mass, 1 / draft.mass}; }
};

// The law of the selected draw, b = (ratio of the bin) d; without ratios b = d.
struct BinRatios {
  const double* of_bin = nullptr;
  Binning binning;
};

// The inputs of a race over a row; see race_pass.h. (Like Law, without padding.)
struct Race {
  Law target;
  int64_t residual = false;  // weights are max(scale t - b, floor t, 0) instead of t; the laws then have masses
  Law draft;
  double scale = 1, floor = 0;
  Norms norms;
  BinRatios ratios;
  Stream stream;
  float level = 0;  // logits are taken relative to this one
  bool levelled = false;  // no other level will do: it is the largest logit of the row (which may be 0), or was asked for
  bool bounded = false;   // Scratch::bound has the bounds of this target, stream and level
  Skip skip;

  SPS_DEVICE explicit Race(const Law& law, const Stream& clocks, const Skip& without)
      : target(law), stream(clocks), skip(without) {}
};

// A value in shared memory, where constructors are not allowed: one thread sets it.
template <class T>
struct Stored {
  alignas(T) unsigned char bytes[sizeof(T)];
  SPS_DEVICE T& operator*() { return *reinterpret_cast<T*>(bytes); }
};

// The crew's tasks; see crew.h.
enum class Task : int { kLeave, kLaw, kLikeliest, kRace, kMass, kRest, kHistogram, kSolve, kThreshold };

// An order from the conductor to the crew.
struct Order {
  Task task;
  int dtype;
  Rows rows;  // kLaw: the law of this row
  int64_t row;
  Sampling sampling;
  bool normalised;
  Law law, draft;  // the other tasks: one law, or two
  Norms norms;
  double scale;    // kMass: factor of the target in the residual
  BinRatios ratios;
  Skip skip;
  float after_z;   // kLikeliest: tokens after this one
  int64_t after_id;
  double beyond, point;  // kHistogram: draft mass beyond the target's vocabulary; target probability of a one-hot draft
  Coupling coupling;
};

// Results for a row, computed by a launch before the round's: its law and, for the race, the winner at the row's depth.
struct Ahead {
  Law law;
  int64_t winner, depth;  // depth -1: no race was run
};

// The executor's inputs for a request (executor.h), besides `Request`.
struct Inputs {
  Rows target, draft;  // from the request's first row
  Sampling sampling;
  // For the draft rows: float64 [4, columns], a row's column at draft_first + row * draft_step; null: draft_numbers for all.
  Sampling draft_numbers;
  const double* draft_sampling;
  int64_t draft_columns, draft_first, draft_step;
  const float *kept_max, *kept_logsumexp, *kept_cutoff;  // RowStats of the draft rows, or null
  Ahead *target_ahead, *draft_ahead;  // results for the rows, or null
};

struct Scratch {
  union {
    unsigned long long histogram[kBins > 2 * (kShared + 1) ? kBins : 2 * (kShared + 1)];
    struct {
      float bound[kBounds][32 * kMaxWarps];
      Candidate candidate[kCandidates];
    };
  };
  double tile_sum[kMaxTiles], other_sum[kMaxTiles];
  float tile_max[kMaxTiles];
  union {  // one entry per warp of the team: other blocks write here
    float real[kMaxTeam * kMaxWarps];
    Best best[kMaxTeam * kMaxWarps];
  };
  int64_t whole[kMaxWarps];  // of this block's crew, which may still read it when another block has reached the next reduction
  double once;
  unsigned long long above;
  int bin;
  int goal;  // of a race: a lower bound on its best score, as ordered bits; all blocks of the team raise it
  uint32_t candidates;
  alignas(8) unsigned long long arrivals[2];  // the team's barriers, and how many have been passed
  uint32_t turn;
  double threshold;  // as computed by the team's first block
  Stored<Order> order;
  Stored<Race> race;
  Stored<Law> law;  // the crew's result: of kLaw and kRest,
  Best found;  // of kLikeliest and kRace,
  float level;  // with the logit that the race's scores are relative to,
  double value;  // of the other tasks
  Stored<Request> request;
  Stored<Inputs> inputs;
  double options[kMaxOptions];
  Stored<SiblingList> siblings;
  alignas(8) unsigned char room[kRoom];  // the scheme's memory (Room in walk.h)
  uint8_t live[kMaxNodes + 1];
  union {
    struct {
      int32_t tokens[kMaxNodes], parents[kMaxNodes], rows[kMaxNodes + 1], draft_rows[kMaxNodes], lists[kMaxNodes];
    };
    struct {  // row_kernels.h
      int64_t children[kMaxNodes];  // drawn so far
      double clock[kMaxNodes];  // independent children: when the child's token arrives next; 0 if a later child has that token
    };
  };
};

}  // namespace SPS_NAMESPACE

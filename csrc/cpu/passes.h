// The row passes of the CPU executor: their arguments, and the table of their versions for one instruction set.
//
// A pass runs over tokens [begin, end) of a row, begin a multiple of kAligned (for races, kAlignedRace), and returns a partial
// result to be merged. Sums are added lane by lane in an order that does not depend on the instruction set, so they agree bit for
// bit on every machine.
#pragma once
#include <algorithm>

#include "../coupling.h"
#include "../law.h"
#include "../mixture.h"
#include "../philox.h"

namespace SPS_NAMESPACE {

enum Dtype { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
constexpr int kAligned = 64;  // tokens: tiles begin at multiples of it
constexpr int kAlignedRace = 4 * kGroupTile;  // four tiles of groups, which share the calls for their words
constexpr int kAhead = 2048;  // tokens of a tile; sums prefetch two tiles ahead

// log2 of a weight is (z - max) (high + low): the scale as two floats, since with one the tail would be off by 1e-6.
struct Affine {
  float max = 0, high = 0, low = 0;

  static Affine of(const Law& law) {
    const double scale = law.scale * kLog2e;
    const float high = static_cast<float>(scale);
    return {law.max, high, static_cast<float>(scale - high)};
  }
};

// The winner of a race: the largest score log w - log E, lowest id on ties.
struct Best {
  double score = -kInfinity;
  int64_t id = -1;
  bool infinite = false;  // a +inf logit was found: the law is uniform over these, and the race must be rerun on it

  double threshold() const { return score; }
  static int wanted() { return 1; }
  static int enough() { return 16; }  // groups to open first, for a threshold that rules out most others
  void offer(double value, int64_t token) {
    if (value > score || (value == score && token < id)) score = value, id = token;
  }
  void offer(double log_weight, double clock, int64_t token) { offer(log_weight - std::log(clock), token); }
  void merge(const Best& other) {
    if (other.id >= 0) offer(other.score, other.id);
    infinite |= other.infinite;
  }
};

// The clocks that tokens start once they have arrived, if k children are drawn independently: for one row of its call.
struct Renewals {
  int64_t seed, position, node;
  double operator()(int64_t token, int64_t number) const { return Stream::renewal(seed, position, node, token, number); }
};

// The k largest scores in order, lowest id first on ties: of first arrivals or, with `renewals`, of all arrivals. A token may be
// offered twice, by copies of the same code that round differently: the compiler fuses a multiplication and an addition in one of
// them but not in another.
struct Arrivals {
  int k;
  double* score;
  int64_t* id;
  const Renewals* renewals = nullptr;
  int count = 0;
  bool infinite = false;

  double threshold() const { return count < k ? -kInfinity : score[k - 1]; }
  int wanted() const { return k; }
  int enough() const { return renewals ? 16 : std::max(16, 2 * k); }
  bool offer(double value, int64_t token) {
    if (!(value >= threshold() && value > -kInfinity)) return false;
    for (int i = 0; i < count; ++i)
      if (id[i] == token) return false;
    return insert(value, token);
  }
  void offer(double log_weight, double clock, int64_t token);  // not compiled per instruction set, like nth_largest
  // Of a token that may be there already.
  bool insert(double value, int64_t token) {
    int i = count;
    while (i > 0 && (score[i - 1] < value || (score[i - 1] == value && id[i - 1] > token))) --i;
    if (i == k) return false;
    if (count < k) ++count;
    for (int j = count - 1; j > i; --j) score[j] = score[j - 1], id[j] = id[j - 1];
    score[i] = value, id[i] = token;
    return true;
  }
};

struct RaceArgs {
  const void* row;
  double scale;
  float cutoff;
  const Stream* streams;
  int stream_count;
  bool together;  // all streams in one sink; else stream i in sinks[i]
  const int64_t* exclude;  // tokens that are not in the race
  int exclude_count;
  float level = 0;  // logits are taken relative to this: the row's maximum if float would otherwise overflow
  double offset = 0;  // added to log2 of the weights

  bool excludes(int64_t token) const {
    for (int i = 0; i < exclude_count; ++i)
      if (exclude[i] == token) return true;
    return false;
  }
};

struct ResidualArgs {
  Law target, draft;  // both with a row and a mass
  Residual residual;
  Stream stream;
};

// The value such that n others are at or above it; reorders them. Not compiled per instruction set: a standard library template that
// is instantiated in one instruction set's file could be linked into the others.
float nth_largest(float* value, int count, int n);

// Called with 16 logits (and their weights, if requested); `mask` tells which are >= the bound of the scan.
using Visit = void (*)(void* context, int64_t first, uint32_t mask, const float* logits, const float* weights);

struct Passes {
  const char* name;
  float (*value)(const void* row, int64_t token);
  float (*max)(const void* row, int64_t begin, int64_t end);  // -inf if nothing is finite
  double (*sum)(const void* row, int64_t begin, int64_t end, Affine, float cutoff);  // sum of the kept weights
  double (*tile)(const void* row, int64_t begin, int64_t end, Affine,
                 float* max);  // maximum and sum, without filters; 0 if max is infinite
  double (*residual_mass)(const Law& target, const Law& draft, const Residual&, int64_t begin, int64_t end);
  void (*race)(const RaceArgs&, int64_t begin, int64_t end, Best*);  // the first sink reports +inf logits
  void (*arrivals)(const RaceArgs&, int64_t begin, int64_t end, Arrivals*);
  void (*residual_race)(const ResidualArgs&, int64_t begin, int64_t end, Best*);
  // Adds t and d of the tokens to sums [count + 1][2] by bin, the tail last, in multiples of 2^-52, so that order does not matter.
  void (*histogram)(const Law& target, const Law& draft, const Binning&, int64_t begin, int64_t end, double* sums);
  int (*bin)(const Law& target, const Law& draft, const Binning&, int64_t token);
  // The same for the cells of several laws (mixture_passes.inc), and the race over (t - P)+.
  void (*mixture_sums)(const Law& target, const Mixture&, int64_t begin, int64_t end, double* sums);
  int (*cell)(const Law& target, const Mixture&, int64_t token);
  void (*mixture_race)(const Law& target, const Mixture&, const Stream&, int64_t begin, int64_t end, Best*);
  LevelLoops levels;
  void (*group_words)(const Stream&, int64_t first, uint32_t* out);  // A of 128 groups, first a multiple of 128
  void (*scan)(const void* row, int64_t begin, int64_t end, float bound, const Affine*, Visit, void* context);
};

// One table per dtype, for the best instruction set of this machine (or SPECSAMPLE_CPU=base|avx2|avx512).
struct Capability {
  const char* name;
  const Passes* passes;  // [3], by Dtype
};
const Capability& cpu_capability();
const Capability* find_capability(const char* name);  // null if the machine lacks it

extern const Passes kBasePasses[3];
#if defined(__x86_64__)
extern const Passes kAvx2Passes[3];
extern const Passes kAvx512Passes[3];
#endif

}  // namespace SPS_NAMESPACE

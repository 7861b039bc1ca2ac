// The row passes of the CPU executor: what they take, and the table of one instruction set's versions of them.
//
// A pass runs over tokens [begin, end) of a row, begin a multiple of kAligned (in races of kAlignedRace), and returns a partial result
// that merges. Sums are added lane by lane in an order that does not depend on the instruction set, so they agree to the bit on every
// machine.
#pragma once
#include <algorithm>

#include "../coupling.h"
#include "../law.h"
#include "../mixture.h"
#include "../philox.h"

namespace SPS_NAMESPACE {

enum Dtype { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
constexpr int kAligned = 64;  // tokens: tiles begin at its multiples
constexpr int kAlignedRace = 4 * kGroupTile;  // four tiles of groups, which have their words together
constexpr int kAhead = 2048;  // tokens of a tile; sums prefetch two tiles ahead

// log2 of a weight is (z - max) (high + low): the scale in two floats, since one would cost the tail 1e-6.
struct Affine {
  float max = 0, high = 0, low = 0;

  static Affine of(const Law& law) {
    const double scale = law.scale * kLog2e;
    const float high = static_cast<float>(scale);
    return {law.max, high, static_cast<float>(scale - high)};
  }
};

// Winner of a race: the largest score log w - log E, the lowest id on ties.
struct Best {
  double score = -kInfinity;
  int64_t id = -1;
  bool infinite = false;  // a +inf logit was met: the row's law is uniform over those, and the race must be run on it

  double threshold() const { return score; }
  static int enough() { return 16; }  // groups to open for a threshold that spares most others
  void offer(double value, int64_t token) {
    if (value > score || (value == score && token < id)) score = value, id = token;
  }
  void merge(const Best& other) {
    if (other.id >= 0) offer(other.score, other.id);
    infinite |= other.infinite;
  }
};

// The k largest scores in order, the lowest id first on ties. A token may be offered twice, by copies of one text that round otherwise:
// the compiler fuses a multiplication with an addition in one of them and not in another.
struct Arrivals {
  int k;
  double* score;
  int64_t* id;
  int count = 0;
  bool infinite = false;

  double threshold() const { return count < k ? -kInfinity : score[k - 1]; }
  int enough() const { return std::max(16, 8 * k); }
  void offer(double value, int64_t token) {
    if (!(value >= threshold() && value > -kInfinity)) return;
    for (int i = 0; i < count; ++i)
      if (id[i] == token) return;
    int i = count;
    while (i > 0 && (score[i - 1] < value || (score[i - 1] == value && id[i - 1] > token))) --i;
    if (i == k) return;
    if (count < k) ++count;
    for (int j = count - 1; j > i; --j) score[j] = score[j - 1], id[j] = id[j - 1];
    score[i] = value, id[i] = token;
  }
};

struct RaceArgs {
  const void* row;
  double scale;
  float cutoff;
  const Stream* streams;
  int stream_count;
  bool together;  // in one sink; else stream i in sinks[i]
  const int64_t* exclude;  // tokens that do not take part
  int exclude_count;
  float level = 0;  // logits are read relative to this one: the row's maximum where float would overflow otherwise
  double offset = 0;  // of log2 of the weights

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

// The value that n others are at or above, reordering them. A function of no instruction set: a template of the standard library, made
// in an instruction set's file, could end up in the others' too.
float nth_largest(float* value, int count, int n);

// Called with 16 logits (and their weights, when asked for) of which `mask` says which are >= the bound of the scan.
using Visit = void (*)(void* context, int64_t first, uint32_t mask, const float* logits, const float* weights);

struct Passes {
  const char* name;
  float (*value)(const void* row, int64_t token);
  float (*max)(const void* row, int64_t begin, int64_t end);  // -inf when nothing is finite
  double (*sum)(const void* row, int64_t begin, int64_t end, Affine, float cutoff);  // of the kept weights
  double (*tile)(const void* row, int64_t begin, int64_t end, Affine,
                 float* max);  // both, without filters; 0 where max is infinite
  double (*residual_mass)(const Law& target, const Law& draft, const Residual&, int64_t begin, int64_t end);
  void (*race)(const RaceArgs&, int64_t begin, int64_t end, Best*);  // +inf logits are told by the first sink
  void (*arrivals)(const RaceArgs&, int64_t begin, int64_t end, Arrivals*);
  void (*residual_race)(const ResidualArgs&, int64_t begin, int64_t end, Best*);
  // Adds t and d of the tokens to sums [count + 1][2]: by bin, the tail's last. Multiples of 2^-52, so that order does not matter.
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

// One table a dtype, for the best instruction set of this machine (or SPECSAMPLE_CPU=base|avx2|avx512).
struct Capability {
  const char* name;
  const Passes* passes;  // [3], by Dtype
};
const Capability& cpu_capability();
const Capability* find_capability(const char* name);  // null when the machine lacks it

extern const Passes kBasePasses[3];
#if defined(__x86_64__)
extern const Passes kAvx2Passes[3];
extern const Passes kAvx512Passes[3];
#endif

}  // namespace SPS_NAMESPACE

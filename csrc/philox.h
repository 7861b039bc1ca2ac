// Philox4x32-10 and the stream map: every random number of the compiled backends, defined once for host and device.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//   key     = seed (low, high 32 bits)
//   counter = (block, position low, position high, purpose << 24 | slot)
// The two top bits of a block select a sub-stream: the words of tokens (token i has word i % 4 of block i / 4), their second
// words, and two words for each group of 32 tokens. specsample/reference/rng.py has the tables and explains them.
#pragma once
#include "common.h"

namespace SPS_NAMESPACE {

// Version of the streams below: a seed's tokens change only with it. specsample/version.py repeats it, and import compares the two.
constexpr int kStreamVersion = 3;

enum Purpose : uint32_t { kClock = 0, kAccept = 1, kResidual = 2, kSelect = 3, kDraft = 4, kDistinct = 5, kRenewal = 6 };
constexpr int kRenewalBits = 14;  // of a slot: for the node; the others number a token's renewals

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr uint32_t kRefineBelow = 1u << 12;  // smaller words are refined ...
constexpr uint32_t kRefineBlock = 1u << 31;  // ... by the same counter with this bit of the block set
constexpr uint32_t kGroupBlock = 1u << 30;   // this bit selects the words of groups

// Groups of 32 tokens: in a tile of 1 024 tokens, eight neighbours in each of its four rows of 256. Groups are always whole,
// whatever the vocabulary; the words of the groups that a lane has in four consecutive tiles come from one call.
constexpr int kGroupTokens = 32, kGroupTile = 1024, kGroupRow = 256, kGroupRun = 8;

SPS_HD int64_t group_of(int64_t token) { return (token >> 10) * 32 + ((token >> 3) & 31); }
SPS_HD int place_of(int64_t token) { return static_cast<int>(((token >> 8) & 3) * 8 + (token & 7)); }
SPS_HD int64_t token_of(int64_t group, int place) {
  return (group >> 5) * kGroupTile + (place >> 3) * kGroupRow + (group & 31) * kGroupRun + (place & 7);
}
SPS_HD uint32_t group_block(int64_t group) { return static_cast<uint32_t>(32 * (group >> 7) + (group & 31)); }
SPS_HD int group_word(int64_t group) { return static_cast<int>(group >> 5) & 3; }

struct Words {
  uint32_t v[4];
};

// The keys of the ten rounds, one for each half.
struct PhiloxKeys {
  uint32_t low[10], high[10];

  SPS_HD PhiloxKeys(uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) low[round] = k0 + round * kPhiloxW0, high[round] = k1 + round * kPhiloxW1;
  }
};

SPS_HD Words philox(Words c, const PhiloxKeys& keys) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c.v[0], b = static_cast<uint64_t>(kPhiloxM1) * c.v[2];
    c = Words{{static_cast<uint32_t>(b >> 32) ^ c.v[1] ^ keys.low[round], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ c.v[3] ^ keys.high[round], static_cast<uint32_t>(a)}};
  }
  return c;
}
SPS_HD Words philox(Words c, uint32_t k0, uint32_t k1) { return philox(c, PhiloxKeys(k0, k1)); }

// One stream of the map: the words of tokens and of groups, and the uniforms and clocks derived from them.
struct Stream {
  uint32_t key0, key1, position_low, position_high, purpose_slot;

  SPS_HD Stream(int64_t seed, int64_t position, Purpose purpose, int64_t slot = 0)
      : key0(static_cast<uint32_t>(seed)),
        key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
        position_low(static_cast<uint32_t>(position)),
        position_high(static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32)),
        purpose_slot((static_cast<uint32_t>(purpose) << 24) | (static_cast<uint32_t>(slot) & 0xFFFFFFu)) {}

  // The words of tokens 4 block .. 4 block + 3.
  SPS_HD Words words(uint32_t block, const PhiloxKeys& keys) const {
    return philox(Words{{block, position_low, position_high, purpose_slot}}, keys);
  }
  SPS_HD Words words(uint32_t block) const { return words(block, PhiloxKeys(key0, key1)); }
  SPS_HD uint32_t word(int64_t token, uint32_t refine = 0) const {
    return of_four(words(static_cast<uint32_t>(token >> 2) | refine), static_cast<int>(token & 3));
  }
  // A of a group; with kRefineBlock: S.
  SPS_HD uint32_t word_of_group(int64_t group, uint32_t refine = 0) const {
    return of_four(words(kGroupBlock | refine | group_block(group)), group_word(group));
  }

  // u = (r + 1/2) 2^-32 in (0, 1); r < 2^12 is refined by a second word s: u = (r + (s + 1/2) 2^-32) 2^-32.
  // Exact in double, never 0 or 1.
  SPS_HD double uniform(int64_t token, uint32_t r) const {
    const double fraction = r < kRefineBelow ? (word(token, kRefineBlock) + 0.5) * 0x1p-32 : 0.5;
    return (r + fraction) * 0x1p-32;
  }
  SPS_HD double uniform(int64_t token) const { return uniform(token, word(token)); }

  // Clocks are generated top-down: a group's least clock M = -log1p(-u)/32, from the word A, belongs to the token at a uniform place;
  // the others have M + Exp(1). By the memoryless property these are 32 independent Exp(1) clocks, none of them below M.
  struct Least {
    double clock;
    int place;
  };
  SPS_HD static Least least(uint32_t a, uint32_t s) {
    const double fraction = a < kRefineBelow ? ((s & 0x7FFFFFFu) + 0.5) * 0x1p-27 : 0.5;
    return {-log1p(-(a + fraction) * 0x1p-32) / kGroupTokens, static_cast<int>(s >> 27)};
  }
  SPS_HD Least least(int64_t group) const { return least(word_of_group(group), word_of_group(group, kRefineBlock)); }

  // The clock of a token of this group whose word is r (ignored for the token with the least clock).
  SPS_HD double clock(int64_t token, const Least& of_group, uint32_t r) const {
    return place_of(token) == of_group.place ? of_group.clock : of_group.clock - log1p(-uniform(token, r));
  }
  SPS_HD double clock(int64_t token, const Least& of_group) const { return clock(token, of_group, word(token)); }
  SPS_HD double clock(int64_t token) const { return clock(token, least(group_of(token))); }
  SPS_HD double log_clock(int64_t token) const { return log(clock(token)); }

  // The clock that a token starts after its `number`-th arrival, number >= 1, when several children are drawn independently.
  SPS_HD static double renewal(int64_t seed, int64_t position, int64_t node, int64_t token, int64_t number) {
    const int64_t slot = (node & ((1 << kRenewalBits) - 1)) | number << kRenewalBits;
    return -log1p(-Stream(seed, position, kRenewal, slot).uniform(token));
  }

 private:
  SPS_HD static uint32_t of_four(const Words& w, int at) {
    const uint32_t even = at & 2 ? w.v[2] : w.v[0], odd = at & 2 ? w.v[3] : w.v[1];  // no indexing: stays in registers
    return at & 1 ? odd : even;
  }
};

}  // namespace SPS_NAMESPACE

// Philox4x32-10 and the stream map: every random number of the compiled backends, once, for host and device.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//   key     = seed (low, high 32 bits)
//   counter = (token block i / 4, position low, position high, purpose << 24 | slot); word i % 4 belongs to token i
// specsample/reference/rng.py holds the table of purposes and says why drafts belong to rounds and clocks to positions.
#pragma once
#include "common.h"

namespace SPS_NAMESPACE {

enum Purpose : uint32_t { kClock = 0, kAccept = 1, kResidual = 2, kSelect = 3, kDraft = 4, kDistinct = 5 };

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr uint32_t kRefineBelow = 1u << 12;  // smaller words take 32 more bits ...
constexpr uint32_t kRefineBlock = 1u << 31;  // ... from the same counter with this bit of the token block set

struct Words {
  uint32_t v[4];
};

// The keys of the ten rounds: of each, one for either half.
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

// One stream of the map: a word for each token id.
struct Stream {
  uint32_t key0, key1, position_low, position_high, purpose_slot;

  SPS_HD Stream(int64_t seed, int64_t position, Purpose purpose, int64_t slot = 0)
      : key0(static_cast<uint32_t>(seed)),
        key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
        position_low(static_cast<uint32_t>(position)),
        position_high(static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32)),
        purpose_slot((static_cast<uint32_t>(purpose) << 24) | (static_cast<uint32_t>(slot) & 0xFFFFFFu)) {}

  // Of the tokens 4 block .. 4 block + 3.
  SPS_HD Words words(uint32_t block, const PhiloxKeys& keys) const {
    return philox(Words{{block, position_low, position_high, purpose_slot}}, keys);
  }
  SPS_HD Words words(uint32_t block) const { return words(block, PhiloxKeys(key0, key1)); }
  SPS_HD uint32_t word(int64_t token, uint32_t refine = 0) const {
    const Words w = words(static_cast<uint32_t>(token >> 2) | refine);
    const uint32_t even = token & 2 ? w.v[2] : w.v[0], odd = token & 2 ? w.v[3] : w.v[1];  // no indexing: stays in registers
    return token & 1 ? odd : even;
  }

  // u = (r + 1/2) 2^-32 in (0, 1), where r < 2^12 is refined by a second word s: u = (r + (s + 1/2) 2^-32) 2^-32.
  // Exact in double, never 0 or 1.
  SPS_HD double uniform(int64_t token, uint32_t r) const {
    const double fraction = r < kRefineBelow ? (word(token, kRefineBlock) + 0.5) * 0x1p-32 : 0.5;
    return (r + fraction) * 0x1p-32;
  }
  SPS_HD double uniform(int64_t token) const { return uniform(token, word(token)); }

  // log E of the exponential clock E = -log1p(-u) of `token`, whose word is r.
  SPS_HD double log_clock(int64_t token, uint32_t r) const { return log(-log1p(-uniform(token, r))); }
};

}  // namespace SPS_NAMESPACE

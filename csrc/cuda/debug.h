// Debugging aids: environment variables that change how kernels are launched, but not what they return, so that a fault can be
// bisected. Read once, at the first launch; the README lists them too.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../common.h"

namespace SPS_NAMESPACE {

struct Overrides {
  int team;  // SPECSAMPLE_TEAM = 1, 2, 4 or 8: blocks per team (team.h) in every launch; -1: by the number and length of rows
  int ahead;  // SPECSAMPLE_AHEAD = 0 or 1: never, or always, process all rows before the round; -1: by the number of rows
  int early;  // SPECSAMPLE_EARLY = 0: no launch begins before its predecessor ends; 1 or -1: a round's launch may
  bool trace;  // SPECSAMPLE_TRACE = 1: one line on stderr per launch
};

// The variable's value, which must be one of `allowed`, or -1 if it is not set.
inline int override_of(const char* name, std::initializer_list<int> allowed) {
  const char* text = std::getenv(name);
  if (!text || !*text) return -1;
  std::string expected;
  for (int value : allowed) {
    if (std::to_string(value) == text) return value;
    expected += (expected.empty() ? "" : ", ") + std::to_string(value);
  }
  throw std::runtime_error(std::string(name) + ": expected one of " + expected + ", got " + text);
}

inline const Overrides& overrides() {
  static const Overrides read{override_of("SPECSAMPLE_TEAM", {1, 2, 4, 8}), override_of("SPECSAMPLE_AHEAD", {0, 1}),
                              override_of("SPECSAMPLE_EARLY", {0, 1}), override_of("SPECSAMPLE_TRACE", {0, 1}) == 1};
  return read;
}

inline void trace_launch(int64_t teams, int team, bool early) {
  if (!overrides().trace) return;
  std::fprintf(stderr, "specsample: %lld teams of %d%s\n", static_cast<long long>(teams), team, early ? ", early" : "");
  std::fflush(stderr);
}

}  // namespace SPS_NAMESPACE

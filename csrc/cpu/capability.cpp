// Which instruction set to use: the best one the machine supports, or the one named by SPECSAMPLE_CPU.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "passes.h"

namespace SPS_NAMESPACE {

float nth_largest(float* value, int count, int n) {
  std::nth_element(value, value + n, value + count, std::greater<>());
  return value[n];
}

void Arrivals::offer(double log_weight, double clock, int64_t token) {
  bool more = offer(log_weight - std::log(clock), token);
  for (int64_t n = 1; more && renewals; ++n) {
    clock += (*renewals)(token, n);
    const double value = log_weight - std::log(clock);
    more = value >= threshold() && insert(value, token);
  }
}

const Capability* find_capability(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const Capability avx512{"avx512", kAvx512Passes}, avx2{"avx2", kAvx2Passes};
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!std::strcmp(name, "avx512")) return has_avx512 ? &avx512 : nullptr;
  if (!std::strcmp(name, "avx2")) return has_avx2 ? &avx2 : nullptr;
#endif
  static const Capability base{"base", kBasePasses};
  return std::strcmp(name, "base") ? nullptr : &base;
}

const Capability& cpu_capability() {
  static const Capability& chosen = []() -> const Capability& {
    if (const char* wanted = std::getenv("SPECSAMPLE_CPU"))
      if (const Capability* found = find_capability(wanted)) return *found;
    for (const char* name : {"avx512", "avx2"})
      if (const Capability* found = find_capability(name)) return *found;
    return *find_capability("base");
  }();
  return chosen;
}

}  // namespace SPS_NAMESPACE

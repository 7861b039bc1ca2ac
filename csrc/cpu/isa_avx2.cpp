// The row passes for AVX2 with FMA and F16C. The shared headers come before the target option: their inline functions must not be
// compiled for it, or the linker could pick such a copy for code that runs on machines without it.
#include "passes.h"
#include "isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

namespace SPS_NAMESPACE {
namespace avx2 {
#include "elements.inc"
#include "vec_avx2.inc"
#include "passes.inc"
}  // namespace avx2

const Passes kAvx2Passes[3] = {avx2::passes_of<float>("avx2"), avx2::passes_of<avx2::Bfloat16>("avx2"),
                               avx2::passes_of<avx2::Float16>("avx2")};
}  // namespace SPS_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

// The row passes for AVX-512. The shared headers come before the target option: their inline functions must not be
// compiled for it, or the linker could pick such a copy for code that runs on machines without it.
#include "passes.h"
#include "isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif

namespace SPS_NAMESPACE {
namespace avx512 {
#include "elements.inc"
#include "vec_avx512.inc"
#include "passes.inc"
}  // namespace avx512

const Passes kAvx512Passes[3] = {avx512::passes_of<float>("avx512"), avx512::passes_of<avx512::Bfloat16>("avx512"),
                                 avx512::passes_of<avx512::Float16>("avx512")};
}  // namespace SPS_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

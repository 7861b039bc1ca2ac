// Macros for the files that are compiled once per instruction set.
#pragma once
#include <cmath>
#include <cstdint>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// What all kernels share: the executor, their arguments, and the block's shared memory.
#pragma once
#include "../call.h"
#include "executor.h"

#if defined(__CUDACC__)
#define SPS_SHARED(name) __shared__ Scratch name
#endif

// Shared by all kernels: the executor, the arguments, and the block's shared memory.
#pragma once
#include "executor.h"

#include "../call.h"

#if defined(__CUDACC__)
#define SPS_SHARED(name) __shared__ Scratch name
#endif

// All compiled schemes, one per line; the executors instantiate them from this table.
#pragma once
#include "block.h"
#include "importance.h"
#include "kseq.h"
#include "lists.h"
#include "optimal.h"
#include "optimal_block.h"
#include "race.h"
#include "recursive.h"
#include "recursive_distinct.h"
#include "token.h"
#include "top.h"
#include "weighted.h"

// X(name, whether it uses the drafts' laws, whether it uses clock lists, whether its first option is a coupling's number of bins)
#define SPS_SCHEMES(X)              \
  SPS_CUDA_SCHEMES(X)               \
  X(importance, true, false, false) \
  X(weighted, true, false, false)

// The schemes that run on CUDA.
#define SPS_CUDA_SCHEMES(X)                 \
  X(token, true, false, false)              \
  X(block, true, false, false)              \
  X(race, false, false, false)              \
  X(recursive, true, false, false)          \
  X(recursive_distinct, true, false, false) \
  X(kseq, true, false, true)                \
  X(optimal, true, false, true)             \
  X(optimal_block, true, false, true)       \
  X(top, true, false, false)                \
  X(lists, false, true, false)

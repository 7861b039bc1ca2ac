// Every compiled scheme, one line each: the executors instantiate them from here.
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

// X(name, whether drafts' laws enter, whether clock lists are read)
#define SPS_SCHEMES(X)       \
  SPS_CUDA_SCHEMES(X)        \
  X(importance, true, false) \
  X(weighted, true, false)

// Those of them that run on CUDA.
#define SPS_CUDA_SCHEMES(X)          \
  X(token, true, false)              \
  X(block, true, false)              \
  X(race, false, false)              \
  X(recursive, true, false)          \
  X(recursive_distinct, true, false) \
  X(kseq, true, false)               \
  X(optimal, true, false)            \
  X(optimal_block, true, false)      \
  X(top, true, false)                \
  X(lists, false, true)

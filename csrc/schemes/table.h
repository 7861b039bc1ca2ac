// Every compiled scheme, one line each: the executors instantiate them from here.
#pragma once
#include "block.h"
#include "race.h"
#include "token.h"

// X(name, whether drafts' laws enter)
#define SPS_SCHEMES(X) \
  X(token, true)       \
  X(block, true)       \
  X(race, false)

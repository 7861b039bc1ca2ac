// Threads per block, blocks per team, tokens per thread: constants shared by kernels and launches.
#pragma once
#include "../common.h"

namespace SPS_NAMESPACE {

constexpr int kConductor = 32, kCrew = 352, kBlock = kCrew + kConductor;  // threads of a block
constexpr int kMaxTeam = 8;  // blocks
constexpr int kUnit = 8;  // tokens that a thread reads at once: neighbours in a group (philox.h). A vocabulary is below 2^24

}  // namespace SPS_NAMESPACE

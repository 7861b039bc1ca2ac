// One verification round of one request: what it is given, what it writes, and the walk from the root to the emitted token.
//
// Everything here and in schemes/ is written against an executor `Ex`, which runs the passes over rows. It offers
//   Law target(int row, bool normalised)           law of a target row; its mass only when `normalised`
//   Law draft(int node)                            law that `node` was drawn from
//   double prob(const Law&, int64_t token)
//   bool accept(int node, double num, double den)  u den < num for the node's acceptance uniform
//   int64_t clock_race(const Law&, int depth)      winner on the clocks of the token at `depth`; -1 for a broken row
//   int64_t residual_race(t, d, double scale)      winner of (scale t - d)+ on the round's residual stream
//   double residual_mass(t, d, double scale)       sum of (scale t - d)+
#pragma once
#include "law.h"
#include "philox.h"

namespace specsample {

// int32 or int64 values in memory; absent when data is null.
struct Ints {
  const void* data = nullptr;
  bool wide = true;
  SPS_HD int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  SPS_HD Ints from(int64_t offset) const {
    if (data == nullptr) return *this;
    return Ints{static_cast<const char*>(data) + offset * (wide ? 8 : 4), wide};
  }
};

struct Request {
  int64_t seed = 0, position = 0;
  int nodes = 0, target_rows = 0, draft_row_count = 0, max_depth = 0;
  int64_t id_limit = 0;       // larger vocabulary of the two: ids from here on name no token at all
  bool has_draft = false;     // false: one-hot drafts
  bool row_a_node = false;    // draft rows are numbered like nodes
  Ints tokens, parents, rows, draft_rows;
  uint8_t* live = nullptr;    // scratch [nodes + 1], entry 0 is the root; null for chains

  SPS_HD int64_t token(int node) const { return tokens[node]; }
  SPS_HD int64_t parent(int node) const { return parents.data ? parents[node] : node - 1; }
  SPS_HD int64_t target_row(int node) const { return rows.data ? rows[node + 1] : node + 1; }  // -1 is the root
  SPS_HD int64_t draft_row(int node) const {
    if (draft_rows.data) return draft_rows[node];
    return row_a_node ? node : target_row(static_cast<int>(parent(node)));
  }
  SPS_HD bool has_row(int node) const { return target_row(node) >= 0 && target_row(node) < target_rows; }
  SPS_HD bool exists(int node) const {
    const int64_t x = token(node), above = parent(node);
    if (x < 0 || x >= id_limit || above < -1 || above >= node || !has_row(node)) return false;
    if (!has_draft) return true;
    const int64_t row = draft_row(node);
    return row >= 0 && row < draft_row_count;
  }

  // First existing node after `after` below the live ones; -1 where there is none. A chain has one below each node.
  SPS_HD int child(int node, int after) const {
    if (live == nullptr) return after == node && node + 1 < nodes && exists(node + 1) ? node + 1 : -1;
    for (int i = after + 1; i < nodes; ++i)
      if (exists(i) && live[parent(i) + 1]) return i;
    return -1;
  }
  SPS_HD void start() const {
    if (live == nullptr) return;
    for (int i = SPS_THREAD; i <= nodes; i += SPS_THREADS) live[i] = i == 0;
    SPS_BARRIER();
  }
  // Move below `node`: live are it and its later siblings that carry the same token and may be `shared` by the scheme.
  SPS_HD void enter(int node, bool shared) const {
    if (live == nullptr) return;
    // Marks of the level above are needed until all its children are known, and children come after their parents.
    for (int last = nodes - 1; last >= 0; last -= SPS_THREADS) {
      const int i = last - SPS_THREAD;
      const bool mark =
          i >= 0 && exists(i) && live[parent(i) + 1] && (i == node || (shared && token(i) == token(node)));
      SPS_BARRIER();
      if (i >= 0) live[i + 1] = mark;
      SPS_BARRIER();
    }
    if (SPS_THREAD == 0) live[0] = 0;
    SPS_BARRIER();
  }
};

// Memory that schemes write and never read back: on a GPU, one thread of the block writes it.
template <class T>
struct Written {
  T* data;
  struct Entry {
    T* at;
    SPS_HD void operator=(T value) const {
      if (SPS_THREAD == 0) *at = value;
    }
  };
  SPS_HD Written(T* pointer) : data(pointer) {}
  SPS_HD Entry operator[](int64_t i) const { return Entry{data + i}; }
  SPS_HD Entry operator*() const { return Entry{data}; }
};

struct Output {
  Written<int64_t> tokens;  // [max_depth + 1], all -1 at the start
  Written<int32_t> nodes;   // [max_depth], all -1 at the start
  Written<int32_t> num_accepted;
};

// What a rule decides at one node: the child moved to (-1: none), or the token emitted instead.
struct Step {
  int child;
  int64_t emitted;
};

// Node by node. Rule::step(request, ex, target, node, child, depth) decides; child is the first one or -1.
template <class Rule, class Ex>
SPS_HD void walk(const Request& request, Ex& ex, const Output& out) {
  *out.num_accepted = 0;
  if (!request.has_row(-1)) return;
  request.start();
  int node = -1;
  for (int depth = 0;; ++depth) {
    int child = depth < request.max_depth ? request.child(node, node) : -1;
    const Law target = ex.target(static_cast<int>(request.target_row(node)), Rule::kNeedsMass && child >= 0);
    if (target.broken) return;
    const Step step = Rule::step(request, ex, target, node, child, depth);
    if (step.child < 0) {
      out.tokens[depth] = step.emitted;
      return;
    }
    node = step.child;
    out.tokens[depth] = request.token(node);
    out.nodes[depth] = node;
    *out.num_accepted = depth + 1;
    request.enter(node, Rule::kSharesToken);
  }
}

}  // namespace specsample

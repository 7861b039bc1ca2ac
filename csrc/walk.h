// One verification round of one request: its inputs, its outputs, and the walk from the root to the last emitted token.
//
// Everything here and in schemes/ is written against an executor `Ex`, which runs the passes over rows. It offers
//   Law target(int row, bool normalised)           law of a target row; its mass only if `normalised`
//   Law draft(int node)                            law that `node` was drawn from
//   double prob(const Law&, int64_t token)
//   bool accept(int node, double num, double den)  u den < num for the node's acceptance uniform
//   int64_t clock_race(const Law&, int depth, const int64_t* lists, int count)
//                                                  winner on the clocks of the token at `depth`; -1 for a broken row
//   int64_t residual_race(t, d, const Residual&)   winner of the residual weights on the round's residual stream
//   double residual_mass(t, d, const Residual&)    their sum (floor 0)
// in which tokens excluded from the target have weight 0 (in residual_mass the draft then excludes the same tokens)
// and, for several children at a node:
//   Law law_without(const Law&, tokens, int count)    the law given that the token is none of these, with its own maximum
//                                                     and mass, however small the others' share; broken: nothing is left
//   Coupling histogram(t, d, int k)                   sums of t and d by ratio bin, in scratch that the next call reuses
//                                                     (then solve or kseq_threshold of coupling.h)
//   int bin(t, d, const Coupling&, int64_t token)     the bin in which the histogram counted the token
//   double place(int node), double move(int node)     uniforms of the node's selection
//   bool stays(int node, double num, double den)      place(node) den < num
//   int likeliest(const Law&, int k, int64_t* tokens) the k likeliest tokens in order, lowest id first on ties; returns how many
//   double* keep_ratios(const Coupling&)              a copy of the ratios, valid until the next such call
// and, if they come from several laws:
//   Mixture mixture(t, const MixedSiblings&)          the cells' sums, weights and shares, in scratch that the next call reuses
//   int cell(t, const Mixture&, int64_t token)        the cell in which the sums counted the token
//   int level(const Mixture&, int cell, int node)     the level of the node's draw
//   int64_t mixture_race(t, const Mixture&)           winner of (t - P)+ on the round's residual stream
#pragma once
#include "coupling.h"
#include "law.h"
#include "mixture.h"
#include "philox.h"

namespace SPS_NAMESPACE {

// int32 or int64 values in memory; absent when data is null.
struct Ints {
  const void* data = nullptr;
  bool wide = true;
  SPS_HD int64_t given(int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  SPS_HD int64_t operator[](int64_t i) const {
#if SPS_GPU
    return static_cast<const int32_t*>(data)[i];  // the kernel has copied the values into shared memory
#else
    return given(i);
#endif
  }
  SPS_HD Ints from(int64_t offset) const {
    if (data == nullptr) return *this;
    return Ints{static_cast<const char*>(data) + offset * (wide ? 8 : 4), wide};
  }
};

constexpr int kMaxNodes = 1024, kMaxOptions = 4;  // per request; settings per scheme
constexpr int kMaxSiblings = kMaxDraws;  // live children considered in one step, in index order
constexpr int64_t kMaxLists = 1024;

struct Request {
  int64_t seed = 0, position = 0;
  int nodes = 0, target_rows = 0, draft_row_count = 0, max_depth = 0;
  int64_t id_limit = 0;       // the larger of the two vocabularies: ids at or above it are not tokens
  bool has_draft = false;     // false: one-hot drafts
  bool row_a_node = false;    // draft rows are numbered like nodes
  bool by_lists = false;      // the scheme uses clock lists
  const double* options = nullptr;  // the scheme's settings, in the order of its card
  Ints tokens, parents, rows, draft_rows, lists;
  uint8_t* live = nullptr;    // scratch [nodes + 1], entry 0 is the root: 1 = live, 2 = dropped; null for chains

  SPS_HD int64_t token(int node) const { return tokens[node]; }
  SPS_HD int64_t parent(int node) const { return parents.data ? parents[node] : node - 1; }
  SPS_HD int64_t target_row(int node) const { return rows.data ? rows[node + 1] : node + 1; }  // -1 is the root
  SPS_HD int64_t draft_row(int node) const {
    if (draft_rows.data) return draft_rows[node];
    return row_a_node ? node : target_row(static_cast<int>(parent(node)));
  }
  // Clock list: as given, or the rank among its siblings of the ancestor that is a child of the root.
  SPS_HD int64_t list(int node) const {
    if (lists.data) return lists[node];
    while (parent(node) >= 0) node = static_cast<int>(parent(node));
    int64_t before = 0;
    if (parents.data)
      for (int i = 0; i < node; ++i) before += parent(i) == -1;
    return before;
  }
  SPS_HD bool has_row(int node) const { return target_row(node) >= 0 && target_row(node) < target_rows; }
  SPS_HD bool exists(int node) const {
    const int64_t x = token(node), above = parent(node);
    if (x < 0 || x >= id_limit || above < -1 || above >= node || !has_row(node)) return false;
    if (by_lists && lists.data && (lists[node] < 0 || lists[node] >= kMaxLists)) return false;
    if (!has_draft) return true;
    const int64_t row = draft_row(node);
    return row >= 0 && row < draft_row_count;
  }

  // First existing child of the live nodes after `after`; -1 if there is none. In a chain each node has one child.
  SPS_HD int child(int node, int after) const {
    if (live == nullptr) return after == node && node + 1 < nodes && exists(node + 1) ? node + 1 : -1;
    for (int i = after + 1; i < nodes; ++i)
      if (exists(i) && live[parent(i) + 1] == 1) return i;
    return -1;
  }
  SPS_HD void start() const {
    if (live == nullptr) return;
    for (int i = SPS_THREAD; i <= nodes; i += SPS_THREADS) live[i] = i == 0;
    SPS_BARRIER();
  }
  // Exclude a child whose draft row turns out to have no finite logit: the walk does not move to it with its siblings.
  SPS_HD void drop(int node) const {
    if (live == nullptr) return;
    SPS_BARRIER();
    if (SPS_THREAD == 0) live[node + 1] = 2;
    SPS_BARRIER();
  }
  SPS_HD bool dropped(int node) const { return live != nullptr && live[node + 1] == 2; }
  // Move to `node`: it becomes live, with its later siblings that carry the same token if the scheme shares tokens (`shared`).
  SPS_HD void enter(int node, bool shared) const {
    if (live == nullptr) return;
    // Marks of the parent level are needed until all children are known; children follow their parents, so go backwards.
    for (int last = nodes - 1; last >= 0; last -= SPS_THREADS) {
      const int i = last - SPS_THREAD;
      const bool mark =
          i >= 0 && exists(i) && live[parent(i) + 1] == 1 && !dropped(i) && (i == node || (shared && token(i) == token(node)));
      SPS_BARRIER();
      if (i >= 0) live[i + 1] = mark;
      SPS_BARRIER();
    }
    if (SPS_THREAD == 0) live[0] = 0;
    SPS_BARRIER();
  }
};

// Memory that a scheme indexes, or that is too large for registers: a local variable on the CPU; on a GPU, where all lanes share
// one copy, the executor's shared memory (`T& room<T>()`, one T per scheme). One lane writes it, through `put`.
template <class T>
struct Room {
#if SPS_GPU
  T& value;
  template <class Ex>
  SPS_HD explicit Room(Ex& ex) : value(ex.template room<T>()) {}
#else
  T value;
  template <class Ex>
  SPS_HD explicit Room(Ex&) {}
#endif
  SPS_HD const T* operator->() const { return &value; }
  template <class V>
  SPS_HD void put(V& place, const V& it) {
    SPS_BARRIER();
    if (SPS_THREAD == 0) place = it;
    SPS_BARRIER();
  }
  SPS_HD void operator=(const T& it) { put(value, it); }
};

// Memory that schemes write and never read back. On a GPU one lane writes it, and only one of the blocks that walk has it (else null).
template <class T>
struct Written {
  T* data;
  struct Entry {
    T* at;
    SPS_HD void operator=(T value) const {
      if (SPS_THREAD == 0 && at) *at = value;
    }
  };
  SPS_HD Written(T* pointer) : data(pointer) {}
  SPS_HD Entry operator[](int64_t i) const { return Entry{data ? data + i : nullptr}; }
  SPS_HD Entry operator*() const { return Entry{data}; }
};

struct Output {
  Written<int64_t> tokens;  // [max_depth + 1], initially all -1
  Written<int32_t> nodes;   // [max_depth], initially all -1
  Written<int32_t> num_accepted;
};

// A rule's decision at one node: the child to move to (-1: none), or the token to emit instead.
struct Step {
  int child;
  int64_t emitted;
};

struct SiblingList {
  int node[kMaxSiblings];
  int64_t token[kMaxSiblings];
};

// The live children of a node that a scheme chooses among, in index order.
struct Drawn {
  Room<SiblingList> list;
  int count = 0;
  const int* node = list->node;
  const int64_t* token = list->token;

  Drawn(const Drawn&) = delete;
  template <class Ex>
  SPS_HD explicit Drawn(Ex& ex) : list(ex) {}
  SPS_HD void add(int child, int64_t x) { list.put(list.value.node[count], child), list.put(list.value.token[count], x), ++count; }
};

// All children are drawn from one law: that of the first one's row.
struct Siblings : Drawn {
  Law draft;

  template <class Ex>
  SPS_HD Siblings(const Request& request, Ex& ex, int parent, int child) : Drawn(ex) {
    int64_t row = -1;
    bool drawn = false;
    for (; child >= 0; child = request.child(parent, child)) {
      if (!(drawn && request.draft_row(child) == row)) {  // siblings share a row: one law
        const Law law = ex.draft(child);
        if (law.broken) {  // its row has no finite logit: the node does not exist
          request.drop(child);
          continue;
        }
        if (count == 0) draft = law;
        row = request.draft_row(child), drawn = true;
      }
      if (count < kMaxSiblings) add(child, request.token(child));  // the others are still followed, unless dropped
    }
  }
  SPS_HD int first_with(int64_t x) const {
    for (int i = 0; i < count; ++i)
      if (token[i] == x) return node[i];
    return -1;
  }
};

// Each child is drawn from the law of its own row. Only the first kMaxLaws rows are considered, and no children of further ones.
struct MixedSiblings : Drawn {
  int laws = 0;
  Law draft[kMaxLaws];
  int64_t row[kMaxLaws];
  uint8_t law_of[kMaxSiblings];

  template <class Ex>
  SPS_HD MixedSiblings(const Request& request, Ex& ex, int parent, int child) : Drawn(ex) {
    for (; child >= 0; child = request.child(parent, child)) {
      int at = 0;
      while (at < laws && row[at] != request.draft_row(child)) ++at;
      if (at == laws) {
        const Law law = ex.draft(child);
        if (law.broken) request.drop(child);
        if (law.broken || laws == kMaxLaws || count == kMaxSiblings) continue;
        draft[at] = law, row[at] = request.draft_row(child), ++laws;
      }
      if (count == kMaxSiblings) continue;
      law_of[count] = static_cast<uint8_t>(at);
      add(child, request.token(child));
    }
  }
  SPS_HD Cells cells(int number, int64_t vocab) const {
    int drawn[kMaxLaws] = {};
    for (int i = 0; i < count; ++i) ++drawn[law_of[i]];
    return Cells::of(number, drawn, laws, vocab);
  }
  // Over scratch for Mixture::scratch(cells, laws) doubles.
  SPS_HD Mixture mixture(const Cells& cells, int levels, double* scratch) const {
    return Mixture(cells, draft, laws, law_of, count, levels, scratch);
  }
};

// Walk node by node. Each walk creates a Rule, whose step(request, ex, target, node, child, depth) decides; child: the first, or -1.
template <class Rule, class Ex>
SPS_HD void walk(const Request& request, Ex& ex, const Output& out) {
  *out.num_accepted = 0;
  if (!request.has_row(-1)) return;
  request.start();
  Rule rule;
  int node = -1;
  for (int depth = 0;; ++depth) {
    int child = depth < request.max_depth ? request.child(node, node) : -1;
    const Law target = ex.target(static_cast<int>(request.target_row(node)), Rule::kNeedsMass && child >= 0);
    if (target.broken) return;
    Step step{-1, target.only};
    constexpr bool several = Rule::kNeedsMass && Rule::kSharesToken;  // a multi-draft rule
    if (several && target.only >= 0 && child >= 0) {  // greedy: the target's only token is emitted, drafted or not
      int64_t row = -1;  // of the last such child whose draft row is valid
      for (int i = child; i >= 0; i = request.child(node, i)) {
        if (request.token(i) != target.only) continue;
        if (request.draft_row(i) != row && ex.draft(i).broken) {
          request.drop(i);
          continue;
        }
        row = request.draft_row(i);
        if (step.child < 0) step.child = i;
      }
    } else {
      step = rule.step(request, ex, target, node, child, depth);
    }
    if (step.child < 0) {
      out.tokens[depth] = step.emitted;
      return;
    }
    if (Rule::kSharesToken)  // the first live child with this token represents all of them
      while (request.token(child) != request.token(step.child) || request.dropped(child)) child = request.child(node, child);
    node = Rule::kSharesToken ? child : step.child;
    out.tokens[depth] = request.token(node);
    out.nodes[depth] = node;
    *out.num_accepted = depth + 1;
    request.enter(node, Rule::kSharesToken);
  }
}

}  // namespace SPS_NAMESPACE

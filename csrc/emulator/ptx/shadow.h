// For each byte of a memory: whether it was ever written, and who used it last, so that two unordered accesses by different threads
// are found in whatever order they happened to run.
//
// Order is tracked by vector clocks with one entry per warp: a barrier passes on what its threads knew. Within a warp,
// bar.warp.sync, and any barrier of all its threads, orders the lanes; otherwise a lane knows and passes on only its own accesses.
// Volatile and atomic accesses race with plain ones, never with each other.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ptx {

constexpr uint8_t kSeveral = 255;  // lanes
struct Event {
  uint32_t tick = 0;  // 0: none
  uint16_t warp = 0;
  uint8_t lane = 0;
  int line = 0;
};

// Events known to be over: for each warp all up to a tick, and for some lanes later ones than for their warps.
struct Clock {
  std::vector<uint32_t> ticks;
  std::vector<Event> lanes;

  bool knows(const Event& e) const {
    if (e.warp < ticks.size() && e.tick <= ticks[e.warp]) return true;
    for (const Event& lane : lanes)
      if (lane.warp == e.warp && lane.lane == e.lane && e.tick <= lane.tick) return true;
    return false;
  }
  bool knows_any(size_t warp, uint32_t since) const {
    bool any = ticks[warp] >= since;
    for (const Event& lane : lanes) any |= lane.warp == warp && lane.tick >= since;
    return any;
  }
  void join(const Clock& other) {
    if (ticks.size() < other.ticks.size()) ticks.resize(other.ticks.size());
    for (size_t i = 0; i < other.ticks.size(); ++i)
      if (other.ticks[i] > ticks[i]) ticks[i] = other.ticks[i];
    if (!lanes.empty()) {
      const std::vector<Event> mine = std::move(lanes);
      lanes.clear();
      for (const Event& lane : mine) add(lane);
    }
    for (const Event& lane : other.lanes) add(lane);
  }
  void add(const Event& lane) {
    if (lane.warp < ticks.size() && lane.tick <= ticks[lane.warp]) return;
    for (Event& mine : lanes)
      if (mine.warp == lane.warp && mine.lane == lane.lane) {
        if (lane.tick > mine.tick) mine.tick = lane.tick;
        return;
      }
    lanes.push_back(lane);
  }
  void clear() { ticks.clear(), lanes.clear(); }
  bool empty() const { return ticks.empty(); }
};

// Who accesses memory, and what is ordered before the access.
struct User {
  Event now;
  const Clock& known;
  uint32_t synced;  // the tick at which the lanes of its warp were last in order

  bool races(const Event& e) const {
    if (e.tick == 0) return false;
    return e.warp == now.warp ? e.lane != now.lane && e.tick >= synced : !known.knows(e);
  }
};

class Events {  // none ordered before another; for lanes of one warp in one tick there is one event
 public:
  void add(const User& user) {
    if (!more_) {
      if (put(last_, user)) return;
      more_ = std::make_shared<std::vector<Event>>(1, last_);
    }
    if (more_.use_count() > 1) more_ = std::make_shared<std::vector<Event>>(*more_);
    for (Event& old : *more_)
      if (put(old, user)) return;
    more_->push_back(user.now);
  }
  const Event* racing(const User& user) const {
    if (!more_) return user.races(last_) ? &last_ : nullptr;
    for (const Event& e : *more_)
      if (user.races(e)) return &e;
    return nullptr;
  }
  void clear() { last_ = Event(), more_.reset(); }

 private:
  // Replaces an event that is over, or joins one of the same tick.
  static bool put(Event& old, const User& user) {
    if (old.warp == user.now.warp && old.tick == user.now.tick) {
      if (old.lane != user.now.lane) old.lane = kSeveral;
      return true;
    }
    if (user.races(old)) return false;
    old = user.now;
    return true;
  }
  Event last_;
  std::shared_ptr<std::vector<Event>> more_;
};

enum class Use : uint8_t { kRead, kWrite, kStrongRead, kAtomic };
inline bool writes(Use use) { return use == Use::kWrite || use == Use::kAtomic; }

// For a word, or for a byte if bytes of the word have been used separately.
struct Cell {
  Event write;
  Events reads, strong_reads, atomics;

  // Returns an earlier use that is not ordered before this one; or notes this one and returns null.
  const Event* use(Use how, const User& user) {
    const Event* found = user.races(write) ? &write : nullptr;
    if (!found && how != Use::kStrongRead && how != Use::kAtomic) found = atomics.racing(user);
    if (!found && writes(how)) found = reads.racing(user);
    if (!found && how == Use::kWrite) found = strong_reads.racing(user);
    if (found) return found;
    if (how == Use::kWrite) {
      write = user.now, reads.clear(), strong_reads.clear(), atomics.clear();
    } else {
      (how == Use::kRead ? reads : how == Use::kAtomic ? atomics : strong_reads).add(user);
    }
    return nullptr;
  }
};

class Shadow {
 public:
  // `known`: every byte is defined from the start.
  Shadow(size_t bytes, bool known)
      : words_((bytes + 3) / 4), is_split_(words_.size()), written_(known ? 0 : bytes), known_(known) {}

  // The undefined ones of these bytes, among those in the mask `used`: one bit each.
  uint32_t unwritten(size_t at, int bytes, uint32_t used) const {
    uint32_t mask = 0;
    if (!known_)
      for (int i = 0; i < bytes; ++i) mask |= static_cast<uint32_t>(!written_[at + static_cast<size_t>(i)]) << i;
    return mask & used;
  }
  void set_written(size_t at, int bytes, bool yes = true) {
    if (!known_)
      for (int i = 0; i < bytes; ++i) written_[at + static_cast<size_t>(i)] = yes;
  }
  const Event* use(size_t at, int bytes, uint32_t used, Use how, const User& user) {
    for (size_t word = at / 4; word * 4 < at + static_cast<size_t>(bytes); ++word) {
      unsigned mask = 0;
      for (size_t i = 0; i < 4; ++i) {
        const size_t byte = word * 4 + i;
        if (byte >= at && byte < at + static_cast<size_t>(bytes) && (used >> (byte - at) & 1)) mask |= 1u << i;
      }
      if (mask == 15 && !is_split_[word]) {
        if (const Event* found = words_[word].use(how, user)) return found;
        continue;
      }
      if (mask == 0) continue;
      std::array<Cell, 4>& each = split_[word];
      if (!is_split_[word]) is_split_[word] = 1, each.fill(words_[word]);
      for (size_t i = 0; i < 4; ++i)
        if (mask >> i & 1)
          if (const Event* found = each[i].use(how, user)) return found;
    }
    return nullptr;
  }

  // A launch is over: whatever follows is ordered after it.
  void forget_uses() {
    words_.assign(words_.size(), Cell());
    is_split_.assign(is_split_.size(), 0);
    split_.clear();
  }

 private:
  std::vector<Cell> words_;
  std::vector<uint8_t> is_split_;
  std::unordered_map<size_t, std::array<Cell, 4>> split_;
  std::vector<uint8_t> written_;
  bool known_;
};

}  // namespace ptx

// A decoded kernel: instructions with their operands resolved to places in a warp's registers.
//
// Registers of 16, 32 and 64 bits are arrays of 32 lanes; a predicate is 32 bits, one per lane. Constants are stored in a separate
// array as if each were a register, and so are the special registers (%tid.x, …), written when a warp begins.
#pragma once
#include <functional>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace ptx {

struct Instruction;
using Action = void (*)(Warp&, const Instruction&, uint32_t lanes);

// How control reaches and leaves an instruction.
enum class Flow : uint8_t {
  kPlain,
  kBranch,
  kExit,
  kLanes,  // waits for the lanes named by its mask (operand c)
  kAligned,  // all lanes of the warp must run it together
};

struct Instruction {
  Action run = nullptr;
  int32_t d = 0, a = 0, b = 0, c = 0;  // places of operands: byte offsets into the registers, or ~ of those into the constants
  int32_t e[8] = {};  // a vector's elements
  int32_t guard = 0;
  bool guarded = false, unless = false;
  bool head = false;  // of a basic block
  Flow flow = Flow::kPlain;
  Space space = Space::kGeneric;
  Use use = Use::kRead;
  bool constant = false, acquire = false, release = false;
  uint8_t bytes = 0, count = 1, width = 0;  // bytes of an element in memory, number of elements, bytes of its register
  bool is_signed = false;
  uint8_t kind = 0;  // interpreted by the action
  Type to, from;  // cvt
  uint32_t used = kAll;
  int target = 0;  // kBranch
  int64_t offset = 0;  // added to an address
  int line = 0;
  uint32_t places = 0;  // index into Program::places: registers written, then registers read
  uint8_t written = 0, read = 0;
  bool loads = false, stores = false;  // operand a is the address; the other registers may be undefined
  bool selects = false;  // a or b, by the predicate c
  bool strict = false;  // all registers read must be defined
};

struct Special {
  std::string name;
  int32_t place;
};

struct Program {
  std::string name, target;
  std::vector<Instruction> code;
  std::vector<int32_t> places;
  std::vector<char> constants;
  std::vector<Special> specials;
  size_t register_bytes = 0;
  size_t shared = 0, local = 0, params = 0;  // bytes
  int block_limit = 0;
  int version = 0;  // of the target architecture: 80, 90
  mutable std::vector<uint8_t> ran;  // the instructions that some lane has executed
  std::vector<std::string> lines;
  std::string text(int line) const {
    std::string s = line > 0 && line <= static_cast<int>(lines.size()) ? lines[static_cast<size_t>(line) - 1] : "";
    const size_t first = s.find_first_not_of(" \t");
    return first == std::string::npos ? "" : s.substr(first);
  }
};

// Memory of a module's variables; lives as long as its programs.
using Globals = std::map<std::string, std::vector<char>>;

class Decoder {
 public:
  Decoder(const Module& module, const Kernel& kernel, Globals& globals) : module_(module), kernel_(kernel), globals_(globals) {}
  Program decode();

  // For the table's entries (table.cpp), about the statement being decoded:
  const Statement* s = nullptr;
  Instruction* i = nullptr;
  Type type, second;  // the opcode's types: "cvt.u32.u16" has two

  size_t count() const { return s->operands.size(); }
  void operands(size_t least, size_t most = 0) const {
    if (count() < least || count() > std::max(least, most)) fail("a wrong number of operands");
  }
  const Operand& operand(size_t n) const { return s->operands.at(n); }
  // The place of operand n, a register or a value of `bytes` bytes in a register; 0: a predicate.
  int32_t source(size_t n, int bytes) { return place(operand(n), bytes, false); }
  int32_t target(size_t n, int bytes) { return place(operand(n), bytes, true); }
  int32_t place(const Operand& o, int bytes, bool is_target);
  int32_t constant(uint64_t bits, int bytes);
  int width(const Operand& o) const;  // bytes of the named register; 0: none
  void address(size_t n);  // operand n: to i->a and i->offset
  [[noreturn]] void fail(const std::string& what) const { fail_at(s->line, what + ": " + s->opcode); }

 private:
  struct Named {
    Type type;
    int32_t first;
    int count;
  };
  const Named* find(const std::string& name, int scope, int& index) const;
  bool symbol(const std::string& name, uint64_t& value) const;
  void lay_out();
  int label(const std::string& name, int scope) const;

  const Module& module_;
  const Kernel& kernel_;
  Globals& globals_;
  Program program_;
  std::vector<int32_t> written_, read_;
  std::map<std::pair<int, std::string>, Named> registers_;  // by scope and name, which for %r<n> is "%r"
  std::map<std::string, uint64_t> symbols_;
  std::map<std::pair<int, std::string>, int> labels_;
  std::map<std::pair<uint64_t, int>, int32_t> constants_;
  std::map<std::string, int32_t> specials_;
};

// The table's entry for an opcode without its types, e.g. "ld.shared" or "mul.wide"; null if there is none (table.cpp).
using Entry = std::function<void(Decoder&)>;
const Entry* entry_of(const std::string& key);
// "ld.shared.v2.u32" -> "ld.shared.v2", {u32, none}
std::string key_of(const std::string& opcode, Type& type, Type& second);

// For messages.
std::string lanes_text(uint32_t lanes);
std::string place_text(const Warp& w);
std::string here(const Program& p, int pc);

// -- lanes ---------------------------------------------------------------------------------------------------------

template <class F>
inline __attribute__((always_inline)) void each(uint32_t lanes, const F& f) {
  if (lanes == kAll) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) f(l);
  } else {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}
inline void set_predicate(uint32_t* d, uint32_t lanes, uint32_t values) { *d = (*d & ~lanes) | (values & lanes); }

}  // namespace ptx

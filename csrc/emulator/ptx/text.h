// PTX as text: its tokens, and the statements of each kernel with their operands. Their meaning is in table.h.
#pragma once
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// An error that the machine reports: in a kernel, or in what it was asked to run.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] inline void fail_at(int line, const std::string& what) { throw Fault("line " + std::to_string(line) + ": " + what); }

struct Type {
  char kind = 0;  // b, u, s, f; h: bfloat16 (f with 16 bits is float16); p: a predicate. 0: none
  int bits = 0;
  bool pair = false;  // two of 16 bits: f16x2, bf16x2
  int bytes() const { return pair ? 4 : bits / 8; }
  explicit operator bool() const { return kind != 0; }
  static Type of(const std::string& word) {  // "u32", "pred", …
    if (word == "pred") return Type{'p', 1};
    if (word == "f16x2" || word == "bf16x2") return Type{word[0] == 'b' ? 'h' : 'f', 16, true};
    if (word == "bf16") return Type{'h', 16};
    for (const char* kind = "busf"; *kind; ++kind)
      for (int bits : {8, 16, 32, 64})
        if (word == *kind + std::to_string(bits)) return Type{*kind, bits};
    return Type();
  }
};

struct Operand {
  enum Kind { kNone, kName, kNumber, kAddress, kVector } kind = kNone;  // a name: a register, a variable or a label; "_": none
  std::string name;         // kName, and kAddress if it has one
  uint64_t bits = 0;        // kNumber
  bool is_single = false;   // 0f…: the bits of a float
  int64_t offset = 0;       // kAddress
  std::vector<Operand> of;  // kVector
  std::string also;         // kName: the part after "|"
};

struct Statement {
  int line = 0;
  std::string guard;  // a predicate's name, or none
  bool unless = false;
  std::string opcode;  // "ld.shared.u32"
  std::vector<Operand> operands;
  int scope = 0;
  uint32_t used = ~0u;  // the bytes of a load whose values are used
};

struct Variable {  // of .param, .shared, .global, .const or .local
  std::string space, name;
  int64_t align = 1, bytes = 0;
  std::vector<uint8_t> initial;
};
struct Register {
  std::string name;  // with `count` > 1: %r<count>, which declares %r0 to %r(count-1)
  Type type;
  int count = 1, scope = 0;
};

struct Kernel {
  std::string name;
  int line = 0;
  int block_limit = 0;  // threads, by .maxntid or .reqntid; 0: none
  std::vector<Variable> params, variables;
  std::vector<Register> registers;
  std::vector<Statement> statements;
  std::vector<int> parent{-1};  // of each scope { }
  struct Label {
    std::string name;
    int scope, at;
  };
  std::vector<Label> labels;  // each before a statement
};

struct Module {
  std::string target, version;
  std::vector<Variable> variables;
  std::map<std::string, Kernel> kernels;
  std::vector<std::string> lines;  // for messages
};

// -- tokens --------------------------------------------------------------------------------------------------------

struct Token {
  std::string text;
  int line;
};

inline std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  const auto in_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
  };
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    size_t end = i + 1;
    if (c == '\n') {
      ++line;
    } else if (c == '/' && text[end] == '/') {
      while (end < text.size() && text[end] != '\n') ++end;
    } else if (c == '"') {
      while (end < text.size() && text[end] != '"') ++end;
      tokens.push_back({text.substr(i, ++end - i), line});
    } else if (in_word(c) || (c == '-' && std::isdigit(static_cast<unsigned char>(text[end])))) {
      for (; end < text.size(); ++end) {
        const bool colons = text.compare(end, 2, "::") == 0 && in_word(text[end + 2]);
        if (colons) ++end;
        else if (!in_word(text[end])) break;
      }
      tokens.push_back({text.substr(i, end - i), line});
    } else if (!std::isspace(static_cast<unsigned char>(c))) {
      tokens.push_back({std::string(1, c), line});
    }
    i = end;
  }
  return tokens;
}

// -- statements ----------------------------------------------------------------------------------------------------

class Reader {
 public:
  explicit Reader(const std::string& text) : tokens_(tokens_of(text)) {
    std::string line;
    for (char c : text) {
      if (c != '\n') line += c;
      else module_.lines.push_back(line), line.clear();
    }
    module_.lines.push_back(line);
  }
  Module read() {
    while (at_ < tokens_.size()) read_outside();
    return std::move(module_);
  }

 private:
  const Token& here() const {
    if (at_ >= tokens_.size()) throw Fault("the text ends too early");
    return tokens_[at_];
  }
  bool is(const char* text) const { return at_ < tokens_.size() && tokens_[at_].text == text; }
  std::string next() {
    std::string text = here().text;
    ++at_;
    return text;
  }
  bool take(const char* text) {
    if (!is(text)) return false;
    ++at_;
    return true;
  }
  void expect(const char* text) {
    if (!take(text)) fail_at(here().line, std::string("expected ") + text + ", got " + here().text);
  }
  int64_t number() { return static_cast<int64_t>(bits_of(next())); }
  static bool is_number(const std::string& text) { return std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-'; }
  static uint64_t bits_of(const std::string& text) {
    if (text.size() > 2 && text[0] == '0' && std::strchr("fFdD", text[1])) return std::strtoull(text.c_str() + 2, nullptr, 16);
    if (text[0] == '-') return static_cast<uint64_t>(std::strtoll(text.c_str(), nullptr, 0));
    return std::strtoull(text.c_str(), nullptr, 0);
  }

  void read_outside() {
    const int line = here().line;
    const std::string word = next();
    if (word == ".version") {
      module_.version = next();
    } else if (word == ".target") {
      for (module_.target = next(); take(",");) next();
    } else if (word == ".address_size") {
      next();
    } else if (word == ".visible" || word == ".weak" || word == ".extern") {
      // irrelevant here
    } else if (word == ".global" || word == ".const") {
      module_.variables.push_back(variable(word.substr(1)));
    } else if (word == ".entry") {
      read_kernel();
    } else {
      fail_at(line, "unknown directive " + word);
    }
  }

  // .align 8 .b8 name[216] = {1, 2}
  Variable variable(const std::string& space) {
    Variable v;
    v.space = space;
    Type type;
    while (here().text[0] == '.') {
      const std::string word = next();
      if (word == ".align") v.align = number();
      else if ((type = Type::of(word.substr(1)))) v.align = std::max<int64_t>(v.align, type.bytes());
      else fail_at(here().line, "unknown directive " + word);
    }
    v.name = next(), v.bytes = type.bytes();
    while (take("[")) {
      if (!is("]")) v.bytes *= number();
      expect("]");
    }
    if (take("=")) {
      const bool list = take("{");
      do {
        const uint64_t bits = bits_of(next());
        for (int i = 0; i < type.bytes(); ++i) v.initial.push_back(static_cast<uint8_t>(bits >> 8 * i));
      } while (take(","));
      if (list) expect("}");
    }
    take(";");
    return v;
  }

  void read_kernel() {
    Kernel k;
    k.line = here().line, k.name = next();
    if (take("("))
      for (; !take(")"); take(",")) {
        expect(".param");
        k.params.push_back(variable("param"));
      }
    while (!is("{")) {
      const std::string word = next();
      const bool limit = word == ".maxntid" || word == ".reqntid";
      if (!limit && word != ".minnctapersm" && word != ".maxnreg") fail_at(here().line, "unknown directive " + word);
      int64_t product = number();
      while (take(",")) product *= number();
      if (limit) k.block_limit = static_cast<int>(product);
    }
    expect("{");
    std::vector<int> scopes{0};
    uint32_t used = ~0u;
    while (!scopes.empty()) {
      const int line = here().line;
      if (take("{")) {
        k.parent.push_back(scopes.back()), scopes.push_back(static_cast<int>(k.parent.size()) - 1);
        continue;
      }
      if (take("}")) {
        scopes.pop_back();
        continue;
      }
      if (take(";")) continue;
      if (here().text[0] == '.') {
        const std::string word = next();
        if (word == ".reg") {
          read_registers(k, scopes.back());
        } else if (word == ".shared" || word == ".local") {
          k.variables.push_back(variable(word.substr(1)));
        } else if (word == ".pragma") {
          const std::string what = next(), mask = "\"used_bytes_mask ";
          if (what.compare(0, mask.size(), mask) == 0)
            used = static_cast<uint32_t>(std::strtoul(what.c_str() + mask.size(), nullptr, 0));
          expect(";");
        } else {
          fail_at(line, "unknown directive " + word);
        }
        continue;
      }
      if (at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == ":") {
        k.labels.push_back({next(), scopes.back(), static_cast<int>(k.statements.size())});
        expect(":");
        continue;
      }
      k.statements.push_back(statement(scopes.back()));
      k.statements.back().used = used, used = ~0u;
    }
    module_.kernels[k.name] = std::move(k);
  }

  void read_registers(Kernel& k, int scope) {
    const Type type = Type::of(next().substr(1));
    do {
      Register r{next(), type, 1, scope};
      if (take("<")) {
        r.count = static_cast<int>(number());
        expect(">");
      }
      k.registers.push_back(r);
    } while (take(","));
    expect(";");
  }

  Statement statement(int scope) {
    Statement s;
    s.line = here().line, s.scope = scope;
    if (take("@")) {
      s.unless = take("!");
      s.guard = next();
    }
    s.opcode = next();
    while (!take(";")) {
      s.operands.push_back(operand());
      if (!is(";")) expect(",");
    }
    return s;
  }

  Operand operand() {
    Operand o;
    if (take("{")) {
      o.kind = Operand::kVector;
      do o.of.push_back(operand());
      while (take(","));
      expect("}");
    } else if (take("[")) {
      o.kind = Operand::kAddress;
      if (is_number(here().text)) o.offset = number();
      else o.name = next();
      if (take("+")) o.offset += number();
      expect("]");
    } else if (is_number(here().text)) {
      const std::string text = next();
      o.kind = Operand::kNumber, o.bits = bits_of(text);
      o.is_single = text.size() > 2 && text[0] == '0' && std::strchr("fF", text[1]);
    } else {
      o.kind = Operand::kName, o.name = next();
      if (take("|")) o.also = next();
    }
    return o;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  Module module_;
};

}  // namespace ptx

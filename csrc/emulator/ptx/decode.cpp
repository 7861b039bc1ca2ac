// From statements to instructions.
#include <algorithm>
#include <cstring>
#include <set>

#include "code.h"

namespace ptx {
namespace {

int register_bytes(const Type& type) { return type.kind == 'p' ? 4 : std::max(2, type.bytes()); }
size_t rounded(size_t at, size_t align) { return (at + align - 1) / align * align; }

const std::set<std::string> kSpecials = {"%tid.x",       "%tid.y",        "%tid.z",           "%ntid.x",
                                         "%ntid.y",      "%ntid.z",       "%ctaid.x",         "%ctaid.y",
                                         "%ctaid.z",     "%nctaid.x",     "%nctaid.y",        "%nctaid.z",
                                         "%laneid",      "%warpid",       "%cluster_ctarank", "%cluster_nctarank",
                                         "%clusterid.x", "%nclusterid.x", "%cluster_ctaid.x", "%cluster_nctaid.x",
                                         "%lanemask_lt", "%lanemask_le",  "%lanemask_eq",     "%lanemask_gt",
                                         "%lanemask_ge", "%smid"};

}  // namespace

std::string key_of(const std::string& opcode, Type& type, Type& second) {
  std::string key = opcode;
  Type found[2];
  for (int n = 0; n < 2; ++n) {
    const size_t dot = key.rfind('.');
    if (dot == std::string::npos) break;
    const Type t = Type::of(key.substr(dot + 1));
    if (!t) break;
    found[n] = t, key.resize(dot);
  }
  type = found[1] ? found[1] : found[0], second = found[1] ? found[0] : Type();
  return key;
}

void Decoder::lay_out() {
  size_t at = 0;
  for (const Register& r : kernel_.registers) {
    const size_t bytes = static_cast<size_t>(r.type.kind == 'p' ? 4 : register_bytes(r.type) * 32);
    at = rounded(at, bytes);
    registers_[{r.scope, r.name}] = Named{r.type, static_cast<int32_t>(at), r.count};
    at += bytes * static_cast<size_t>(r.count);
    if (at > INT32_MAX) throw Fault("too many registers");
  }
  program_.register_bytes = at;
  size_t shared = kSharedBase, local = 0, params = 0;
  for (const Variable& v : kernel_.variables) {
    size_t& end = v.space == "shared" ? shared : local;
    end = rounded(end, static_cast<size_t>(v.align));
    symbols_[v.name] = end, end += static_cast<size_t>(v.bytes);
  }
  for (const Variable& v : kernel_.params) {
    params = rounded(params, static_cast<size_t>(v.align));
    symbols_[v.name] = params, params += static_cast<size_t>(v.bytes);
  }
  for (const Variable& v : module_.variables) {
    std::vector<char>& memory = globals_[v.name];
    if (memory.empty()) {
      memory.resize(std::max<size_t>(1, static_cast<size_t>(v.bytes)));
      std::copy(v.initial.begin(), v.initial.end(), memory.begin());
    }
    symbols_[v.name] = reinterpret_cast<uintptr_t>(memory.data());
  }
  program_.shared = shared, program_.local = local, program_.params = params;
}

const Decoder::Named* Decoder::find(const std::string& name, int scope, int& index) const {
  size_t digits = name.size();
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
  const std::string stem = name.substr(0, digits);
  const int number = digits < name.size() && name.size() - digits < 9 ? std::atoi(name.c_str() + digits) : -1;
  for (; scope >= 0; scope = kernel_.parent[static_cast<size_t>(scope)]) {
    auto at = registers_.find({scope, name});
    if (at != registers_.end() && at->second.count == 1) return index = 0, &at->second;
    at = registers_.find({scope, stem});
    if (at != registers_.end() && number >= 0 && number < at->second.count && at->second.count > 1)
      return index = number, &at->second;
  }
  return nullptr;
}

bool Decoder::symbol(const std::string& name, uint64_t& value) const {
  const auto at = symbols_.find(name);
  if (at == symbols_.end()) return false;
  value = at->second;
  return true;
}

int Decoder::width(const Operand& o) const {
  int index;
  const Named* named = o.kind == Operand::kName ? find(o.name, s->scope, index) : nullptr;
  return named && named->type.kind != 'p' ? register_bytes(named->type) : 0;
}

int32_t Decoder::constant(uint64_t bits, int bytes) {
  const auto known = constants_.find({bits, bytes});
  if (known != constants_.end()) return known->second;
  const size_t each = bytes == 0 ? 4 : static_cast<size_t>(bytes), count = bytes == 0 ? 1 : 32;
  const size_t at = rounded(program_.constants.size(), each * count);
  program_.constants.resize(at + each * count);
  if (bytes == 0) bits = bits ? kAll : 0;
  for (size_t l = 0; l < count; ++l) std::memcpy(&program_.constants[at + l * each], &bits, each);
  return constants_[{bits, bytes}] = ~static_cast<int32_t>(at);
}

int32_t Decoder::place(const Operand& o, int bytes, bool is_target) {
  if (o.kind == Operand::kNumber && !is_target) {
    if (bytes == 8 && o.is_single) fail("a single-precision number as an operand of 64 bits");
    return constant(bytes == 0 || bytes >= 8 ? o.bits : o.bits & ((1ull << 8 * bytes) - 1), bytes);
  }
  if (o.kind != Operand::kName) fail("an operand that is not understood");
  int index;
  if (const Named* named = find(o.name, s->scope, index)) {
    const bool predicate = named->type.kind == 'p';
    if (predicate != (bytes == 0) || (!predicate && register_bytes(named->type) != bytes))
      fail("register " + o.name + " is not of the operand's width");
    const int32_t at = named->first + index * (predicate ? 4 : bytes * 32);
    (is_target ? written_ : read_).push_back(at);
    return at;
  }
  if (is_target) fail("unknown register " + o.name);
  if (o.name[0] == '%') {
    if (!kSpecials.count(o.name) || bytes != 4) fail("unknown special register " + o.name);
    const auto known = specials_.find(o.name);
    if (known != specials_.end()) return known->second;
    program_.register_bytes = rounded(program_.register_bytes, 128);
    const int32_t at = static_cast<int32_t>(program_.register_bytes);
    program_.register_bytes += 128;
    program_.specials.push_back({o.name, at});
    return specials_[o.name] = at;
  }
  uint64_t value;
  if (!symbol(o.name, value)) fail("unknown name " + o.name);
  return constant(value, bytes);
}

void Decoder::address(size_t n) {
  const Operand& o = operand(n);
  if (o.kind != Operand::kAddress) fail("expected an address");
  uint64_t base = 0;
  int index;
  const Named* named = o.name.empty() ? nullptr : find(o.name, s->scope, index);
  i->offset = o.offset;
  if (named) {
    const int bytes = register_bytes(named->type);
    if (bytes != 4 && bytes != 8) fail("an address of " + std::to_string(8 * bytes) + " bits");
    i->a = named->first + index * bytes * 32;
    read_.push_back(i->a);
    i->width = static_cast<uint8_t>(bytes);
  } else {
    if (!o.name.empty() && !symbol(o.name, base)) fail("unknown name " + o.name);
    i->a = constant(base, 8), i->width = 8;
  }
}

int Decoder::label(const std::string& name, int scope) const {
  for (; scope >= 0; scope = kernel_.parent[static_cast<size_t>(scope)]) {
    const auto at = labels_.find({scope, name});
    if (at != labels_.end()) return at->second;
  }
  fail("unknown label " + name);
}

Program Decoder::decode() {
  program_.name = kernel_.name, program_.target = module_.target, program_.lines = module_.lines;
  program_.block_limit = kernel_.block_limit;
  program_.version = std::atoi(module_.target.c_str() + 3);  // sm_90
  lay_out();
  program_.code.resize(kernel_.statements.size() + 1);
  for (const Kernel::Label& label : kernel_.labels) {
    if (!labels_.insert({{label.scope, label.name}, label.at}).second) throw Fault("label " + label.name + " twice");
    program_.code[static_cast<size_t>(label.at)].head = true;
  }
  bool head = true;
  for (size_t n = 0; n < kernel_.statements.size(); ++n) {
    s = &kernel_.statements[n], i = &program_.code[n];
    i->line = s->line, i->used = s->used, i->head |= head;
    head = false;
    written_.clear(), read_.clear();
    if (!s->guard.empty()) {
      Operand guard;
      guard.kind = Operand::kName, guard.name = s->guard;
      i->guarded = true, i->unless = s->unless, i->guard = place(guard, 0, false);
    }
    if (s->opcode == "bra" || s->opcode == "bra.uni") {
      operands(1);
      i->flow = Flow::kBranch, i->target = label(operand(0).name, s->scope), head = true;
      continue;
    }
    if (s->opcode == "ret" || s->opcode == "exit") {
      i->flow = Flow::kExit, head = true;
      continue;
    }
    const Entry* entry = entry_of(key_of(s->opcode, type, second));
    if (!entry) fail("unknown opcode");
    (*entry)(*this);
    if (!i->run) fail("unknown type");
    i->places = static_cast<uint32_t>(program_.places.size());
    i->written = static_cast<uint8_t>(written_.size()), i->read = static_cast<uint8_t>(read_.size());
    program_.places.insert(program_.places.end(), written_.begin(), written_.end());
    program_.places.insert(program_.places.end(), read_.begin(), read_.end());
  }
  program_.code.back().flow = Flow::kExit, program_.code.back().line = kernel_.statements.empty() ? kernel_.line : s->line;
  program_.ran.resize(program_.code.size());
  program_.register_bytes = rounded(program_.register_bytes + 1, 256);
  return std::move(program_);
}

}  // namespace ptx

// What tests set in the stand-in and read from it, and small programs on a separate machine.
#include <cstring>

#include "stand_in.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace ptx;

EXPORT int specsample_ptx_current_device() { return StandIn::it().device; }
EXPORT void specsample_ptx_device(int index, int capability, int processors, int most_cluster) {
  StandIn::it().devices[index] = Device{capability, processors, most_cluster};
}
EXPORT void specsample_ptx_use(int device) { StandIn::it().device = device; }
EXPORT void specsample_ptx_settings(uint32_t shuffle, uint32_t perturb, int resident, int races) {
  Settings& s = StandIn::it().machine.settings;
  s.shuffle = shuffle, s.perturb = perturb, s.resident = resident, s.races = races;
}
EXPORT void specsample_ptx_capturing(int on) { StandIn::it().capturing = on != 0; }
EXPORT void specsample_ptx_fail(const char* entry_point) { StandIn::it().failing = entry_point; }
EXPORT const char* specsample_ptx_log() {
  static std::string said;
  said = std::move(StandIn::it().log);
  StandIn::it().log.clear();
  return said.c_str();
}
EXPORT uint64_t specsample_ptx_steps() { return StandIn::it().machine.steps; }
EXPORT const char* specsample_ptx_text(const char* kernel, int architecture) {
  static std::string text;
  text = text_of(kernel, architecture);
  return text.c_str();
}
EXPORT const char* specsample_ptx_ran(const char* kernel, int architecture) {
  static std::string lines;
  lines = ran_of(kernel, architecture);
  return lines.c_str();
}
EXPORT void specsample_ptx_replace(const char* kernel, int architecture, const char* text) {
  replace_text(kernel, architecture, text);
}

// Opcodes of a text that are missing from the table, one per line.
EXPORT const char* specsample_ptx_unknown(const char* text) {
  static std::string unknown;
  unknown.clear();
  for (const auto& [name, kernel] : Reader(text).read().kernels)
    for (const Statement& s : kernel.statements) {
      Type a, b;
      const bool flow = s.opcode == "bra" || s.opcode == "bra.uni" || s.opcode == "ret" || s.opcode == "exit";
      if (!flow && !entry_of(key_of(s.opcode, a, b)) && unknown.find(s.opcode + "\n") == std::string::npos)
        unknown += s.opcode + "\n";
    }
  return unknown.c_str();
}

// Runs `launches` launches of a text's only kernel one behind another, the later ones early. Its parameters are the buffers'
// addresses and, if there is room, two ints: the launch's number and `number`. Returns the diagnosis.
struct SmallLaunch {
  int blocks, threads, cluster, launches, buffers, number;
  uint32_t shuffle, perturb;
  uint64_t steps;
};
EXPORT const char* specsample_ptx_run(const char* text, const SmallLaunch* how, void** data, const int64_t* bytes,
                                      const int* known) {
  static std::string found;
  found.clear();
  try {
    const Module module = Reader(text).read();
    if (module.kernels.size() != 1) throw Fault("expected one kernel");
    Globals globals;
    const Program program = Decoder(module, module.kernels.begin()->second, globals).decode();
    Machine machine;
    machine.settings.shuffle = how->shuffle, machine.settings.perturb = how->perturb;
    if (how->steps) machine.settings.steps = how->steps;
    for (auto& [name, memory] : globals) machine.add(memory.data(), memory.size(), name);
    Grid grid;
    grid.blocks[0] = static_cast<uint32_t>(how->blocks), grid.threads[0] = static_cast<uint32_t>(how->threads),
    grid.cluster = how->cluster;
    grid.params.resize(program.params);
    for (int n = 0; n < how->buffers; ++n) {
      machine.add(data[n], static_cast<size_t>(bytes[n]), "buffer " + std::to_string(n), true, known[n] != 0);
      if (program.params >= static_cast<size_t>(n + 1) * 8) std::memcpy(&grid.params[static_cast<size_t>(n) * 8], &data[n], 8);
    }
    const size_t rest = static_cast<size_t>(how->buffers) * 8;
    for (int launch = 0; launch < how->launches; ++launch) {
      if (program.params >= rest + 8) {
        std::memcpy(&grid.params[rest], &launch, 4);
        std::memcpy(&grid.params[rest + 4], &how->number, 4);
      }
      grid.early = launch > 0;
      machine.launch(program, grid);
    }
  } catch (const Fault& fault) {
    found = fault.what();
  }
  return found.c_str();
}

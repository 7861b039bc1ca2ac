// The cudart entry points that nvcc's objects and csrc/cuda call, on the PTX machine. A kernel's text is the one that a driver
// would compile: the newest in the fat binary that the device's architecture runs. A kernel is loaded when first asked about.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "stand_in.h"

namespace ptx {
namespace {

struct Binary {
  std::map<int, std::string> texts;  // by architecture
};
struct Symbol {
  Binary* binary;
  std::string name;
  std::map<int, std::unique_ptr<Program>> programs;  // by architecture
};

std::map<const void*, Symbol>& symbols() {
  static std::map<const void*, Symbol> all;
  return all;
}
std::map<std::pair<std::string, int>, std::string>& replacements() {  // by the kernel's full name
  static std::map<std::pair<std::string, int>, std::string> all;
  return all;
}
Globals& globals() {
  static Globals all;
  return all;
}
cudaError_t last = cudaSuccess;

cudaError_t error(cudaError_t what) { return last = what; }
cudaError_t error(cudaError_t what, const std::string& found) {
  StandIn::it().found = found;
  return error(what);
}
bool fails(const char* name) {
  StandIn& s = StandIn::it();
  if (s.failing != name) return false;
  ++s.failures, s.found = std::string(name) + " fails, as it was told";
  return true;
}
const Device* device(int index) {
  const auto found = StandIn::it().devices.find(index);
  return found == StandIn::it().devices.end() ? nullptr : &found->second;
}
int guarded() { return StandIn::it().device; }

struct NoText : Fault {
  using Fault::Fault;
};

const Program* load(const void* function, const Device& on) {
  const auto found = symbols().find(function);
  if (found == symbols().end()) throw Fault("no such kernel");
  Symbol& symbol = found->second;
  int architecture = 0;
  for (const auto& entry : symbol.binary->texts)
    if (entry.first <= on.capability) architecture = entry.first;
  if (!architecture) throw NoText("no text of " + symbol.name + " for this device");
  std::unique_ptr<Program>& program = symbol.programs[architecture];
  if (!program) {
    const auto other = replacements().find({symbol.name, architecture});
    const Module module = Reader(other != replacements().end() ? other->second : symbol.binary->texts.at(architecture)).read();
    const auto kernel = module.kernels.find(symbol.name);
    if (kernel == module.kernels.end()) throw Fault("the text has no " + symbol.name);
    program = std::make_unique<Program>(Decoder(module, kernel->second, globals()).decode());
    for (const Variable& v : module.variables) {
      std::vector<char>& memory = globals()[v.name];
      StandIn::it().machine.add(memory.data(), memory.size(), v.name, v.space != "const");
    }
    StandIn::it().log += "loaded " + symbol.name + " for " + std::to_string(architecture) + "\n";
  }
  return program.get();
}

// The PTX in an uncompressed fat binary: a header, then entries with a header each; kind 1 is PTX.
void read_fat_binary(const char* data, Binary& binary) {
  const auto number = [&](size_t at, size_t bytes) {
    uint64_t value = 0;
    std::memcpy(&value, data + at, bytes);
    return value;
  };
  if (number(0, 4) != 0xBA55ED50) throw Fault("not a fat binary");
  size_t at = number(6, 2);
  const size_t end = at + number(8, 8);
  while (at < end) {
    const size_t kind = number(at, 2), header = number(at + 4, 4), bytes = number(at + 8, 8), compressed = number(at + 16, 4);
    if (kind == 1 && compressed) throw Fault("a compressed fat binary; compile with --no-compress");
    if (kind == 1)
      binary.texts[static_cast<int>(number(at + 28, 4))] = std::string(data + at + header, strnlen(data + at + header, bytes));
    at += header + bytes;
  }
}

}  // namespace

std::string text_of(const std::string& kernel, int architecture) {
  for (const auto& [address, symbol] : symbols())
    if (symbol.name.find(kernel) != std::string::npos) {
      const auto found = symbol.binary->texts.find(architecture);
      return found == symbol.binary->texts.end() ? "" : found->second;
    }
  return "";
}
std::string ran_of(const std::string& kernel, int architecture) {
  std::string lines;
  for (const auto& [address, symbol] : symbols()) {
    const auto found = symbol.programs.find(architecture);
    if (symbol.name.find(kernel) == std::string::npos || found == symbol.programs.end()) continue;
    for (size_t n = 0; n < found->second->code.size(); ++n)
      if (found->second->ran[n]) lines += std::to_string(found->second->code[n].line) + " ";
  }
  return lines;
}
void replace_text(const std::string& kernel, int architecture, const std::string& text) {
  for (auto& [address, symbol] : symbols())
    if (symbol.name.find(kernel) != std::string::npos) {
      symbol.programs.erase(architecture);
      if (text.empty()) replacements().erase({symbol.name, architecture});
      else replacements()[{symbol.name, architecture}] = text;
    }
}

}  // namespace ptx

using namespace ptx;

extern "C" {

// -- called by nvcc's objects before main, and in place of a launch by <<<>>> ----------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  const struct Wrapper {
    int magic, version;
    const char* data;
  }& w = *static_cast<const Wrapper*>(wrapper);
  auto* binary = new Binary;  // lives as long as the process
  read_fat_binary(w.data, *binary);
  return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  symbols()[host] = Symbol{reinterpret_cast<Binary*>(binary), name, {}};
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return error(cudaErrorNotSupported); }
cudaError_t __cudaGetKernel(void**, const void*) { return error(cudaErrorNotSupported); }
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) { return error(cudaErrorNotSupported); }

// -- called by csrc/cuda -------------------------------------------------------------------------------------------

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int index) {
  if (fails("cudaDeviceGetAttribute")) return error(cudaErrorInvalidValue);
  const Device* d = device(index);
  if (!d) return error(cudaErrorInvalidDevice, "no device " + std::to_string(index));
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      return *value = d->processors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = d->capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = d->capability % 10, cudaSuccess;
    default:
      return error(cudaErrorInvalidValue, "an attribute that the stand-in does not know");
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (fails("cudaFuncGetAttributes")) return error(cudaErrorUnknown);
  if (StandIn::it().capturing) return error(cudaErrorStreamCaptureUnsupported, "a kernel is loaded while a stream is captured");
  const Device* d = device(guarded());
  if (!d) return error(cudaErrorInvalidDevice, "no device");
  try {
    const Program& program = *load(function, *d);
    std::memset(attributes, 0, sizeof(*attributes));
    attributes->ptxVersion = program.version;
    attributes->binaryVersion = d->capability;
    attributes->sharedSizeBytes = program.shared - kSharedBase;
    attributes->localSizeBytes = program.local;
    attributes->maxThreadsPerBlock = program.block_limit ? program.block_limit : 1024;
    return cudaSuccess;
  } catch (const NoText& fault) {
    return error(cudaErrorNoKernelImageForDevice, fault.what());
  } catch (const Fault& fault) {
    return error(cudaErrorInvalidKernelImage, fault.what());
  }
}

static int cluster_of(const cudaLaunchConfig_t& config) {
  for (unsigned n = 0; n < config.numAttrs; ++n)
    if (config.attrs[n].id == cudaLaunchAttributeClusterDimension) return static_cast<int>(config.attrs[n].val.clusterDim.x);
  return 1;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  if (fails("cudaOccupancyMaxActiveClusters")) return error(cudaErrorInvalidClusterSize);
  const Device* d = device(guarded());
  if (!d) return error(cudaErrorInvalidDevice, "no device");
  const int size = cluster_of(*config);
  if (d->capability < 90) return error(cudaErrorNotSupported, "clusters before compute capability 9.0");
  if (size > d->most_cluster) return error(cudaErrorInvalidClusterSize, "a cluster of " + std::to_string(size));
  return *clusters = d->processors / size, cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  if (fails("cudaStreamIsCapturing")) return error(cudaErrorInvalidResourceHandle);
  return *status = StandIn::it().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  StandIn& s = StandIn::it();
  if (fails("cudaLaunchKernelExC")) return error(cudaErrorLaunchOutOfResources);
  const Device* d = device(guarded());
  if (!d) return error(cudaErrorInvalidDevice, "no device");
  if (reinterpret_cast<uintptr_t>(config->stream) != 0x5EED0000u + static_cast<uintptr_t>(s.device))
    return error(cudaErrorInvalidResourceHandle, "a launch on another stream than the current one");
  const dim3 &blocks = config->gridDim, &threads = config->blockDim;
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > INT32_MAX || blocks.y > 65535 || blocks.z > 65535)
    return error(cudaErrorInvalidConfiguration, "a grid of " + std::to_string(blocks.x) + " blocks");
  if (threads.x * threads.y * threads.z == 0 || threads.x * threads.y * threads.z > 1024)
    return error(cudaErrorInvalidConfiguration, "an impossible block");
  try {
    const Program& program = *load(function, *d);
    Grid grid;
    const unsigned sizes[] = {blocks.x, blocks.y, blocks.z}, block[] = {threads.x, threads.y, threads.z};
    std::copy(sizes, sizes + 3, grid.blocks), std::copy(block, block + 3, grid.threads);
    grid.shared = config->dynamicSmemBytes;
    if (program.shared - kSharedBase + grid.shared > 48 * 1024)
      return error(cudaErrorInvalidConfiguration, "more than 48 KiB of shared memory");
    for (unsigned n = 0; n < config->numAttrs; ++n) {
      const cudaLaunchAttribute& a = config->attrs[n];
      if (a.id == cudaLaunchAttributeClusterDimension) {
        if (a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1)
          return error(cudaErrorInvalidClusterSize, "a cluster in several dimensions");
        grid.cluster = static_cast<int>(a.val.clusterDim.x);
      } else if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
        grid.early = a.val.programmaticStreamSerializationAllowed != 0;
      } else {
        return error(cudaErrorNotSupported, "an attribute that the stand-in does not know");
      }
    }
    if (grid.early && d->capability < 90) return error(cudaErrorNotSupported, "programmatic launch before compute capability 9.0");
    if (grid.cluster > 1 && d->capability < 90) return error(cudaErrorNotSupported, "clusters before compute capability 9.0");
    if (grid.cluster > d->most_cluster || grid.blocks[0] % static_cast<unsigned>(grid.cluster))
      return error(cudaErrorInvalidClusterSize, "a cluster of " + std::to_string(grid.cluster));
    if (s.capturing) return cudaSuccess;  // it would run when the graph does
    grid.params.resize(program.params);
    std::memcpy(grid.params.data(), arguments[0], program.params);  // each kernel has one parameter
    s.log += "launch " + program.name + " " + program.target + ": " + std::to_string(blocks.x) + " blocks in clusters of " +
             std::to_string(grid.cluster) + (grid.early ? ", early" : "") + "\n";
    s.register_tensors();
    s.machine.launch(program, grid);
    return cudaSuccess;
  } catch (const Fault& fault) {
    return error(cudaErrorLaunchFailure, fault.what());
  }
}

cudaError_t cudaGetLastError() {
  const cudaError_t was = last;
  last = cudaSuccess;
  return was;
}
const char* cudaGetErrorString(cudaError_t) { return StandIn::it().found.c_str(); }

}  // extern "C"

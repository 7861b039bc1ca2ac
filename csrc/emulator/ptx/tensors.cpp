// The memory that kernels may access: that of the tensors whose addresses the launch code has requested from torch and still holds,
// from the first to the last element, and no byte more. For this, each torch entry point that returns or frees a tensor's memory is
// called through one of the same name here (the linker binds them within this library). CPU tensors report a device and a stream.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstring>

#include "stand_in.h"

namespace {

struct Extent {
  uintptr_t begin, end;
  std::string name;
  bool writable, known;
};
std::map<AtenTensorHandle, Extent>& extents() {
  static std::map<AtenTensorHandle, Extent> all;
  return all;
}

template <class F>
F* torchs(const char* name) {
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  void* found = library ? dlsym(library, name) : nullptr;
  if (!found) throw ptx::Fault(std::string("torch has no ") + name);
  return reinterpret_cast<F*>(found);
}
#define TORCHS(name) torchs<decltype(name)>(#name)

void note(AtenTensorHandle tensor, const void* data, bool writable) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  aoti_torch_get_dim(tensor, &dim), aoti_torch_get_sizes(tensor, &sizes), aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  int64_t least = 0, most = 0, count = 1;
  std::string shape;
  for (int64_t n = 0; n < dim; ++n) {
    count *= sizes[n];
    (strides[n] < 0 ? least : most) += strides[n] * (sizes[n] - 1);
    shape += (n ? ", " : "") + std::to_string(sizes[n]);
  }
  if (count == 0 || !data) return;
  const int64_t item = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  const uintptr_t at = reinterpret_cast<uintptr_t>(data);
  const auto old = extents().find(tensor);
  const bool known = old == extents().end() || old->second.known;
  extents()[tensor] = Extent{at + static_cast<uintptr_t>(least * item), at + static_cast<uintptr_t>((most + 1) * item),
                             "the tensor [" + shape + "] of " + std::to_string(item) + "-byte elements",
                             writable || (old != extents().end() && old->second.writable), known};
}

}  // namespace

namespace ptx {

void StandIn::register_tensors() {
  std::vector<Extent> all;
  for (const auto& [handle, extent] : extents()) all.push_back(extent);
  std::sort(all.begin(), all.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  std::vector<Extent> merged;
  for (const Extent& e : all) {
    if (merged.empty() || merged.back().end <= e.begin) {
      merged.push_back(e);
      continue;
    }
    Extent& before = merged.back();
    before.end = std::max(before.end, e.end), before.writable |= e.writable, before.known &= e.known;
  }
  std::map<uintptr_t, const Extent*> wanted;
  for (const Extent& e : merged) wanted[e.begin] = &e;
  std::vector<void*> gone;
  for (const auto& [begin, buffer] : machine.buffers) {
    if (buffer->name.compare(0, 10, "the tensor") != 0) continue;
    const auto found = wanted.find(begin);
    const bool same = found != wanted.end() && found->second->end - begin == buffer->bytes && found->second->known == buffer->known;
    if (same) buffer->writable = found->second->writable, wanted.erase(found);
    else gone.push_back(buffer->data);
  }
  for (void* data : gone) machine.remove(data);
  for (const auto& [begin, e] : wanted) machine.add(reinterpret_cast<void*>(begin), e->end - begin, e->name, e->writable, e->known);
}

}  // namespace ptx

extern "C" {

AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  const AOTITorchError error = TORCHS(torch_get_mutable_data_ptr)(tensor, data);
  if (!error) note(tensor, *data, true);
  return error;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  const AOTITorchError error = TORCHS(torch_get_const_data_ptr)(tensor, data);
  if (!error) note(tensor, *data, false);
  return error;
}
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t type,
                                        int32_t, AtenTensorHandle* tensor) {
  // A tensor too large for this machine gets one element's memory: for tests of what the launch code refuses.
  int64_t count = 1;
  for (int64_t n = 0; n < dim; ++n) count *= sizes[n];
  const std::vector<int64_t> none(static_cast<size_t>(dim), 0);
  const bool large = count > 1 << 28;
  const AOTITorchError error = TORCHS(aoti_torch_empty_strided)(dim, sizes, large ? none.data() : strides, dtype, type, 0, tensor);
  void* data = nullptr;
  if (error || aoti_torch_get_data_ptr(*tensor, &data)) return error;
  note(*tensor, data, true);
  const auto found = extents().find(*tensor);
  if (found != extents().end()) {
    found->second.known = false;
    std::memset(data, 0xA5, found->second.end - found->second.begin);
  }
  return error;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  const auto found = extents().find(tensor);
  if (found != extents().end()) {
    ptx::StandIn::it().machine.remove(reinterpret_cast<void*>(found->second.begin));
    extents().erase(found);
  }
  return TORCHS(aoti_torch_delete_tensor_object)(tensor);
}

AOTITorchError aoti_torch_create_device_guard(int32_t device, DeviceGuardHandle* guard) {
  ptx::StandIn& s = ptx::StandIn::it();
  if (!s.devices.count(device)) return AOTI_TORCH_FAILURE;
  *guard = reinterpret_cast<DeviceGuardHandle>(&s);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
__attribute__((visibility("default"))) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(0x5EED0000u + static_cast<uintptr_t>(device));
  return AOTI_TORCH_SUCCESS;
}

}  // extern "C"

// specsample._C: loading it registers the kernels with torch; `build_info()` reports what was built.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "cpu/passes.h"
#include "schemes/table.h"

#ifndef SPS_TORCH_VERSION
#define SPS_TORCH_VERSION "unknown"
#endif

#ifdef SPS_CUDA_VERSION
constexpr const char *kCudaVersion = SPS_CUDA_VERSION, *kCudaArchs = SPS_CUDA_ARCHS;
#else
constexpr const char *kCudaVersion = nullptr, *kCudaArchs = "";
#endif

// cuda: version of the compiler of the CUDA kernels (None: not built); architectures: compute capabilities, separated by spaces.
static PyObject* build_info(PyObject*, PyObject*) {
#define SPS_NAME(name, ...) #name " "
  return Py_BuildValue("{s:i,s:s,s:z,s:s,s:s,s:s,s:s}", "stream_version", specsample::kStreamVersion, "torch_built",
                       SPS_TORCH_VERSION, "cuda", kCudaVersion, "architectures", kCudaArchs, "cpu_capability",
                       specsample::cpu_capability().name, "schemes", SPS_SCHEMES(SPS_NAME), "cuda_schemes",
                       SPS_CUDA_SCHEMES(SPS_NAME));
#undef SPS_NAME
}

static PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "What this extension was built against, and the CPU's instruction set."},
    {nullptr, nullptr, 0, nullptr}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

// setup.py names the extension _C; a build that uses another name defines this macro, as torch's own builder does.
#ifndef TORCH_EXTENSION_NAME
#define TORCH_EXTENSION_NAME _C
#endif
#define SPS_JOINED(a, b) a##b
#define SPS_INIT(name) SPS_JOINED(PyInit_, name)

extern "C" __attribute__((visibility("default"))) PyObject* SPS_INIT(TORCH_EXTENSION_NAME)(void) {
  return PyModule_Create(&definition);
}

// specsample._C: loading it registers the kernels with torch; `build_info()` tells what was built.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "cpu/passes.h"

#ifndef SPS_TORCH_VERSION
#define SPS_TORCH_VERSION "unknown"
#endif

static PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:O,s:[],s:s}", "torch_built", SPS_TORCH_VERSION, "cuda", Py_None, "architectures",
                       "cpu_capability", specsample::cpu_capability().name);
}

static PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "What this extension was built against, and the CPU's instruction set."},
    {nullptr, nullptr, 0, nullptr}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) { return PyModule_Create(&definition); }

// "A CUDA run time that is not one": what the parts of the stand-in share. cudart.cpp has the entry points of cudart that the launch
// code calls, tensors.cpp those of torch by which memory of tensors reaches kernels; bindings.cpp sets all this from tests.
#pragma once
#include <map>
#include <string>

#include "code.h"

namespace ptx {

struct Device {
  int capability = 90;  // 80: 8.0
  int processors = 132;
  int most_cluster = 8;  // blocks; larger ones are refused
};

struct StandIn {
  std::map<int, Device> devices;
  int device = 0;  // that tensors are said to be on
  bool capturing = false;
  std::string failing;  // an entry point that fails
  int failures = 0;  // how often it has
  std::string found;  // the last diagnosis
  std::string log;  // a line for each launch, and each kernel that was loaded
  Machine machine;

  static StandIn& it() {
    static StandIn it;
    return it;
  }
  void register_tensors();  // tensors.cpp: the memory of all tensors whose addresses were asked for becomes the machine's
};

// The texts of kernels, by part of a kernel's name and architecture; of cudart.cpp.
std::string text_of(const std::string& kernel, int architecture);
std::string ran_of(const std::string& kernel, int architecture);  // lines of it that were executed
void replace_text(const std::string& kernel, int architecture, const std::string& text);  // empty: the compiler's again

}  // namespace ptx

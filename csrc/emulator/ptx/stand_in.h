// A stand-in for the CUDA run time: what its parts share. cudart.cpp has the entry points of cudart that the launch code calls,
// tensors.cpp those of torch by which tensors' memory reaches kernels; tests set all this through bindings.cpp.
#pragma once
#include <map>
#include <string>

#include "code.h"

namespace ptx {

struct Device {
  int capability = 90;  // 80: 8.0
  int processors = 132;
  int most_cluster = 8;  // blocks; larger clusters are refused
};

struct StandIn {
  std::map<int, Device> devices;
  int device = 0;  // that tensors report
  bool capturing = false;
  std::string failing;  // the entry point to fail
  int failures = 0;  // number of failures so far
  std::string found;  // the last diagnosis
  std::string log;  // one line for each launch and each kernel loaded
  Machine machine;

  static StandIn& it() {
    static StandIn it;
    return it;
  }
  void register_tensors();  // tensors.cpp: registers the memory of all tensors whose addresses were requested with the machine
};

// The texts of kernels, by part of a kernel's name and architecture (cudart.cpp).
std::string text_of(const std::string& kernel, int architecture);
std::string ran_of(const std::string& kernel, int architecture);  // its lines that were executed
void replace_text(const std::string& kernel, int architecture, const std::string& text);  // empty: restores the compiler's

}  // namespace ptx

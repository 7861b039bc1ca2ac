// The CUDA ops on the CPU: torch ops of the library specsample_cuda_on_cpu, and what tests choose for their launches.
#include "cuda_on_cpu.h"
// The emulation comes first: the kernels' sources see it instead of the CUDA headers.
#include "../cuda/rows.cu"
#include "../cuda/verify.cu"

extern "C" __attribute__((visibility("default"))) void specsample_cuda_on_cpu_settings(int threads, uint32_t shuffle) {
  cuda_on_cpu::settings = {threads, shuffle};
}

// The CUDA ops on the CPU: torch ops of the library specsample_cuda_on_cpu, launch settings for tests, the random numbers of the
// device code, and faulty kernels that the emulator must report.
#include "device.h"

#include "../cuda/rows.cu"
#include "../cuda/verify.cu"
#include "bad_kernels.h"

#define SPS_EXPORT extern "C" __attribute__((visibility("default")))

using namespace specsample;

SPS_EXPORT void specsample_cuda_on_cpu_settings(int threads, uint32_t shuffle, int team, int ahead, uint32_t perturb) {
  cuda_on_cpu::settings = {threads, shuffle, team, ahead != 0, perturb};
}

namespace {
struct PhiloxArgs {
  uint32_t counter[4], key[2];
  uint32_t* out;
};
__global__ void philox_kernel(PhiloxArgs a) {
  const Words w = philox(Words{{a.counter[0], a.counter[1], a.counter[2], a.counter[3]}}, a.key[0], a.key[1]);
  if (threadIdx.x < 4) a.out[threadIdx.x] = w.v[threadIdx.x];
}
struct WordsArgs {
  Stream stream;
  uint32_t refine, *out;
  int count, of_groups;
};
__global__ void words_kernel(WordsArgs a) {
  for (int i = thread_id(); i < a.count; i += 32)
    a.out[i] = a.of_groups ? a.stream.word_of_group(i, a.refine) : a.stream.word(i, a.refine);
}
struct MassArgs {
  const void* row;
  int dtype;
  int64_t vocab;
  double scale, *out;
};
__global__ void mass_kernel(MassArgs a) {
  SPS_SHARED(s);
  if (conducts()) return;
  Law law;
  law.row = a.row, law.vocab = a.vocab, law.scale = a.scale;
  max_and_mass(s, law, a.dtype);
  const double kept = kept_mass(s, law, a.dtype);
  if (thread_id() == 0) a.out[0] = law.max, a.out[1] = law.mass, a.out[2] = kept;
}
}  // namespace

// The largest logit of a row, and its mass by both passes that compute it.
SPS_EXPORT void specsample_cuda_on_cpu_mass(const void* row, int dtype, int64_t vocab, double scale, double* out) {
  const MassArgs args{row, dtype, vocab, scale, out};
  cuda_on_cpu::machine.launch(dim3(1), dim3(64 + kConductor), [&] { mass_kernel(args); });
}
SPS_EXPORT void specsample_cuda_on_cpu_philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const PhiloxArgs args{{counter[0], counter[1], counter[2], counter[3]}, {key[0], key[1]}, out};
  cuda_on_cpu::machine.launch(dim3(1), dim3(32), [&] { philox_kernel(args); });
}
SPS_EXPORT void specsample_cuda_on_cpu_words(int64_t seed, int64_t position, int purpose, int64_t slot, int of_groups, int refine,
                                             int count, uint32_t* out) {
  const Stream stream(seed, position, static_cast<Purpose>(purpose), slot);
  const WordsArgs args{stream, refine ? kRefineBlock : 0, out, count, of_groups};
  cuda_on_cpu::machine.launch(dim3(1), dim3(32), [&] { words_kernel(args); });
}

// Runs a kernel of bad_kernels.h by name with `count` threads per block, in one team of as many blocks as are set; writes the
// emulator's report (empty: none) to `message`.
SPS_EXPORT void specsample_cuda_on_cpu_bad(const char* name, const float* in, float* out, int count, char* message, int size) {
  const struct {
    const char* name;
    void (*kernel)(BadArgs);
  } kernels[] = {{"none", reverse_kernel<true>},
                 {"missing barrier", reverse_kernel<false>},
                 {"divergent barrier", divergent_barrier_kernel},
                 {"early exit", early_exit_kernel},
                 {"order", order_kernel<true>},
                 {"uneven meeting", uneven_meeting_kernel},
                 {"team", team_kernel<Team::kGood>},
                 {"missing team barrier", team_kernel<Team::kNoBarrier>},
                 {"block that has not begun", team_kernel<Team::kNoStart>},
                 {"block that leaves", team_kernel<Team::kLeaves>},
                 {"uneven team", team_kernel<Team::kUneven>},
                 {"half a warp", half_a_warp_kernel},
                 {"read beyond the row", read_beyond_the_row_kernel},
                 {"write beyond shared memory", write_beyond_shared_memory_kernel}};
  std::string found = "no such kernel";
  for (const auto& entry : kernels) {
    if (std::strcmp(entry.name, name) != 0) continue;
    found.clear();
    try {
      const BadArgs args{in, out, count};
      const int team = cuda_on_cpu::settings.team;
      cuda_on_cpu::machine.launch(dim3(team), dim3(count), [&] { entry.kernel(args); }, team);
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
  }
  std::snprintf(message, static_cast<size_t>(size), "%s", found.c_str());
}

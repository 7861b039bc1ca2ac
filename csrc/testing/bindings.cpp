// Test bindings of the C++ internals (compiled with ninja when the tests run; not part of the wheel): RNG, the row passes of every
// instruction set of this machine, and the schemes' templates over an executor that enumerates every outcome.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>

#include "../cpu/filters.h"
#include "../schemes/table.h"
#include "enumerate.h"

namespace py = pybind11;
using namespace specsample;

namespace {

const Passes& passes_for(const std::string& name, int itemsize, const std::string& dtype) {
  const Capability* capability = find_capability(name.c_str());
  if (!capability) throw std::invalid_argument("this machine lacks " + name);
  return capability->passes[itemsize == 4 ? kFloat32 : dtype == "bfloat16" ? kBfloat16 : kFloat16];
}

// A row given as a 1-d array of float32, or of the 16-bit patterns of bfloat16 or float16.
struct Row {
  const Passes& passes;
  py::buffer_info info;
  Row(const std::string& isa, const py::array& array, const std::string& dtype)
      : passes(passes_for(isa, static_cast<int>(array.itemsize()), dtype)), info(array.request()) {}
  int64_t size() const { return info.size; }
};

Law law_of(const Row& row, double scale, float max, float cutoff, double mass) {
  Law law;
  law.row = row.info.ptr, law.vocab = row.size(), law.scale = scale, law.max = max, law.cutoff = cutoff, law.mass = mass;
  return law;
}

py::dict by_tuple(const std::map<std::vector<int64_t>, double>& outcomes) {
  py::dict out;
  for (const auto& [key, probability] : outcomes) out[py::tuple(py::cast(key))] = probability;
  return out;
}

}  // namespace

PYBIND11_MODULE(specsample_testing, m) {
  m.def("capabilities", [] {
    std::vector<std::string> found;
    for (const char* name : {"base", "avx2", "avx512"})
      if (find_capability(name)) found.push_back(name);
    return found;
  });
  m.def("philox", [](std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
    const Words w = philox(Words{{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
    return std::array<uint32_t, 4>{w.v[0], w.v[1], w.v[2], w.v[3]};
  });
  m.def("words", [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t count, bool refine) {
    const Stream stream(seed, position, static_cast<Purpose>(purpose), slot);
    std::vector<uint32_t> out(count);
    for (int64_t i = 0; i < count; ++i) out[i] = stream.word(i, refine ? kRefineBlock : 0);
    return out;
  });
  m.def("group_words", [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t count, bool second) {
    const Stream stream(seed, position, static_cast<Purpose>(purpose), slot);
    std::vector<uint32_t> out(count);
    for (int64_t g = 0; g < count; ++g) out[g] = stream.word_of_group(g, second ? kRefineBlock : 0);
    return out;
  });
  // A of groups first .. first + 127, first a multiple of 128.
  m.def("group_words_by_lanes",
        [](const std::string& isa, int64_t seed, int64_t position, int purpose, int64_t slot, int64_t first) {
          std::vector<uint32_t> out(128);
          passes_for(isa, 4, "").group_words(Stream(seed, position, static_cast<Purpose>(purpose), slot), first, out.data());
          return out;
        });
  m.def("uniform", [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t token, uint32_t word) {
    return Stream(seed, position, static_cast<Purpose>(purpose), slot).uniform(token, word);
  });
  m.def("least", [](uint32_t a, uint32_t s) {
    const Stream::Least least = Stream::least(a, s);
    return py::make_tuple(least.clock, least.place);
  });
  m.def("clock", [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t token) {
    const Stream stream(seed, position, static_cast<Purpose>(purpose), slot);
    return stream.clock(token, stream.least(group_of(token)));
  });
  // Given the words A and S of its group and its own.
  m.def("clock_of_words",
        [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t token, uint32_t a, uint32_t s, uint32_t word) {
          return Stream(seed, position, static_cast<Purpose>(purpose), slot).clock(token, Stream::least(a, s), word);
        });
  m.def("log_clock", [](int64_t seed, int64_t position, int purpose, int64_t slot, int64_t token) {
    return Stream(seed, position, static_cast<Purpose>(purpose), slot).log_clock(token);
  });

  m.def("row_max", [](const std::string& isa, const py::array& array, const std::string& dtype, int64_t begin, int64_t end) {
    const Row row(isa, array, dtype);
    return row.passes.max(row.info.ptr, begin, end);
  });
  m.def("row_sum", [](const std::string& isa, const py::array& array, const std::string& dtype, double scale, float max,
                      float cutoff, int64_t begin, int64_t end) {
    const Row row(isa, array, dtype);
    return row.passes.sum(row.info.ptr, begin, end, Affine::of(law_of(row, scale, max, cutoff, 1)), cutoff);
  });
  m.def("row_tile",
        [](const std::string& isa, const py::array& array, const std::string& dtype, double scale, int64_t begin, int64_t end) {
          const Row row(isa, array, dtype);
          float max;
          const double sum = row.passes.tile(row.info.ptr, begin, end, Affine::of(law_of(row, scale, 0, 0, 1)), &max);
          return std::make_pair(max, sum);
        });
  m.def("residual_mass", [](const std::string& isa, const py::array& target, const py::array& draft, const std::string& dtype,
                            double scale, std::array<double, 4> t, std::array<double, 4> d) {
    const Row a(isa, target, dtype), b(isa, draft, dtype);
    return a.passes.residual_mass(law_of(a, t[0], t[1], t[2], t[3]), law_of(b, d[0], d[1], d[2], d[3]), Residual{scale}, 0,
                                  a.size());
  });
  m.def("race", [](const std::string& isa, const py::array& array, const std::string& dtype, double scale, float cutoff,
                   int64_t seed, int64_t position, int64_t exclude) {
    const Row row(isa, array, dtype);
    Best best;
    const Stream stream(seed, position, kClock);
    row.passes.race(RaceArgs{row.info.ptr, scale, cutoff, &stream, 1, true, &exclude, exclude >= 0}, 0, row.size(), &best);
    return py::make_tuple(best.id, best.score, best.infinite);
  });
  m.def("kth_largest", [](const std::string& isa, const py::array& array, const std::string& dtype, int64_t k) {
    const Row row(isa, array, dtype);
    return kth_largest(row.passes, row.info.ptr, row.size(), k);
  });
  m.def("top_p_cutoff", [](const std::string& isa, const py::array& array, const std::string& dtype, double scale, float max,
                           double goal, double total) {
    const Row row(isa, array, dtype);
    return top_p_cutoff(row.passes, law_of(row, scale, max, -FLT_MAX, total), goal, total);
  });

  // The coupling for given laws: (bin of each token, rho of each token's bin, edges of the bins).
  m.def("coupling", [](const std::vector<double>& target, const std::vector<double>& draft, int k, int bins,
                       const std::vector<double>& places) {
    Request request;
    const double options[1] = {static_cast<double>(bins)};
    request.options = options;
    const EnumeratingExecutor::Table t{target}, d{draft};
    EnumeratingExecutor ex(request, t, d);
    const Law target_law = ex.target(0, true), draft_law = EnumeratingExecutor::law_of(d[0]);
    Coupling coupling = ex.histogram(target_law, draft_law, k);
    const double threshold = coupling.kseq_threshold();
    coupling.solve();
    std::vector<int> bin;
    std::vector<double> ratio;
    std::vector<std::array<double, 4>> exchanges;  // (v, its bin, partner, density at the partner) for each place in [0, 1]
    for (size_t i = 0; i < target.size(); ++i)
      bin.push_back(ex.bin(target_law, draft_law, coupling, i)), ratio.push_back(coupling.ratio[bin.back()]);
    for (double v : places) {
      int at = coupling.binning.count - 1;
      while (at > 0 && coupling.edge[at] <= v) --at;
      const double w = coupling.partner(v, at);
      exchanges.push_back({v, static_cast<double>(at), w, coupling.ratio[at]});
    }
    return py::make_tuple(bin, ratio, exchanges, threshold);
  });
  // Every outcome of a round with its exact probability: {(num_accepted, tokens...): probability}.
  const auto enumerate_round = [](const std::string& scheme, const std::vector<int64_t>& tokens,
                                  const std::vector<int64_t>& parents, const std::vector<std::vector<double>>& target,
                                  const std::vector<std::vector<double>>& draft, int max_depth, const std::vector<double>& options,
                                  const std::vector<int64_t>& draft_rows, bool logs) {
#define SPS_TRY(name, uses_draft_law, ...)                                                                                   \
  if (scheme == #name)                                                                                                       \
    return by_tuple(enumerate(verify_##name<EnumeratingExecutor>, tokens, parents, target, draft, max_depth, uses_draft_law, \
                              options, draft_rows, logs));
    SPS_SCHEMES(SPS_TRY)
#undef SPS_TRY
    throw std::invalid_argument("no scheme " + scheme);
  };
  m.def("enumerate", enumerate_round, py::arg("scheme"), py::arg("tokens"), py::arg("parents"), py::arg("target"), py::arg("draft"),
        py::arg("max_depth"), py::arg("options"), py::arg("draft_rows") = std::vector<int64_t>(), py::arg("logs") = false);
}

// The row passes for any machine.
#include "passes.h"
#include "isa.h"

namespace SPS_NAMESPACE {
namespace base {
#include "elements.inc"
#include "vec_base.inc"
#include "passes.inc"
}  // namespace base

const Passes kBasePasses[3] = {base::passes_of<float>("base"), base::passes_of<base::Bfloat16>("base"),
                               base::passes_of<base::Float16>("base")};
}  // namespace SPS_NAMESPACE

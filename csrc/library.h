// The library of torch ops in which the kernels are registered, torch.ops.<name>: specsample/names.py defines it, setup.py passes it.
#pragma once

#ifndef SPS_OPS
#define SPS_OPS specsample
#endif

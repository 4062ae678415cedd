// Takes the place of the CUDA sources in a build without CUDA.
#include "ops.h"

namespace bm {

std::string gpu() { return "none: built without CUDA"; }

}  // namespace bm

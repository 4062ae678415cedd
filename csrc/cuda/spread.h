// From bits to the operands of the integer matrix units. For kernels alone.
#pragma once

#include "simt/simt.h"

namespace bm::cuda {

// Four bits as four bytes 0 or 1.
SIMT_DEVICE uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

}  // namespace bm::cuda

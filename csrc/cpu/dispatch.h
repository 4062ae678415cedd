// Which kernels run: the best that this processor has, or those that BM_FAST_ISA names.
#pragma once

#include "cpu/kernels.h"

namespace bm::cpu {

const Kernels& kernels();  // chosen once; throws std::invalid_argument where BM_FAST_ISA is unknown or absent

const mean_field::Kernels& mean_field_kernels();  // those of kernels(), or faster ones beside them

}  // namespace bm::cpu

#include "cpu/kernels/isa.h"

#define BM_STRING_OF(x) #x
#define BM_STRING(x) BM_STRING_OF(x)

namespace bm::cpu::BM_ISA {

#ifdef __AVX512BW__
extern const lookup::Kernels lookup_kernels;
static const lookup::Kernels* const kLookup = &lookup_kernels;
#else
static const lookup::Kernels* const kLookup = nullptr;
#endif

extern const mean_field::Kernels mean_field_kernels;
extern const Kernels kernels;
const Kernels kernels = {BM_STRING(BM_ISA),
                         sweep,
                         draw_softmax,
                         layer_means,
                         energy,
                         gap,
                         free_energy,
                         statistics,
                         weighted_sums,
                         offset_products,
                         bernoulli,
                         largest_magnitude,
                         largest_byte,
                         quantise,
                         transpose,
                         sum_bounds,
                         &mean_field_kernels,
                         kLookup};

}  // namespace bm::cpu::BM_ISA

// Gaps of energies of states that stay where they are, as replica exchange asks for them again and again.
#pragma once

#include <vector>

#include "cuda/launch.h"

namespace bm::cuda {

class Gap {
 public:
  // States are in both forms: views as kernels read them, values as they are. All of it is needed at each launch.
  // Biases, and those of the base, are taken up now.
  Gap(const Machine& machine, const std::vector<const float*>& base /* per layer [units], or empty: none */,
      const Views& views, const std::vector<Values>& values, int32_t n_chains, const Place& place);

  void launch(double* out /* [n_chains] */) const;

 private:
  const Machine& machine_;
  bool has_base_;                       // which shares the quadratic term of Gaussian layers
  std::vector<const int64_t*> biases_;  // per layer [units], on the grid
  float* grid_;                         // [1]
  const Views& views_;
  const std::vector<Values>& values_;
  int32_t n_chains_;
  void* stream_;
  int64_t* sums_;   // [n_chains]
  void* partials_;  // of one coupling
};

}  // namespace bm::cuda

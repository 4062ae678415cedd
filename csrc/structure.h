// What fits a machine: checks of structure that come before any address is followed. They cost no pass over data.
//
// Errors are std::invalid_argument and name the argument, what was expected and what came.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace bm {

constexpr int64_t kMaxUnits = int64_t{1} << 24;
constexpr int64_t kMaxFanIn = 65536;  // beyond it, 32-bit sums of W_q could overflow
constexpr int64_t kMaxChains = int64_t{1} << 31;
constexpr int64_t kMaxSweeps = int64_t{1} << 32;  // sweeps are numbered in 32 bits
constexpr int kMaxThreads = 4096;
constexpr int kMaxFractionBits = 30;
constexpr int kMaxBiasBits = 200;
constexpr int64_t kMaxRungs = int64_t{1} << 16;

void check_range(const std::string& name, int64_t value, int64_t least, int64_t most);
void check_address(const std::string& name, const void* address);
void check_threads(int threads);
void check_ladders(int64_t n_rungs, int64_t n_chains);  // whole ladders of at least two rungs

// The layers and couplings of a machine without their numbers.
class Structure {
 public:
  Structure(const std::vector<LayerParameters>& layers, const std::vector<CouplingParameters>& couplings);

  // Every update names a layer and couplings that lead to it; no layer comes twice, or beside one it is coupled to.
  // Scales times 2^-f are finite floats.
  void check_program(const Program& program) const;

  // Nothing, or all layers of the program once each, with finite scales.
  void check_start(const std::vector<Outset>& start, const Program& program) const;

  // One array for each layer.
  void check_values(const std::vector<Values>& values) const;

  // As many addresses as layers, none of them null unless `optional`.
  template <class T>
  void check_addresses(const std::string& name, const std::vector<T*>& addresses, bool optional = false) const {
    check_range(name + ": number of addresses", static_cast<int64_t>(addresses.size()), n_layers(), n_layers());
    if (optional) return;
    for (size_t i = 0; i < addresses.size(); i++) check_address(name + "[" + std::to_string(i) + "]", addresses[i]);
  }

  // Inverse temperatures are null for 1; a base has a meaning only beside them.
  void check_tempering(const float* beta, const std::vector<const float*>& base) const;

  // An array for each layer, on a grid that leaves room for sums.
  void check_gap_biases(const GapBiases& biases) const;

  int64_t n_couplings() const { return static_cast<int64_t>(couplings_.size()); }

 private:
  int64_t n_layers() const { return static_cast<int64_t>(kinds_.size()); }

  std::vector<Kind> kinds_;
  struct Ends {
    int lower, upper, fraction_bits;
  };
  std::vector<Ends> couplings_;
};

}  // namespace bm

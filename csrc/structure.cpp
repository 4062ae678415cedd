#include "structure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace bm {
namespace {

void require(bool holds, const std::string& name, const std::string& expected) {
  if (!holds) throw std::invalid_argument(name + ": expected " + expected);
}

}  // namespace

void check_range(const std::string& name, int64_t value, int64_t least, int64_t most) {
  require(least <= value && value <= most, name,
          std::to_string(least) + " to " + std::to_string(most) + ", got " + std::to_string(value));
}

void check_address(const std::string& name, const void* address) {
  require(address != nullptr, name, "an address, got 0");
}

void check_threads(int threads) { check_range("threads", threads, 1, kMaxThreads); }

void check_ladders(int64_t n_rungs, int64_t n_chains) {
  check_range("n_rungs", n_rungs, 2, kMaxRungs);
  check_range("n_chains", n_chains, 1, kMaxChains);
  require(n_chains % n_rungs == 0, "n_chains",
          "a multiple of " + std::to_string(n_rungs) + " rungs, got " + std::to_string(n_chains));
}

Structure::Structure(const std::vector<LayerParameters>& layers, const std::vector<CouplingParameters>& couplings) {
  require(!layers.empty(), "layers", "at least one layer, got none");
  for (const LayerParameters& layer : layers) {
    const std::string name = "layer '" + layer.name + "'";
    check_range("units of " + name, layer.units, 1, kMaxUnits);
    check_range("kind of " + name, static_cast<int>(layer.kind), 0, static_cast<int>(Kind::kSoftmax));
    check_address("biases of " + name, layer.biases);
    require((layer.precisions != nullptr) == (layer.kind == Kind::kGaussian), "precisions of " + name,
            "an address for a Gaussian layer and 0 for any other");
    kinds_.push_back(layer.kind);
  }
  for (size_t i = 0; i < couplings.size(); i++) {
    const CouplingParameters& coupling = couplings[i];
    const std::string name = "coupling " + std::to_string(i);
    check_range("lower layer of " + name, coupling.lower, 0, n_layers() - 1);
    check_range("upper layer of " + name, coupling.upper, 0, n_layers() - 1);
    require(coupling.lower != coupling.upper, name, "two different layers");
    check_range("units below " + name, layers[coupling.lower].units, 1, kMaxFanIn);
    check_range("units above " + name, layers[coupling.upper].units, 1, kMaxFanIn);
    check_address("weights of " + name, coupling.values ? static_cast<const void*>(coupling.values) : coupling.weights);
    check_range("fraction bits of " + name, coupling.fraction_bits, 0, kMaxFractionBits);
    couplings_.push_back({coupling.lower, coupling.upper, coupling.fraction_bits});
  }
}

void Structure::check_program(const Program& program) const {
  std::vector<bool> updated(kinds_.size());
  for (const Block& block : program) {
    std::vector<bool> in_block(kinds_.size());
    for (const Update& update : block) {
      check_range("program: updated layer", update.layer, 0, n_layers() - 1);
      require(!updated[update.layer], "program",
              "each layer at most once, got layer " + std::to_string(update.layer) + " again");
      updated[update.layer] = in_block[update.layer] = true;
    }
    for (const Update& update : block) {
      for (const Input& input : update.inputs) {
        check_range("program: coupling", input.coupling, 0, static_cast<int64_t>(couplings_.size()) - 1);
        const auto& [lower, upper, bits] = couplings_[input.coupling];
        require((input.transposed ? lower : upper) == update.layer, "program",
                "couplings that lead to layer " + std::to_string(update.layer) + ", got coupling " +
                    std::to_string(input.coupling) + (input.transposed ? " transposed" : ""));
        require(!in_block[input.transposed ? upper : lower], "program", "layers of a block that are not coupled");
        const double scale = std::ldexp(input.scale, -bits);
        require(
            std::abs(scale) <= std::numeric_limits<float>::max(),
            "program: layer " + std::to_string(update.layer) + ", coupling " + std::to_string(input.coupling),
            "a scale that times 2^-" + std::to_string(bits) + " is a finite float, got " + std::to_string(input.scale));
      }
    }
  }
}

void Structure::check_start(const std::vector<Outset>& start, const Program& program) const {
  std::vector<bool> missing(kinds_.size());
  if (!start.empty())
    for (const Block& block : program)
      for (const Update& update : block) missing[update.layer] = true;
  for (const auto& [layer, scale] : start) {
    check_range("start: layer", layer, 0, n_layers() - 1);
    require(missing[layer], "start", "each layer of the program once, got layer " + std::to_string(layer));
    require(std::abs(scale) <= std::numeric_limits<float>::max(), "start: layer " + std::to_string(layer),
            "a scale that is a finite float, got " + std::to_string(scale));
    missing[layer] = false;
  }
  for (size_t i = 0; i < missing.size(); i++)
    require(!missing[i], "start", "each layer of the program once, got none of layer " + std::to_string(i));
}

void Structure::check_values(const std::vector<Values>& values) const {
  check_range("values: number of arrays", static_cast<int64_t>(values.size()), n_layers(), n_layers());
  for (size_t i = 0; i < values.size(); i++) {
    check_address("values[" + std::to_string(i) + "]", values[i].data);
    require(values[i].real || kinds_[i] != Kind::kGaussian, "values[" + std::to_string(i) + "]",
            "real values of a Gaussian layer");
  }
}

void Structure::check_tempering(const float* beta, const std::vector<const float*>& base) const {
  if (base.empty()) return;
  check_addresses("base", base);
  require(beta != nullptr, "beta", "an address beside a base, got 0");
}

void Structure::check_gap_biases(const GapBiases& biases) const {
  check_addresses("biases", biases.biases);
  check_range("bias_bits", biases.bits, -kMaxBiasBits, kMaxBiasBits);
}

}  // namespace bm

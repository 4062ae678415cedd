// The owner of what the CPU kernels see of a machine. Not for units that are compiled for one instruction set.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/rounding.h"
#include "cpu/weights.h"
#include "ops.h"

namespace bm::cpu {

struct LookupTables;  // of the lookup kernel, which alone knows what is in it
class Limbs;          // of mean field, likewise

}  // namespace bm::cpu

namespace bm {

class Machine {
 public:
  Machine(const std::vector<LayerParameters>& layers, const std::vector<CouplingParameters>& couplings, int threads);

  cpu::MachineView view() const { return {static_cast<int>(layers_.size()), layers_.data()}; }
  const cpu::LayerView& layer(int i) const { return layers_[i]; }
  int n_layers() const { return static_cast<int>(layers_.size()); }
  const std::string& name(int layer) const { return names_[layer]; }

  const CouplingParameters& coupling(int i) const { return couplings_[i]; }  // its weights are not kept
  int n_couplings() const { return static_cast<int>(couplings_.size()); }
  const cpu::CouplingWeights& weights(int coupling) const { return *weights_[coupling]; }

  // What sweeps may keep of a chain: for each direction of each coupling sums of rows and the states they belong to.
  int64_t kept_bytes() const { return kept_.back(); }
  int64_t kept(int coupling, bool transposed) const { return kept_[2 * coupling + transposed]; }

  // Tables of the lookup kernel: built on first use by whoever comes first, then shared.
  mutable std::once_flag lookup_once;
  mutable std::atomic<bool> has_lookup_tables{false};
  mutable std::shared_ptr<const cpu::LookupTables> lookup_tables;
  mutable std::atomic<int64_t> chain_sweeps{0};  // in which they could have served

  // Split weights for mean field, by coupling and end; those that were wanted.
  mutable std::mutex limbs_mutex;
  mutable std::vector<std::shared_ptr<const cpu::Limbs>> limbs;

 private:
  std::vector<std::string> names_;
  std::vector<cpu::LayerView> layers_;
  std::vector<CouplingParameters> couplings_;
  std::vector<std::unique_ptr<const cpu::CouplingWeights>> weights_;
  std::vector<cpu::Array<float>> floats_;
  std::vector<int64_t> kept_ = {0};  // of each direction of each coupling, and of all
};

namespace cpu {

// A program resolved against a machine. The views point into this object.
class ProgramPlan {
 public:
  ProgramPlan(const Machine& machine, const Program& program);  // weights have their sizes alone

  // Fetches the rows of weights, and marks the inputs that come from dense layers.
  void lay_out(const std::vector<bool>& is_dense, int threads);

  // After lay_out: which updates take rounded sums, where it pays.
  void round_sums(const Outlook& outlook, int threads);
  ProgramPlan(const ProgramPlan&) = delete;
  ProgramPlan& operator=(const ProgramPlan&) = delete;
  ProgramView view() const { return {static_cast<int>(updates_.size()), updates_.data()}; }

 private:
  bool take_rounding(UpdateView& update, InputView* begin, InputView* end, const Outlook& outlook, int threads) const;

  const Machine& machine_;
  std::vector<UpdateView> updates_;
  std::vector<InputView> inputs_;
};

}  // namespace cpu
}  // namespace bm

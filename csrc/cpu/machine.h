// The owner of what the CPU kernels see of a machine. Not for units that are compiled for one instruction set.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/views.h"
#include "ops.h"

namespace bm::cpu {

// Aligned to cache lines, so that rows of whole tiles never straddle one; not initialised.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t size) : data_(new (std::align_val_t{64}) T[size]), size_(size) {}
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

struct LookupTables;  // of the lookup kernel, which alone knows what is in it

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
  // Rows are units of the lower layer, or of the upper one if transposed.
  const cpu::WeightsView& weights(int coupling, bool transposed) const { return weights_[2 * coupling + transposed]; }

  // Tables of the lookup kernel: built on first use by whoever comes first, then shared.
  mutable std::once_flag lookup_once;
  mutable std::atomic<bool> has_lookup_tables{false};
  mutable std::shared_ptr<const cpu::LookupTables> lookup_tables;

 private:
  std::vector<std::string> names_;
  std::vector<cpu::LayerView> layers_;
  std::vector<CouplingParameters> couplings_;
  std::vector<cpu::WeightsView> weights_;  // [2 * couplings]
  std::vector<cpu::Array<float>> floats_;
  std::vector<cpu::Array<int16_t>> integers_;
};

namespace cpu {

// A program resolved against a machine. The views point into this object.
class ProgramPlan {
 public:
  ProgramPlan(const Machine& machine, const Program& program);
  ProgramPlan(const ProgramPlan&) = delete;
  ProgramPlan& operator=(const ProgramPlan&) = delete;
  ProgramView view() const { return {static_cast<int>(updates_.size()), updates_.data()}; }

 private:
  std::vector<UpdateView> updates_;
  std::vector<InputView> inputs_;
};

}  // namespace cpu
}  // namespace bm

// What the binding files share: addresses and plain tuples of Python as the types of ops.h.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "ops.h"
#include "structure.h"

namespace bm::binding {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> all_at(const std::vector<Address>& addresses) {
  std::vector<T*> pointers;
  for (const Address address : addresses) pointers.push_back(at<T>(address));
  return pointers;
}

using PlainInput = std::tuple<int, bool, double>;                            // coupling, transposed, scale
using PlainUpdate = std::tuple<int, std::vector<PlainInput>>;                // layer, inputs
using PlainValues = std::tuple<Address, bool>;                               // address, real
using PlainRungs = std::tuple<Address, Address, Address, Address, Address>;  // as in Rungs
using PlainLayer = std::tuple<std::string, int64_t, int, Address, Address>;  // name, units, kind, biases, precisions
using PlainCoupling = std::tuple<int, int, Address, int>;                    // lower, upper, weights, fraction bits

inline Update update_of(const PlainUpdate& plain) {
  Update update{std::get<0>(plain), {}};
  for (const auto& [coupling, transposed, scale] : std::get<1>(plain))
    update.inputs.push_back({coupling, transposed, scale});
  return update;
}

inline Block block_of(const std::vector<PlainUpdate>& plain) {
  Block block;
  for (const PlainUpdate& update : plain) block.push_back(update_of(update));
  return block;
}

inline Program program_of(const std::vector<std::vector<PlainUpdate>>& plain) {
  Program program;
  for (const auto& block : plain) program.push_back(block_of(block));
  return program;
}

inline Values values_of(const PlainValues& plain) { return {at<const void>(std::get<0>(plain)), std::get<1>(plain)}; }

inline std::vector<Values> values_of(const std::vector<PlainValues>& plain) {
  std::vector<Values> values;
  for (const PlainValues& v : plain) values.push_back(values_of(v));
  return values;
}

inline Rungs rungs_of(const PlainRungs& plain) {
  const auto [rungs, attempts, acceptances, heading, trips] = plain;
  for (const auto& [name, address] : {std::pair<const char*, Address>{"rungs", rungs},
                                      {"attempts", attempts},
                                      {"acceptances", acceptances},
                                      {"heading", heading},
                                      {"trips", trips}})
    check_address(name, at<const void>(address));
  return {at<int32_t>(rungs), at<int64_t>(attempts), at<double>(acceptances), at<uint8_t>(heading), at<int64_t>(trips)};
}

inline std::vector<LayerParameters> layers_of(const std::vector<PlainLayer>& plain) {
  std::vector<LayerParameters> layers;
  for (const auto& [name, units, kind, biases, precisions] : plain)
    layers.push_back({name, units, static_cast<Kind>(kind), at<const float>(biases), at<const float>(precisions)});
  return layers;
}

inline std::vector<CouplingParameters> couplings_of(const std::vector<PlainCoupling>& plain) {
  std::vector<CouplingParameters> couplings;
  for (const auto& [lower, upper, weights, bits] : plain)
    couplings.push_back({lower, upper, at<const int16_t>(weights), bits});
  return couplings;
}

// A signal handler that raised, Ctrl-C above all, and with what.
class Interruption {
 public:
  bool has_come() const { return error_ != nullptr; }

  // Without the GIL: runs the handlers of pending signals; whether one has raised, now or before.
  bool ask() {
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) {
      try {
        throw pybind11::error_already_set();
      } catch (...) {  // or std::bad_alloc: none may leave the kernel's threads
        error_ = std::current_exception();
      }
    }
    return has_come();
  }

  void raise() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::exception_ptr error_;
};

// Runs long work, `work(interrupted)`, without the GIL; what a signal handler raises ends it and leaves this function.
template <class Work>
void run_interruptible(const Work& work) {
  Interruption interruption;
  {
    const pybind11::gil_scoped_release release;
    work([&] { return interruption.ask(); });
  }
  interruption.raise();
}

// The same of `work(progress, interrupted)`. Sweeps done are written to an address and then told to Python.
template <class Work>
void run_interruptible(Address sweeps_done, const pybind11::function& progress, const Work& work) {
  Interruption interruption;
  {
    const pybind11::gil_scoped_release release;
    work(
        [&](int64_t done) {
          *at<int64_t>(sweeps_done) = done;  // first: Python may raise a pending signal before `progress` begins
          if (interruption.has_come()) return;
          const pybind11::gil_scoped_acquire acquire;
          progress(done);
        },
        [&] { return interruption.ask(); });
  }
  interruption.raise();
}

}  // namespace bm::binding

#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "ops.h"

namespace bm::cpu {

namespace base {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace vnni {
extern const mean_field::Kernels mean_field_kernels;
}
#endif

namespace {

struct Level {
  const Kernels& kernels;
  bool (*usable)();
};

// Every flag that CMakeLists.txt compiles a level with is asked for here.
const Level kLevels[] = {
    {base::kernels, [] { return true; }},
#if defined(__x86_64__)
    {avx2::kernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
     }},
    {avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
     }},
#endif
};

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels& choose() {
  const char* wanted = std::getenv("BM_FAST_ISA");
  const Kernels* best = nullptr;
  for (const Level& level : kLevels) {
    if (wanted && std::string(wanted) == level.kernels.isa && !level.usable())
      throw std::invalid_argument("BM_FAST_ISA: this processor lacks '" + std::string(wanted) + "'; it has " +
                                  join(usable_isas()));
    if (level.usable() && (!wanted || std::string(wanted) == level.kernels.isa)) best = &level.kernels;
  }
  if (!best)
    throw std::invalid_argument("BM_FAST_ISA: expected one of " + join(compiled_isas()) + ", got '" +
                                std::string(wanted) + "'");
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const mean_field::Kernels& mean_field_kernels() {
#if defined(__x86_64__)
  // an extension that most processors with AVX-512 have: no level of its own, since it serves this alone
  if (&kernels() == &avx512::kernels && __builtin_cpu_supports("avx512vnni")) return vnni::mean_field_kernels;
#endif
  return *kernels().mean_field;
}

}  // namespace bm::cpu

namespace bm {

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const cpu::Level& level : cpu::kLevels) names.push_back(level.kernels.isa);
  return names;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const cpu::Level& level : cpu::kLevels)
    if (level.usable()) names.push_back(level.kernels.isa);
  return names;
}

std::string isa() { return cpu::kernels().isa; }

}  // namespace bm

#include "operations.h"

#include <map>

#include "arrays.h"
#include "cuda/pack.h"

namespace {

void quantise(Reader& in, Writer& out) {
  const auto lower = static_cast<int32_t>(in.one()), upper = static_cast<int32_t>(in.one());
  Buffer<float> weights(in.many<float>(int64_t{lower} * upper));
  Buffer<int16_t> integers(in.many<int16_t>(int64_t{lower} * upper));
  Buffer<float> grid(1);
  Buffer<uint32_t> refused(1), partials(bm::cuda::kGridPartials);
  bm::cuda::choose_grid(grid.data(), refused.data(), partials.data(), weights.data(), int64_t{lower} * upper, nullptr);
  out.add(grid.read());
  out.add(refused.read());
  for (const bool transposed : {false, true}) {
    const int64_t bytes = transposed ? bm::cuda::weight_bytes(upper, lower) : bm::cuda::weight_bytes(lower, upper);
    Buffer<unsigned char> from_reals(bytes), from_integers(bytes);
    bm::cuda::quantise_weights(from_reals.data(), weights.data(), grid.data(), lower, upper, transposed, nullptr);
    bm::cuda::arrange_weights(from_integers.data(), integers.data(), lower, upper, transposed, nullptr);
    out.add(std::vector<uint8_t>{from_reals.read() == from_integers.read()});
  }
}

}  // namespace

bool run_operation(const std::string& name, const char* from, const char* to) {
  const std::map<std::string, void (*)(Reader&, Writer&)> operations = {
      {"quantise", quantise}, {"real_sweep", real_sweep}, {"mean_field", mean_field}};
  const auto operation = operations.find(name);
  if (operation == operations.end()) return false;
  Reader in(from);
  Writer out(to);
  operation->second(in, out);
  return true;
}

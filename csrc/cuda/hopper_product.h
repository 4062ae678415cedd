// The products of a warpgroup and what is drawn from them, shared by the kernels for compute capability 9.0.
//
// A warpgroup makes 64 chains times up to 8 octets of units, with one set of sums for each limb in registers. States
// are operand A: a lane turns the bits of its two chains into bytes with five instructions for each chain and step. A
// lane's sums are two units of each octet for two chains; lanes exchange half of them, so that each gets four units in
// a row of one chain: those that share one call of Philox.
#pragma once

#include "cuda/hopper_layout.h"
#include "simt/hopper.h"

namespace bm::cuda::hopper {

constexpr int kWarpgroup = 128, kGroupChains = 64, kMostOctets = 8;

// Of up to 8 octets: [4 octet + i] is unit 2 t + i % 2 of the octet for the chain 8 (i / 2) after the first.
using Sums = int32_t[4 * kMostOctets];

// The whole sum; of octets that a product leaves out both limbs may be anything, so it may wrap.
SIMT_DEVICE int32_t joined(int32_t high, int32_t low) {
  return static_cast<int32_t>(static_cast<uint32_t>(high) * 256 + static_cast<uint32_t>(low));
}

SIMT_DEVICE int lane() { return static_cast<int>(simt::thread_x() % 32); }

// Of the 64 chains of a warpgroup: the first one whose bits the lane turns into bytes (the other is 8 further), and the
// one whose units it draws.
SIMT_DEVICE int row_of_bits() { return static_cast<int>(simt::thread_x() / 32 % 4) * 16 + lane() / 4; }
SIMT_DEVICE int row_of_draws() { return row_of_bits() + lane() % 2 * 8; }

// Operand A of a step from the words of both chains.
SIMT_DEVICE void spread(uint32_t (&a)[4], uint32_t word, uint32_t word8) {
  word >>= lane() % 4 * 2;
  word8 >>= lane() % 4 * 2;
  a[0] = word & 0x01010101u;
  a[1] = word8 & 0x01010101u;
  a[2] = word >> 1 & 0x01010101u;
  a[3] = word8 >> 1 & 0x01010101u;
}

// Units 8 octet to 8 octet + 7 of both chains of a lane, as the product leaves them, to four of one chain.
SIMT_DEVICE void exchange(float (&fields)[4]) {
  const bool odd = lane() % 2;
  const uint32_t sent[2] = {units::bits_of(odd ? fields[0] : fields[2]), units::bits_of(odd ? fields[1] : fields[3])};
  const float got[2] = {units::float_of(simt::shuffle_xor(sent[0], 1)), units::float_of(simt::shuffle_xor(sent[1], 1))};
  if (odd) {
    fields[0] = got[0];
    fields[1] = got[1];
  } else {
    fields[2] = got[0];
    fields[3] = got[1];
  }
}

// What is drawn for one chain.
struct Drawing {
  uint64_t seed;
  uint32_t chain_number, sweep, layer_and_purpose;  // of the random counter
  bool chain_exists, has_beta;
  float beta;
  const float* base;  // or null
  float* means;       // of the chain, or null
  int32_t units;
};

// Four bits for the units from `unit` on. Bits of `held` keep those of `old`.
SIMT_DEVICE uint32_t draw(const Drawing& d, int unit, const float (&fields)[4], uint32_t held, uint32_t old) {
  uint32_t random[4] = {static_cast<uint32_t>(unit) / 4, d.chain_number, d.sweep, d.layer_and_purpose};
  units::philox(random[0], random[1], random[2], random[3], d.seed);
  uint32_t drawn = 0;
  SIMT_UNROLL
  for (int j = 0; j < 4; j++) {
    if (!d.chain_exists || unit + j >= d.units) continue;
    float x = fields[j];
    if (d.base)
      x = units::fma(d.beta, x, (1.f - d.beta) * d.base[unit + j]);
    else if (d.has_beta)
      x = d.beta * x;
    drawn |= static_cast<uint32_t>(units::decide(x, random[j])) << j;
    if (d.means) d.means[unit + j] = held >> j & 1 ? static_cast<float>(old >> j & 1) : units::logistic(x);
  }
  return (drawn & ~held) | (old & held);
}

}  // namespace bm::cuda::hopper

// The products of a warpgroup and what is drawn from them, shared by the kernels for compute capability 9.0.
//
// A warpgroup makes 64 chains times up to 8 octets of units, with one set of sums for each limb in registers. States
// are operand A: a lane turns the bits of its two chains into bytes with five instructions for each chain and step. A
// lane's sums are two units of each octet for two chains; lanes exchange half of them, so that each gets four units in
// a row of one chain: those that share one call of Philox.
#pragma once

#include "cuda/hopper.h"
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

// The products of a group of chains with up to 2 kTiles octets of units, whose weights lie in shared memory, step by
// step, `octets_there` of them beside each other. load(word, word8, step): the words of both chains of the lane.
template <int kTiles, class Load>
SIMT_DEVICE void multiply_octets(const Load& load, const unsigned char* weights, int n_steps, int octets_there,
                                 Sums& high, Sums& low) {
  uint32_t a[2][4];
  const auto step = [&](int i, uint32_t (&bytes)[4]) {
    uint32_t word, word8;
    load(word, word8, i);
    spread(bytes, word, word8);
    const unsigned char* of_step = weights + i * 2 * octets_there * kOctetBytes;
    simt::multiply_begin();
    simt::multiply<16 * kTiles>(high, bytes, simt::operand(of_step, kCellBytes, kOctetBytes), i > 0);
    of_step += octets_there * kOctetBytes;
    simt::multiply<16 * kTiles>(low, bytes, simt::operand(of_step, kCellBytes, kOctetBytes), i > 0);
    simt::multiply_commit();
    simt::multiply_wait<1>();  // the products of the step before have read the registers that are written next
  };
  int i = 0;
  for (; i + 1 < n_steps; i += 2) {
    step(i, a[0]);
    step(i + 1, a[1]);
  }
  if (i < n_steps) step(i, a[0]);
  simt::multiply_wait<0>();
}

// The same of `n` octets, of which there may be up to 8. Only this is compiled for each size: with all that follows
// from the sums they would not fit the registers.
template <class Load>
SIMT_DEVICE void multiply_octets(int n, const Load& load, const unsigned char* weights, int n_steps, int octets_there,
                                 Sums& high, Sums& low) {
  switch ((n + 1) / 2) {
    case 1:
      multiply_octets<1>(load, weights, n_steps, octets_there, high, low);
      break;
    case 2:
      multiply_octets<2>(load, weights, n_steps, octets_there, high, low);
      break;
    case 3:
      multiply_octets<3>(load, weights, n_steps, octets_there, high, low);
      break;
    default:
      multiply_octets<4>(load, weights, n_steps, octets_there, high, low);
  }
  simt::settle(high);
  simt::settle(low);
}

// Fields of 8 octets, as Sums has them.
using OctetFields = float[4 * kMostOctets];

SIMT_DEVICE void add_input(OctetFields& fields, const Sums& high, const Sums& low, float scale) {
  SIMT_UNROLL
  for (int i = 0; i < 4 * kMostOctets; i++)
    fields[i] = units::fma(static_cast<float>(joined(high[i], low[i])), scale, fields[i]);
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
  int32_t units;      // none from here on is drawn
};

SIMT_DEVICE Drawing drawing_of(const Sweeps& s, const SweptLayer& layer, int64_t chain, uint32_t sweep, bool is_last) {
  const bool exists = chain < s.n_chains;
  return {s.seed,
          s.first_chain + static_cast<uint32_t>(chain),
          sweep,
          layer.layer_and_purpose,
          exists,
          s.beta != nullptr,
          s.beta && exists ? s.beta[chain] : 1.f,
          layer.base,
          layer.means && is_last ? layer.means + chain * layer.units : nullptr,
          layer.units};
}

// Four bits for the units from `unit` on. Bits of `held` keep those of `old`.
SIMT_DEVICE uint32_t draw(const Drawing& d, int unit, const float (&fields)[4], uint32_t held, uint32_t old) {
  if (unit >= d.units) return 0;
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

// The four octets of a chain that one word of bits has.
struct Held {
  uint32_t held, old;  // which units keep their value, and the values
};

// Draws octets `first` to `first + 7` of both chains of a row of lanes from their fields. Lanes t and t ^ 2 share the
// chain; each gets four of the octets, those from first + t / 2 * 4 on. held(i): what is held of octets first + 4 i on.
template <class HeldOf>
SIMT_DEVICE uint32_t draw_octets(const Drawing& drawing, int first, const OctetFields& fields, const HeldOf& held) {
  const int t = lane() % 4, shift = t / 2 * 4;
  uint32_t kept = 0;
  SIMT_UNROLL
  for (int quad = 0; quad < kMostOctets / 4; quad++) {
    const Held h = held(quad);
    uint32_t word = 0;
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
      simt::keep_order();  // one octet after the other: together they would need too many registers
      const int n = quad * 4 + i, bit = i * 8 + shift;
      float four[4] = {fields[4 * n], fields[4 * n + 1], fields[4 * n + 2], fields[4 * n + 3]};
      exchange(four);
      word |= draw(drawing, (first + n) * 8 + t / 2 * 4, four, h.held >> bit & 15, h.old >> bit & 15) << bit;
    }
    word |= simt::shuffle_xor(word, 2);
    if (quad == t / 2) kept = word;
  }
  simt::sync_warp();  // both lanes of a word have read what it held
  return kept;
}

}  // namespace bm::cuda::hopper

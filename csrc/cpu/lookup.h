// Block Gibbs by table lookup: the fastest exact route to the fields of binary layers where AVX-512 BW is at hand.
//
// Five input units of a chain form an index into the 32 sums of subsets of their weights, and one instruction looks up
// 32 chains. That replaces 160 multiply-adds, at the price of tables 25 times the size of the weights, built once per
// machine. Same integers as every other kernel, so the same bits. docs/kernels.md has the arithmetic.
#pragma once

#include "cpu/machine.h"

namespace bm::cpu {

// Whether the kernel can run this program: the instruction set has it, layers are binary, and not too many couplings
// lead to one of them.
bool lookup_suits(const Machine& machine, const ProgramView& program);

// Builds the tables of a machine unless they are there; lookup_sweep would, but on one thread.
void lookup_prepare(const Machine& machine, int threads);

// Runs sweep.n_sweeps sweeps of the chains first_chain .. first_chain + n_chains in place; false where it gave up
// because `stop` was requested, with the states then undefined.
bool lookup_sweep(const Machine& machine, const ProgramView& program, const SweepView& sweep, int64_t first_chain,
                  int64_t n_chains, StopView stop);

}  // namespace bm::cpu

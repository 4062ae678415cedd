// Block Gibbs by table lookup: the fastest route to the fields of binary layers of many chains where AVX-512 BW is at
// hand.
//
// Some input units of a chain form an index into the sums of subsets of their weights, and one instruction looks up 32
// chains. For few chains whose sums have to be exact the tables of four units are made in registers whenever they are
// wanted. For many, tables of five units replace 160 multiply-adds by two instructions, at the price of memory 19 times
// the size of the weights, built once per machine. Same integers as every other kernel, so the same bits.
// docs/kernels.md has the arithmetic.
#pragma once

#include "cpu/machine.h"

namespace bm::cpu {

// Whether the kernel can run this program: the instruction set has it, no layer is real, and not too many couplings
// lead to one of them.
bool lookup_suits(const Machine& machine, const ProgramView& program);

// Bytes that the tables of a machine take, built or not.
int64_t lookup_bytes(const Machine& machine);

// Builds the tables of a machine unless they are there; false where memory does not suffice.
bool lookup_prepare(const Machine& machine, int threads);

// Where the tables of sums are.
enum class LookupTablesIn { kRegisters, kMachine };

// One thread's chains in the layout of the kernel.
class LookupPart;

// For the chains first_chain .. first_chain + n_chains of a call, after lookup_prepare where tables are the machine's.
// All memory is taken here, so that lookup_sweep can run where no exception may leave. `sweep` must outlive the part;
// its round may change.
std::shared_ptr<LookupPart> lookup_part(const Machine& machine, const ProgramView& program, const SweepView& sweep,
                                        int64_t first_chain, int64_t n_chains, LookupTablesIn tables, int threads);

// Takes up the states of these chains.
void lookup_pack(LookupPart& part);

// Runs sweep.n_sweeps sweeps of these chains on the states taken up; false where it gave up because `stop` was
// requested, with these states then undefined. Where sweep.gap is set, `gaps` [n_chains of the call] receives the
// chains' energy gaps. Every layer must then be updated, by all of its couplings.
bool lookup_sweep(LookupPart& part, const ProgramView& program, double* gaps, StopView stop) noexcept;

// Writes the states of updated layers to sweep.states.
void lookup_unpack(const LookupPart& part, const ProgramView& program);

}  // namespace bm::cpu

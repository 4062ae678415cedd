// The kernels of the instruction set that this unit is compiled for; table.cpp collects them.
#pragma once

#include "cpu/kernels/draw.h"

namespace bm::cpu::BM_ISA {

bool sweep(MachineView machine, ProgramView program, const SweepView& what, const ValuesView* values, int64_t first,
           int64_t n, Scratch scratch, StopView stop);
int32_t draw_softmax(float* means, const float* x, int32_t units, const uint8_t* held, uint32_t word);
void layer_means(float* out, MachineView machine, UpdateView update, const ValuesView* values, TemperView how,
                 int64_t first, int64_t n, Scratch scratch);
void energy(double* out, MachineView machine, ProgramView upward, const ValuesView* values, int64_t first, int64_t n,
            Scratch scratch);
void gap(double* out, MachineView machine, ProgramView upward, const GapView& biases, const ValuesView* values,
         const int64_t* interactions, int64_t first, int64_t n, Scratch scratch);
void free_energy(double* out, MachineView machine, ProgramView summed, const bool* is_summed, const ValuesView* values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const float* const* base, int64_t first,
                 int64_t n, Scratch scratch);
void statistics(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper, int64_t n_chains,
                int64_t first, int64_t n, const WeightingView& weighting, StatisticsScratch& scratch);
void weighted_sums(float* out, const float* factors, int n_sums, ValuesView values, int64_t units, int64_t n_chains,
                   int64_t first, int64_t n);
void offset_products(float* out, ValuesView values, int64_t units, const float* offsets, int64_t n_chains);
void bernoulli(uint8_t* out, const float* probabilities, const int64_t* rows, int64_t units, uint64_t seed,
               uint32_t sweep, uint32_t layer_and_purpose, int64_t first, int64_t n);
uint32_t largest_magnitude(const float* values, int64_t n);
void quantise(int16_t* out, const float* values, int64_t n, float scale);
void transpose(int16_t* to, int64_t to_stride, const int16_t* from, int64_t from_stride, int64_t n_rows,
               int64_t n_columns);
SumBounds sum_bounds(WeightsView weights);
uint8_t largest_byte(const uint8_t* bytes, int64_t n);

}  // namespace bm::cpu::BM_ISA

"""Models, estimates and training on a GPU, emulated and real, beside those of the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import enumeration
from bm_fast import RBM, Chains, Machine, chain_graph
from bm_fast.estimation import (
    adaptive_betas,
    ais,
    base_biases,
    exact_log_z,
    log_likelihood,
    mean_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.ops import cuda, native
from bm_fast.parameters import Parameters
from bm_fast.program import gibbs_program
from bm_fast.training import CD, PCD, Trainer
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper
from enumeration import DRIFT_BOUND, GRAPHS, enumerate_machine, variation_ratio

__all__ = ["emulation", "gpu"]  # fixtures


# --- models and estimates ---------------------------------------------------------------------------------------------


def estimates(device: torch.device) -> list[Tensor]:
    rbm = RBM(20, 9, seed=3, weight_scale=0.3).to(device)
    data = (torch.rand(30, 20, generator=torch.Generator().manual_seed(3)) < 0.4).to(torch.uint8)
    rbm.initialise_biases(data.numpy())
    v, clamp = data.to(device), np.arange(20, dtype=np.uint8) % 2
    chains = rbm.sample(rbm.chains(30, 5, visible=v), 3, beta=0.7, clamp=clamp)
    log_z = exact_log_z(rbm)
    annealed = ais(rbm, n_runs=20, betas=30, base=base_biases(rbm, v), seed=2)
    adapted = adaptive_betas(rbm, drop=0.1, n_runs=10)
    return [
        *chains.layers,
        rbm.hidden_means(v),
        torch.from_numpy(rbm.hidden_means(data.numpy())),
        torch.tensor([log_z, mean_log_likelihood(rbm, data.numpy(), annealed).mean], dtype=torch.float64),
        annealed.log_weights,
        adapted.double(),
        log_likelihood(rbm, v, log_z),
        pseudo_log_likelihood(rbm, v),
        pseudo_log_likelihood(rbm, v, method="stochastic"),
    ]


def test_models_and_estimates_are_those_of_the_processor(gpu: Gpu) -> None:
    wanted = estimates(torch.device("cpu"))
    with gpu as device:
        got = estimates(device)
    for a, b in zip(got, wanted, strict=True):
        tolerance = (
            1e-7 if b.dtype is torch.float64 else 0
        )  # weights of annealing are rounded elsewhere (docs/numbers.md)
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance)


def test_reconstructions_agree_with_the_processor(gpu: Gpu) -> None:
    data = (torch.rand(30, 20, generator=torch.Generator().manual_seed(3)) < 0.4).to(torch.uint8)
    rbm = RBM(20, 9, seed=3, weight_scale=0.3)
    wanted, errors = rbm.reconstruct(data), reconstruction_error(rbm, data)
    with gpu as device:
        there = rbm.to(device)
        torch.testing.assert_close(there.reconstruct(data.to(device)).cpu(), wanted, rtol=0, atol=4e-6)
        torch.testing.assert_close(reconstruction_error(there, data.to(device)).cpu(), errors, rtol=0, atol=1e-5)


def trained(device: torch.device, estimator: PCD | CD) -> list[Tensor]:
    rbm = RBM(20, 9, seed=3, weight_scale=0.3).to(device)
    grey = torch.rand(50, 20, generator=torch.Generator().manual_seed(3)).to(device)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05, momentum=0.5)
    trainer = Trainer(rbm, optimizer, estimator, batch_size=20, seed=4)
    trainer.fit(grey, epochs=2, validation=grey[:10])
    return [*(parameter.detach() for parameter in rbm.parameters()), *trainer.chains.layers]


@with_hopper
@pytest.mark.parametrize("estimator", [PCD(n_chains=7, sweeps=2), CD()], ids=["PCD", "CD"])
def test_training_agrees_with_the_processor(gpu: Gpu, estimator: PCD | CD) -> None:
    """torch may add in another order on a GPU, which has not changed a unit of these chains."""
    wanted = trained(torch.device("cpu"), estimator)
    with gpu as device:
        got = trained(device, estimator)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6)


# --- what a recorded update of training is made of --------------------------------------------------------------------


@with_hopper
def test_weights_are_put_on_their_grid_where_they_are(gpu: Gpu) -> None:
    """A module's machine over real weights, refreshed after they change, whose sweeps are counted on the device."""
    graph, n_chains, seed = chain_graph((131, 67)), 9, 5
    g = torch.Generator().manual_seed(3)
    weights = [scale * torch.randn(131, 67, generator=g) for scale in (0.01, 0.4)]
    biases = [torch.randn(layer.units, generator=g) for layer in graph.layers]
    with gpu as device:
        weight, grid = weights[0].to(device), torch.zeros(1, device=device)
        held = [bias.to(device) for bias in biases]
        counter, refused = torch.zeros(2, 1, dtype=torch.int32, device=device).unbind()
        module, memory, done = cuda.module(device), cuda.Memory(device), torch.zeros(1, dtype=torch.int64)
        layers = [(f"{i}", len(bias), 0, bias.data_ptr(), 0) for i, bias in enumerate(held)]
        with cuda.place(device, memory) as here:
            machine = module.Machine(layers, [(0, 1, weight.data_ptr(), True, grid.data_ptr())], here)
            weight.copy_(weights[1])
            machine.refresh(refused.data_ptr(), here)
            states = [torch.ones(n_chains, len(bias), dtype=torch.uint8, device=device) for bias in held]
            for _ in range(2):
                program = native.plain(gibbs_program(graph))
                addresses = native.addresses(states)
                machine.sweep(
                    *(program, addresses, n_chains, 3, seed, 0, 7, 0, [], [0, 0], [0, 0]),
                    *(counter.data_ptr(), here, done.data_ptr(), lambda done: None),
                )
                module.advance(counter.data_ptr(), 3, here)
        got = [state.cpu() for state in states]
        assert int(refused) == 0
        weight[3, 4] = float("nan")
        with cuda.place(device) as here:
            machine.refresh(refused.data_ptr(), here)
        assert int(refused) == 1
    machine_here = Machine.build(graph, weights[1:], biases)
    wanted = machine_here.chains(n_chains, seed)
    wanted.sweep = 7
    for layer in wanted.layers:
        layer.fill_(1)
    machine_here.sweep(gibbs_program(graph), wanted, 6)
    assert_same(got, list(wanted.layers))


# --- the right distribution, on a GPU alone: emulated, the bits are the processor's -----------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_chains_at_their_distribution_stay_there_on_a_gpu(name: str) -> None:
    """As in test_no_drift.py, where the bound is explained."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    here = enumeration.machine(GRAPHS[name])
    truth = enumerate_machine(here)
    chains = Chains(tuple(layer.cuda() for layer in truth.draw(40_000, torch.Generator().manual_seed(1))), seed=7)
    held = here.parameters
    weights, biases = (tuple(t.cuda() for t in tensors) for tensors in (held.weights, held.biases))
    there = Machine(Parameters(held.graph, weights, held.fraction_bits, biases, held.precisions))
    for n_sweeps in (1, 1, 6):
        there.sweep(gibbs_program(here.graph), chains, n_sweeps)
        assert variation_ratio(truth.p, truth.numbers([layer.cpu() for layer in chains.layers])) < DRIFT_BOUND

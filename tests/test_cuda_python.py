"""Operations on tensors of a GPU: with the kernels emulated on the host, and on a GPU where there is one.

Emulated, the compiled module and all of Python's part are those of a GPU, but tensors lie on the processor.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import enumeration
from bm_fast import RBM, Chains, Graph, Kind, Layer, Machine, chain_graph, ops
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
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from bm_fast.training import CD, PCD, Trainer, captured
from cuda_runner import emulated_module
from engine_cases import make_machine, run, tree
from enumeration import BINARY, DRIFT_BOUND, enumerate_machine, variation_ratio


class Gpu:
    """Where a test runs: inside the context, tensors on ``device`` are served by the kernels for GPUs."""

    def __init__(
        self, device: str, module: ModuleType | None = None, capability: int = 0, *, cooperative: bool = True
    ) -> None:
        self.device = torch.device(device)
        self._module, self._patch = module, pytest.MonkeyPatch()
        self._emulated = {"SIMT_COMPUTE_CAPABILITY": str(capability), "SIMT_COOPERATIVE": str(int(cooperative))}

    def __enter__(self) -> torch.device:
        if self._module is not None:
            self._patch.setattr(cuda, "serves", lambda device: device == self.device)
            self._patch.setattr(cuda, "module", lambda device: self._module)
            self._patch.setattr(cuda, "stream", lambda device: 0)
            self._patch.setattr(captured, "record", lambda work, device: work)
            for name, value in self._emulated.items():
                self._patch.setenv(name, value)
        return self.device

    def __exit__(self, *error: object) -> None:
        self._patch.undo()


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The compiled module for GPUs with the kernels emulated."""
    path = emulated_module(tmp_path_factory.mktemp("module"))
    spec = importlib.util.spec_from_file_location("emulated._cuda", path)  # a name apart from the package's own
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMULATED = {"emulated": 80, "emulated hopper": 90}
with_hopper = pytest.mark.parametrize("gpu", [*EMULATED, "device"], indirect=True)
"""For tests that the kernels for compute capability 9.0 have a part in; one of them is slow where it is emulated."""


@pytest.fixture(params=["emulated", "device"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    if request.param in EMULATED:
        return Gpu("cpu", request.getfixturevalue("emulation"), EMULATED[request.param])
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    if ops.info()["gpu"].startswith("none"):
        pytest.skip(f"GPU {ops.info()['gpu']}")
    return Gpu("cuda:0")


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    """States and means are equal, and energies within the tolerances of docs/numbers.md."""
    assert [t.shape for t in got] == [t.shape for t in wanted]
    for a, b in zip(got, wanted, strict=True):
        there = a.cpu()
        if a.dtype is torch.float64:
            torch.testing.assert_close(there, b, rtol=1e-12 if a.dim() == 1 else 1e-9, atol=1e-9)
        else:
            assert torch.equal(there, b), f"{int((there != b).sum())} of {a.numel()} values of {list(a.shape)} differ"


# --- the same bits as the processor's --------------------------------------------------------------------------------

SCALED: Program = ((Update(1, (Input(0, False, 2.0),)),), (Update(0, (Input(0, True, 0.3),)),))

Case = Callable[[torch.device], list[Tensor]]
CASES: dict[str, Case] = {
    "rbm": lambda device: run(make_machine(chain_graph((131, 67)), device=device), 70, 3),
    "one unit": lambda device: run(make_machine(chain_graph((1, 1)), device=device), 1, 3),
    "options": lambda device: run(make_machine(tree(), device=device), 13, 2, options="base clamp"),
    "beta": lambda device: run(make_machine(chain_graph((40, 33, 17)), device=device), 11, 3, options="beta"),
    "scaled inputs": lambda device: run(make_machine(chain_graph((131, 67)), device=device), 9, 3, program=SCALED),
    "clamped layer": lambda device: run(
        make_machine(chain_graph((131, 67)), device=device), 9, 2, program=gibbs_program(chain_graph((2, 2)), (0,))
    ),
    "no couplings": lambda device: run(make_machine(Graph((Layer("alone", 70),), ()), device=device), 9, 2),
    "no sweeps": lambda device: run(make_machine(chain_graph((9, 7)), device=device), 3, 0),
    # from 256 chains on
    "many chains": lambda device: run(make_machine(chain_graph((70, 66, 65)), device=device), 257, 2, options="beta"),
    "many chains, a small layer": lambda device: run(make_machine(chain_graph((70, 9, 65)), device=device), 256, 2),
    "many chains, no couplings": lambda device: run(make_machine(Graph((Layer("a", 70),), ()), device=device), 256, 2),
    "many chains, options": lambda device: run(
        make_machine(chain_graph((64, 65, 4)), device=device), 256, 2, options="base clamp"
    ),
}


@with_hopper
@pytest.mark.parametrize("name", CASES)
def test_sweeps_have_the_bits_of_the_processor(gpu: Gpu, name: str) -> None:
    """First states, states after some sweeps, their means and energies."""
    wanted = CASES[name](torch.device("cpu"))
    with gpu as device:
        assert_same(CASES[name](device), wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("many chains")])
def test_streamed_sweeps_have_the_bits_of_the_processor(emulation: ModuleType, name: str) -> None:
    """On a device that does not promise to run blocks at the same time."""
    wanted = CASES[name](torch.device("cpu"))
    with Gpu("cpu", emulation, 90, cooperative=False) as device:
        assert_same(CASES[name](device), wanted)


@pytest.mark.parametrize(
    ("units", "n_chains", "cooperative", "reads_hopper"),
    [
        ((13, 7), 3, False, True),
        ((70, 66, 65), 3, True, True),
        ((70, 66, 65), 256, False, True),
        ((70, 66, 65), 255, False, False),
    ],
    ids=["resident", "persistent", "streamed", "few chains"],
)
def test_only_weights_of_the_chosen_kernel_are_read(
    emulation: ModuleType, units: tuple[int, ...], n_chains: int, cooperative: bool, reads_hopper: bool
) -> None:
    wanted = run(make_machine(chain_graph(units)), n_chains, 2)[: len(units)]
    with Gpu("cpu", emulation, 90, cooperative=cooperative) as device:
        machine = make_machine(chain_graph(units), device=device)
        held = machine._impl._memory._held  # type: ignore[attr-defined]
        portable, hopper = held[::2], held[1::2]
        assert len(portable) == len(hopper) == 2 * (len(units) - 1)
        for weights in portable if reads_hopper else hopper:
            weights.zero_()
        assert_same(run(machine, n_chains, 2)[: len(units)], wanted)


def test_sweeps_may_be_split_over_calls_and_chains(gpu: Gpu) -> None:
    wanted = run(make_machine(tree()), 13, 4)[: len(tree().layers)]
    with gpu as device:
        machine = make_machine(tree(), device=device)
        chains = machine.chains(13, seed=2**63 + 12345, first_chain=77)
        machine.sweep(gibbs_program(tree()), chains, 1)
        for part in (chains.select(0, 5), chains.select(5, 13)):
            machine.sweep(gibbs_program(tree()), part, 1)
            machine.sweep(gibbs_program(tree()), part, 2)
            assert part.sweep == 4
        assert_same(list(chains.layers), wanted)


def means_and_free_energies(machine: Machine, options: str) -> list[Tensor]:
    g, device = torch.Generator().manual_seed(3), machine.device
    layers = machine.graph.layers
    states = [(torch.rand(9, layer.units, generator=g) < 0.4).to(torch.uint8).to(device) for layer in layers]
    base = [torch.randn(layer.units, generator=g).to(device) for layer in layers] if "base" in options else None
    beta = torch.rand(9, generator=g).to(device) if options else None
    betas = torch.tensor([0.0, 0.3, 1.0]).to(device)
    colour = machine.graph.colours()[1]
    updates = [full_update(machine.graph, layer) for layer in colour]
    return [
        *(machine.layer_means(full_update(machine.graph, i), states, beta=beta, base=base) for i in range(len(layers))),
        machine.energy(states),
        machine.free_energy(updates, states, betas=betas, base=base),
        machine.free_energy(updates, states),
    ]


@pytest.mark.parametrize("options", ["", "beta", "base"])
@pytest.mark.parametrize("graph", [chain_graph((131, 67)), tree()], ids=["rbm", "tree"])
def test_means_and_free_energies_are_those_of_the_processor(gpu: Gpu, graph: Graph, options: str) -> None:
    wanted = means_and_free_energies(make_machine(graph), options)
    with gpu as device:
        assert_same(means_and_free_energies(make_machine(graph, device=device), options), wanted)


@pytest.mark.parametrize("units", [1, 3, 130])
def test_draws_have_the_bits_of_the_processor(gpu: Gpu, units: int) -> None:
    g = torch.Generator().manual_seed(3)
    grey = torch.rand(7, units, generator=g)
    grey[0, 0], grey[1, 0] = 0, 1
    rows = torch.tensor([5, 0, 2**32 - 1, 3, 4, 1, 2])
    wanted = ops.bernoulli(grey, rows, seed=9, sweep=4, layer=1)
    with gpu as device:
        assert_same([ops.bernoulli(grey.to(device), rows.to(device), seed=9, sweep=4, layer=1)], [wanted])


@pytest.mark.parametrize("units", [3, 130])
def test_statistics_have_the_bits_of_the_processor(gpu: Gpu, units: int) -> None:
    g = torch.Generator().manual_seed(3)
    binary = [(torch.rand(70, n, generator=g) < 0.3).to(torch.uint8) for n in (units, 67)]
    real = [torch.randn(70, n, generator=g) for n in (units, 67)]
    for lower in (binary[0], real[0]):
        for upper in (binary[1], real[1]):
            wanted = ops.statistics(lower, upper)
            with gpu as device:
                assert_same([ops.statistics(lower.to(device), upper.to(device))], [wanted])


def test_integers_on_the_grid_are_those_of_the_processor(gpu: Gpu) -> None:
    g = torch.Generator().manual_seed(3)
    for scale in (1e-9, 0.01, 1.0, 1e4 / 4):
        weights = scale * torch.randn(13, 7, generator=g)
        wanted, bits = ops.quantise(weights)
        with gpu as device:
            got, got_bits = ops.quantise(weights.to(device))
        assert_same([got], [wanted])
        assert got_bits == bits
    with gpu as device, pytest.raises(ValueError, match="weight: expected finite weights, got nan"):
        ops.quantise(torch.tensor([[float("nan")]], device=device))


# --- real values: within the tolerances of docs/numbers.md -----------------------------------------------------------


@pytest.mark.parametrize("options", ["", "beta", "base clamp"])
def test_gaussian_layers_agree_with_the_processor(gpu: Gpu, options: str) -> None:
    """Three sweeps: a hidden unit would decide differently in about one case of 10^5."""
    graph = chain_graph((70, 33), Kind.GAUSSIAN)
    wanted = run(make_machine(graph, scale=0.1), 13, 3, options=options)
    with gpu as device:
        got = run(make_machine(graph, scale=0.1, device=device), 13, 3, options=options)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


def real_means(device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    machine = make_machine(chain_graph((131, 67)), device=device)
    values = [torch.rand(9, n, generator=g).to(device) for n in (131, 67)]
    up, down = full_update(machine.graph, 1), full_update(machine.graph, 0)
    betas = torch.tensor([0.3, 1.0]).to(device)
    return [
        machine.layer_means(up, values),
        machine.layer_means(down, values, beta=torch.linspace(0, 1, 9).to(device)),
        machine.free_energy((up,), values, betas=betas),
    ]


def test_real_inputs_agree_with_the_processor(gpu: Gpu) -> None:
    wanted = real_means(torch.device("cpu"))
    with gpu as device:
        got = real_means(device)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-6, atol=2e-6)


def mean_field(device: torch.device, tolerance: float) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    machine = make_machine(chain_graph((70, 33, 17)), device=device)
    values = [torch.rand(9, layer.units, generator=g).to(device) for layer in machine.graph.layers]
    program = gibbs_program(machine.graph, clamped=(0,))
    convergence = machine.mean_field(program, values, 20, tolerance=tolerance, damping=0.2)
    return [*values, convergence.changes, convergence.iterations]


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_mean_field_agrees_with_the_reference(gpu: Gpu, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # processors may take products of eight bits
        patch.setenv("BM_FAST_BACKEND", "reference")
        wanted = mean_field(torch.device("cpu"), tolerance)
    with gpu as device:
        got = mean_field(device, tolerance)
    assert torch.equal(got[-1].cpu(), wanted[-1])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-5)


def tempering(device: torch.device) -> list[Tensor]:
    machine = make_machine(chain_graph((13, 7)), device=device)
    base = [torch.linspace(-1, 1, layer.units).to(device) for layer in machine.graph.layers]
    gap = ops.EnergyGap(machine, base)
    chains, rungs = machine.chains(6, seed=1), ops.Rungs.start(2, 3, device)
    betas = torch.tensor([0.0, 0.4, 1.0]).to(device)
    for _ in range(5):
        machine.sweep(gibbs_program(machine.graph), chains, 1, beta=betas[rungs.rungs.long()], base=base)
        ops.swap(rungs, gap.of(chains.layers), betas, seed=1)
    return [*chains.layers, rungs.rungs, rungs.attempts, rungs.acceptances, rungs.heading, rungs.trips]


@with_hopper
def test_replica_exchange_has_the_bits_of_the_processor(gpu: Gpu) -> None:
    wanted = tempering(torch.device("cpu"))
    with gpu as device:
        assert_same(tempering(device), wanted)


def test_rungs_that_are_no_permutation_are_refused(gpu: Gpu) -> None:
    with gpu as device:
        rungs, betas = ops.Rungs.start(1, 3, device), torch.tensor([0.0, 0.4, 1.0]).to(device)
        rungs.rungs[0] = 2
        with pytest.raises(ValueError, match="rungs: expected a permutation of 0 to 2 in each ladder"):
            ops.swap(rungs, torch.zeros(3, dtype=torch.float64, device=device), betas, seed=1)


# --- models and estimates --------------------------------------------------------------------------------------------


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


# --- what a recorded update of training is made of -------------------------------------------------------------------


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


# --- the right distribution, on a GPU alone: emulated, the bits are the processor's ----------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_chains_at_their_distribution_stay_there_on_a_gpu(name: str) -> None:
    """As in test_no_drift.py, where the bound is explained."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    here = enumeration.machine(BINARY[name])
    truth = enumerate_machine(here)
    chains = Chains(tuple(layer.cuda() for layer in truth.draw(40_000, torch.Generator().manual_seed(1))), seed=7)
    held = here.parameters
    weights, biases = (tuple(t.cuda() for t in tensors) for tensors in (held.weights, held.biases))
    there = Machine(Parameters(held.graph, weights, held.fraction_bits, biases, held.precisions))
    for n_sweeps in (1, 1, 6):
        there.sweep(gibbs_program(here.graph), chains, n_sweeps)
        assert variation_ratio(truth.p, truth.numbers([layer.cpu() for layer in chains.layers])) < DRIFT_BOUND


# --- long calls ------------------------------------------------------------------------------------------------------

LONG = 250  # sweeps: more than a round of a small machine has


def test_a_long_call_tells_its_progress(gpu: Gpu) -> None:
    told = list[int]()
    with gpu as device:
        machine = make_machine(chain_graph((5, 4)), device=device)
        chains = machine.chains(1, seed=0)
        machine.sweep(gibbs_program(machine.graph), chains, LONG, progress=told.append)
    assert told == [100, 200, LONG]
    assert chains.sweep == LONG


def test_an_interrupted_call_leaves_whole_sweeps(gpu: Gpu) -> None:
    """Ctrl-C in the middle: the states are those of ``chains.sweep`` sweeps, and can go on."""
    graph = chain_graph((5, 4))

    def interrupt(done: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    with gpu as device:
        machine = make_machine(graph, device=device)
        chains = machine.chains(3, seed=0)
        with pytest.raises(KeyboardInterrupt):
            machine.sweep(gibbs_program(graph), chains, LONG, progress=interrupt)
        assert chains.sweep == 100
        machine.sweep(gibbs_program(graph), chains, 50)
    here = make_machine(graph)
    wanted = here.chains(3, seed=0)
    here.sweep(gibbs_program(graph), wanted, 150)
    assert_same(list(chains.layers), list(wanted.layers))


def test_a_signal_ends_a_long_call(gpu: Gpu) -> None:
    with gpu as device:
        machine = make_machine(chain_graph((5, 4)), device=device)
        chains = machine.chains(1, seed=0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            machine.sweep(gibbs_program(machine.graph), chains, 2**31)
        assert 0 < chains.sweep < 2**31
        assert chains.sweep % 100 == 0


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bm_fast.ops.native.cuda_module", lambda: None)
    cuda.module.cache_clear()
    with pytest.raises(RuntimeError, match="cuda:7: the CUDA kernels of bm_fast cannot run there: built without CUDA"):
        cuda.module(torch.device("cuda:7"))


def test_a_device_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "none: GeForce (compute capability 7.5, 8 GiB) is too old, compute capability 8.0 is needed"
    monkeypatch.setattr("bm_fast.ops.native.gpu", lambda device: why)
    cuda.module.cache_clear()
    with pytest.raises(RuntimeError, match=r"cuda:1: .* cannot run there: GeForce .* is too old"):
        cuda.module(torch.device("cuda:1"))


def test_the_module_refuses_softmax_units(gpu: Gpu) -> None:
    with gpu as device:
        bias = torch.zeros(5, device=device)
        layers = [("labels", 5, int(Kind.SOFTMAX), bias.data_ptr(), 0)]
        message = "kind of layer 'labels' on a GPU: expected 0 to 1, got 2"
        with cuda.place(device) as here, pytest.raises(ValueError, match=message):
            cuda.module(device).Machine(layers, [], here)


def test_a_lack_of_memory_is_an_error_that_destroys_nothing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(memory: cuda.Memory, n_bytes: int) -> int:
        raise torch.OutOfMemoryError(f"Tried to allocate {n_bytes} bytes, 5 are free")

    with gpu as device:
        machine = make_machine(chain_graph((130, 70)), device=device)
        chains = machine.chains(3, seed=0)
        before = chains.clone()
        with monkeypatch.context() as patch:
            patch.setattr(cuda.Memory, "take", refuse)
            with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 96 bytes, 5 are free"):
                machine.sweep(gibbs_program(machine.graph), chains, 2)
        assert chains.sweep == 0
        assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers, strict=True))
        machine.sweep(gibbs_program(machine.graph), chains, 2)
        assert chains.sweep == 2


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"biases\[0\]: bm_fast runs on the CPU and on CUDA devices, got a .* meta"):
        Machine.build(chain_graph((2, 2)), [torch.zeros(2, 2, device="meta")], [torch.zeros(2, device="meta")] * 2)

"""Bad arguments of the operations: an error that names the argument, and nothing is changed. Both backends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from bm_fast import Kind, Machine, chain_graph, ops
from bm_fast.program import Input, Update, full_update, gibbs_program
from conftest import needs_native
from engine_cases import make_machine

NAN, INF = float("nan"), float("inf")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [NAN, INF, -INF, 40_000.0])
@pytest.mark.parametrize("place", [(0, 0), (130, 66), (77, 3)])
def test_weights_off_the_grid_are_refused(bad: float, place: tuple[int, int]) -> None:
    weights = torch.zeros(131, 67)
    weights[place] = bad
    with pytest.raises(ValueError, match=r"weights\[0\]: expected"):
        Machine.build(chain_graph((131, 67)), [weights], [torch.zeros(131), torch.zeros(67)])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [NAN, INF])
def test_biases_and_precisions_must_be_finite(bad: float) -> None:
    graph = chain_graph((2, 2), Kind.GAUSSIAN)
    zeros, ones = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match=r"biases\[1\] of layer 'hidden'"):
        Machine.build(graph, [torch.zeros(2, 2)], [zeros, torch.tensor([0.0, bad])], [ones, None])
    for value in (bad, 0.0, -1.0):
        with pytest.raises(ValueError, match=r"precisions\[0\] of layer 'visible'"):
            Machine.build(graph, [torch.zeros(2, 2)], [zeros, zeros], [torch.tensor([1.0, value]), None])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 66, 130])
def test_every_bias_is_looked_at(bad: float, place: int) -> None:
    """Also those that do not lie side by side in memory, and those that gradients are asked of."""
    biases = torch.zeros(131, 2)
    biases[1::2, 1] = bad
    spread = biases[:, 0].requires_grad_()
    graph = chain_graph((131, 2))
    Machine.build(graph, [torch.zeros(131, 2)], [spread, torch.zeros(2)])
    with torch.no_grad():
        spread[place] = bad
    with pytest.raises(
        ValueError, match=r"biases\[0\] of layer 'visible': expected finite values, got NaN or infinity"
    ):
        Machine.build(graph, [torch.zeros(131, 2)], [spread, torch.zeros(2)])


@needs_native
@pytest.mark.parametrize("bad", [2, 255])
@pytest.mark.parametrize("place", [(0, 0), (129, 66)])
def test_states_above_one_are_refused_and_nothing_is_changed(bad: int, place: tuple[int, int]) -> None:
    machine = make_machine(chain_graph((35, 67)))
    chains = machine.chains(130, seed=0)
    chains.layers[1][place] = bad
    before = chains.clone()
    update = full_update(machine.graph, 0)
    calls: list[Callable[[], object]] = [
        lambda: machine.sweep(gibbs_program(machine.graph), chains, 20),
        lambda: machine.layer_means(update, chains.layers),
        lambda: machine.energy(chains.layers),
        lambda: machine.free_energy((update,), chains.layers),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"layer 'hidden': expected 0 or 1, got {bad}"):
            call()
    with pytest.raises(ValueError, match=f"upper: expected 0 or 1, got {bad}"):
        ops.statistics(chains.layers[0], chains.layers[1])
    assert chains.sweep == 0
    for a, b in zip(chains.layers, before.layers, strict=True):
        assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_real_values_must_be_finite(bad: float) -> None:
    machine = make_machine(chain_graph((35, 67), Kind.GAUSSIAN))
    chains = machine.chains(13, seed=0)
    chains.layers[0][12, 34] = bad
    update = full_update(machine.graph, 1)
    calls: list[Callable[[], object]] = [
        lambda: machine.sweep(gibbs_program(machine.graph), chains, 2),
        lambda: machine.layer_means(update, chains.layers),
        lambda: machine.energy(chains.layers),
        lambda: machine.free_energy((update,), chains.layers),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="layer 'visible': expected finite numbers"):
            call()
    with pytest.raises(ValueError, match="lower: expected finite numbers"):
        ops.statistics(chains.layers[0], chains.layers[1])


@pytest.mark.usefixtures("backend")
def test_tensors_of_another_dtype_shape_or_layout_are_refused() -> None:
    machine = make_machine(chain_graph((6, 4)))
    chains = machine.chains(5, seed=0)
    program = gibbs_program(machine.graph)
    visible, hidden = chains.layers
    wrong = (
        (visible.int(), "torch.uint8"),
        (visible.float(), "torch.uint8"),
        (visible[:, :5], r"\[5, 6\]"),
        (visible[:4], "expected a contiguous"),
        (torch.zeros(6, 5, dtype=torch.uint8).T, "non-contiguous"),
    )
    for bad, message in wrong:
        broken = type(chains)((bad, hidden), 0)
        with pytest.raises(ValueError, match=rf"chains\.layers\[.\] .*{message}"):
            machine.sweep(program, broken, 1)
    for name, argument in (("clamp", {1: torch.zeros(5, 3, dtype=torch.uint8)}), ("means", {1: torch.zeros(5, 3)})):
        with pytest.raises(ValueError, match=rf"{name}\[1\]: expected"):
            machine.sweep(program, chains, 1, **{name: argument})
        with pytest.raises(ValueError, match=f"{name}: no layer 2"):
            machine.sweep(program, chains, 1, **{name: {2: argument[1]}})


@pytest.mark.usefixtures("backend")
def test_temperatures_must_be_finite_and_not_negative() -> None:
    machine = make_machine(chain_graph((6, 4)))
    chains = machine.chains(3, seed=0)
    for bad in (-0.1, NAN, INF):
        with pytest.raises(ValueError, match="beta: expected finite values of at least 0"):
            machine.sweep(gibbs_program(machine.graph), chains, 1, beta=torch.tensor([1.0, bad, 1.0]))
    with pytest.raises(ValueError, match="base: has a meaning only together with beta"):
        machine.sweep(gibbs_program(machine.graph), chains, 1, base=[torch.zeros(6), torch.zeros(4)])
    gaussian = make_machine(chain_graph((6, 4), Kind.GAUSSIAN))
    with pytest.raises(ValueError, match="no distribution at beta = 0"):
        gaussian.sweep(gibbs_program(gaussian.graph), gaussian.chains(1, seed=0), 1, beta=torch.zeros(1))


@pytest.mark.usefixtures("backend")
def test_counters_must_fit_their_words() -> None:
    machine = make_machine(chain_graph((6, 4)))
    program = gibbs_program(machine.graph)
    for name, bad in (("seed", -1), ("seed", 2**64), ("first_chain", -1), ("first_chain", 2**31 - 2)):
        chains = machine.chains(3, seed=0)
        setattr(chains, name, bad)
        with pytest.raises(ValueError, match=rf"chains\.{name}: expected 0 to"):
            machine.sweep(program, chains, 1)
    chains = machine.chains(3, seed=0)
    chains.sweep = 2**32 - 1
    machine.sweep(program, chains, 1)  # the last sweep that can be numbered
    with pytest.raises(ValueError, match="n_sweeps: expected 0 to 0, got 1"):
        machine.sweep(program, chains, 1)
    with pytest.raises(ValueError, match="n_sweeps: expected"):
        machine.sweep(program, machine.chains(3, seed=0), -1)


@pytest.mark.usefixtures("backend")
def test_free_energy_needs_every_coupling_to_lead_to_a_summed_layer() -> None:
    machine = make_machine(chain_graph((6, 4, 3)))
    with pytest.raises(ValueError, match="updates: coupling 1 leads to none"):
        machine.free_energy((full_update(machine.graph, 0),), machine.chains(2, seed=0).layers)


def test_an_unknown_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BM_FAST_BACKEND", "fortran")
    with pytest.raises(ValueError, match="BM_FAST_BACKEND: expected 'native' or 'reference', got 'fortran'"):
        ops.statistics(torch.ones(1, 1), torch.ones(1, 1))


@pytest.mark.usefixtures("backend")
def test_tensors_on_another_device_are_refused() -> None:
    """A kernel would follow their addresses. The meta device stands for any that is not the CPU."""
    elsewhere = torch.zeros(4, 3, device="meta")
    for call in (
        lambda: ops.quantise(elsewhere),
        lambda: ops.statistics(elsewhere, elsewhere),
        lambda: ops.bernoulli(elsewhere, torch.zeros(4, dtype=torch.int64, device="meta"), seed=0),
        lambda: Machine.build(chain_graph((4, 3)), [elsewhere], [elsewhere[:, 0], elsewhere[0]]),
    ):
        with pytest.raises(ValueError, match=r"runs on the CPU( and on CUDA devices)?, got a tensor on meta"):
            call()
    with pytest.raises(ValueError, match=r"upper: expected .* on cpu, got .* on meta"):
        ops.statistics(torch.zeros(4, 3), elsewhere)
    machine = make_machine(chain_graph((4, 3)))
    chains = machine.chains(4, seed=0)
    with pytest.raises(ValueError, match=r"beta: expected .* on cpu, got .* on meta"):
        machine.sweep(gibbs_program(machine.graph), chains, 1, beta=torch.ones(4, device="meta"))


NOT_WHOLE = (1.5, 2.0, None, "3", True)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [*NOT_WHOLE, -1, 2**64])
def test_seeds_and_counts_are_whole_numbers_in_range(bad: object) -> None:
    machine = make_machine(chain_graph((6, 4)))
    program = gibbs_program(machine.graph)
    grey, rows = torch.full((2, 3), 0.5), torch.arange(2)
    calls: dict[str, Callable[[], object]] = {
        "seed": lambda: machine.chains(3, seed=bad),  # type: ignore[arg-type]
        "n_chains": lambda: machine.chains(bad, seed=0),  # type: ignore[arg-type]
        "first_chain": lambda: machine.chains(3, seed=0, first_chain=bad),  # type: ignore[arg-type]
        "n_sweeps": lambda: machine.sweep(program, machine.chains(3, seed=0), bad),  # type: ignore[arg-type]
        "sweep": lambda: ops.bernoulli(grey, rows, seed=0, sweep=bad),  # type: ignore[arg-type]
        "layer": lambda: ops.bernoulli(grey, rows, seed=0, layer=bad),  # type: ignore[arg-type]
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected .*\d+ to \d+, got {bad!r}"):
            call()
    with pytest.raises(ValueError, match=rf"^seed: expected .*0 to {2**64 - 1}, got {bad!r}"):
        ops.bernoulli(grey, rows, seed=bad)  # type: ignore[arg-type]
    for name in ("seed", "sweep", "first_chain"):
        chains = machine.chains(3, seed=0)
        before = chains.clone()
        setattr(chains, name, bad)
        with pytest.raises(ValueError, match=rf"^chains\.{name}: expected .*0 to \d+, got {bad!r}"):
            machine.sweep(program, chains, 1)
        for a, b in zip(chains.layers, before.layers, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("backend")
def test_chains_at_their_last_sweep_can_run_no_sweeps() -> None:
    machine = make_machine(chain_graph((6, 4)))
    chains = machine.chains(3, seed=2**64 - 1)
    chains.sweep = 2**32
    machine.sweep(gibbs_program(machine.graph), chains, 0)
    assert chains.sweep == 2**32


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [1e300, -1e300, INF, NAN])
def test_input_scales_must_be_finite_as_float(bad: float) -> None:
    machine = make_machine(chain_graph((6, 4)))
    states = machine.chains(3, seed=0)
    update = Update(1, (Input(0, False, bad),))
    calls: list[Callable[[], object]] = [
        lambda: machine.sweep(((update,),), states, 1),
        lambda: machine.layer_means(update, states.layers),
        lambda: machine.free_energy((update,), states.layers),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"program: layer 1, coupling 0: expected a scale .* finite .* got"):
            call()
    machine.sweep(((Update(1, (Input(0, False, 1e38),)),),), states, 1)


@needs_native
@pytest.mark.parametrize("bad", [1e300, -INF, NAN])
def test_the_compiled_module_checks_scales_by_itself(bad: float) -> None:
    machine = make_machine(chain_graph((6, 4)))
    states = machine.chains(3, seed=0)
    values = [(layer.data_ptr(), False) for layer in states.layers]
    out = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"program: layer 1, coupling 0: expected a scale .* finite float, got"):
        machine._impl._compiled.layer_means((1, [(0, False, bad)]), values, 3, out.data_ptr(), 0, [], 1)


@pytest.mark.usefixtures("backend")
def test_bernoulli_refuses_rows_and_probabilities_out_of_range() -> None:
    out = torch.full((2, 3), 7, dtype=torch.uint8)
    for bad in (-0.1, 1.5, NAN, INF):
        with pytest.raises(ValueError, match=r"probabilities: expected values from 0 to 1, got"):
            ops.bernoulli(torch.tensor([[0.5, 0.0, 1.0], [0.5, bad, 0.5]]), torch.arange(2), out, seed=0)
    for row in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"rows: expected 0 to 4294967295, got .*{row}"):
            ops.bernoulli(torch.full((2, 3), 0.5), torch.tensor([0, row]), out, seed=0)
    assert torch.equal(out, torch.full_like(out, 7))
    ops.bernoulli(torch.tensor([[0.0, 1.0]]), torch.tensor([2**32 - 1]), seed=0)


@pytest.mark.usefixtures("backend")
def test_free_energy_refuses_temperatures_that_mean_nothing() -> None:
    for visible in (Kind.BERNOULLI, Kind.GAUSSIAN):
        machine = make_machine(chain_graph((6, 4), visible))
        states = machine.chains(3, seed=0).layers
        for summed in (0, 1):
            updates = (full_update(machine.graph, summed),)
            for bad in (-0.1, NAN, INF):
                with pytest.raises(ValueError, match="betas: expected finite values of at least 0"):
                    machine.free_energy(updates, states, betas=torch.tensor([1.0, bad]))
            with pytest.raises(ValueError, match="betas: expected"):
                machine.free_energy(updates, states, betas=torch.tensor(1.0))
            with pytest.raises(ValueError, match="betas: expected at least one"):
                machine.free_energy(updates, states, betas=torch.empty(0))
            if visible is Kind.GAUSSIAN:
                with pytest.raises(ValueError, match="betas: a Gaussian layer has no distribution at beta = 0"):
                    machine.free_energy(updates, states, betas=torch.tensor([0.0, 1.0]))
            base = [torch.zeros(6), torch.zeros(4)]
            for given in (base, None) if visible is Kind.BERNOULLI else (base,):
                result = machine.free_energy(updates, states, betas=torch.tensor([0.0, 1.0]), base=given)
                assert bool(result.isfinite().all())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [NAN, INF])
def test_base_must_be_finite(bad: float) -> None:
    machine = make_machine(chain_graph((6, 4)))
    chains = machine.chains(3, seed=0)
    base = [torch.zeros(6), torch.tensor([0.0, 0.0, bad, 0.0])]
    with pytest.raises(ValueError, match=r"base\[1\]: expected finite numbers"):
        machine.sweep(gibbs_program(machine.graph), chains, 1, beta=torch.ones(3), base=base)
    with pytest.raises(ValueError, match=r"base\[1\]: expected finite numbers"):
        machine.free_energy((full_update(machine.graph, 1),), chains.layers, base=base)


def test_why_the_compiled_module_is_missing_is_told() -> None:
    code = """
import sys
sys.modules["bm_fast._C"] = None
import torch
from bm_fast import ops
try:
    ops.statistics(torch.ones(1, 1), torch.ones(1, 1))
except ImportError as error:
    print(error.__cause__)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "import of bm_fast._C halted" in told

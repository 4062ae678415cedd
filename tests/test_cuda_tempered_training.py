"""Training with tempered chains on a GPU: rounds, betas and the grid of energies stay there, with the processor's bits.

As in test_cuda_training.py the kernels are emulated without a GPU, and a replay is an update that knows only what the
host knew when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import DBM, RBM, Kind
from bm_fast.ops import cuda
from bm_fast.tempering import TemperedTransitions, Tempering
from bm_fast.training import MeanFieldPCD, PersistentChains, Trainer
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper
from test_cuda_training import BATCH, N_HIDDEN, N_VISIBLE, grey, new, no_looks, recording, results, sgd

__all__ = ["emulation", "gpu"]  # fixtures

EPOCHS, UPDATES = 8, 24
ADAPT_EVERY = 3  # calls; then 6 and 12


def base_on(device: torch.device) -> list[Tensor]:
    return [torch.linspace(-1, 1, units).to(device) for units in (N_VISIBLE, N_HIDDEN)]


def of_ladders(operator: Tempering) -> list[Tensor]:
    held = operator.ladders
    assert held is not None
    return [*held.chains.layers, *held.rungs.parts, held.betas]


def trained(device: torch.device, with_base: bool, gpu: Gpu | None) -> tuple[list[Tensor], tuple[int, ...]]:
    """Parameters, chains and all of the ladders after some epochs, and what the host counted.

    Without centring, whose terms the processor adds in another order.
    """
    base = base_on(device) if with_base else None
    operator = Tempering([0.0, 0.3, 0.6, 0.8, 1.0], rounds=2, sweeps=2, base=base, adapt_every=ADAPT_EVERY)
    rbm = RBM(N_VISIBLE, N_HIDDEN, seed=3, weight_scale=0.3).to(device)
    trainer = Trainer(rbm, sgd(rbm), PersistentChains(6, operator), BATCH, seed=4, centred=False)
    data = grey().to(device)
    if gpu is None:
        trainer.fit(data, EPOCHS)
    else:
        assert trainer.why_not_captured is None
        with recording(gpu, trainer) as recorder:
            trainer.fit(data, EPOCHS)
        # a whole batch and a ragged one: betas that adapt are read where they are
        assert (recorder.recorded, recorder.replayed) == (2, UPDATES - 2)
    return [t.cpu() for t in (*results(trainer), *of_ladders(operator))], operator.counts


@with_hopper
@pytest.mark.parametrize("with_base", [False, True])
def test_tempered_training_has_the_bits_of_the_processor(gpu: Gpu, with_base: bool) -> None:
    """Parameters, states, swaps and adapted betas after many updates, of which all but a few are replays."""
    wanted, counts = trained(torch.device("cpu"), with_base, None)
    with gpu as device:
        got, counted = trained(device, with_base, gpu)
    assert_same(got, wanted)
    assert torch.equal(got[-4], wanted[-4])  # sums of probabilities, which assert_same lets differ by a rounding
    assert counted == counts == (2 * UPDATES, 4 * UPDATES, UPDATES - (1 + 2 + 4) * ADAPT_EVERY)
    assert not torch.equal(wanted[-1], torch.tensor([0.0, 0.3, 0.6, 0.8, 1.0]))


@pytest.mark.parametrize("forgotten", [0, 1], ids=["sweeps", "rounds"])
def test_numbers_that_the_device_does_not_count_are_seen(
    gpu: Gpu, forgotten: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses, zeros = cuda.Machine._counter_addresses, list[Tensor]()

    def spoiled(machine: cuda.Machine) -> tuple[int, int]:
        zeros.append(torch.zeros(1, dtype=torch.int32, device=machine._device))
        kept = list(addresses(machine))
        kept[forgotten] = zeros[-1].data_ptr()
        return kept[0], kept[1]

    wanted, _ = trained(torch.device("cpu"), False, None)
    monkeypatch.setattr(cuda.Machine, "_counter_addresses", spoiled)
    with gpu as device:
        got, _ = trained(device, False, gpu)
    with pytest.raises(AssertionError, match=r"values of .* differ"):
        assert_same(got, wanted)


@pytest.mark.parametrize(
    ("kind", "n_classes"),
    [(Kind.BERNOULLI, None), (Kind.GAUSSIAN, None), (Kind.BERNOULLI, 5)],
    ids=["Bernoulli", "Gaussian", "labels"],
)
def test_deep_machines_are_tempered_by_replays_too(gpu: Gpu, kind: Kind, n_classes: int | None) -> None:
    data = torch.randn(2 * BATCH, 9, generator=torch.Generator().manual_seed(3))
    data = data.sigmoid() if kind is Kind.BERNOULLI else data
    labels = None if n_classes is None else torch.arange(2 * BATCH) % n_classes
    got = list[list[Tensor]]()
    with gpu as device:
        for is_captured in (False, True):
            dbm = DBM((9, 7, 4), kind, seed=3, weight_scale=0.3, n_classes=n_classes).to(device)
            base = [torch.zeros(layer.units, device=device) for layer in dbm.graph.layers]
            operator = Tempering(4, base=base, adapt_every=ADAPT_EVERY)
            estimator = MeanFieldPCD(n_chains=6, iterations=3, operator=operator)
            trainer = Trainer(dbm, SGD(dbm.parameters(), lr=0.05), estimator, BATCH, seed=4)
            assert trainer.why_not_captured is None
            if not is_captured:
                trainer._captured = None
            with recording(gpu, trainer) as recorder:
                trainer.fit(data.to(device), 4, labels=None if labels is None else labels.to(device))
            got.append([t.cpu() for t in (*results(trainer), *of_ladders(operator))])
        assert (recorder.recorded, recorder.replayed) == (1, 8 - 1)
    assert_same(got[1], got[0])


def test_a_tempered_update_asks_for_no_number(gpu: Gpu) -> None:
    """The launches of an update that is not recorded, and replays, between the calls that begin and adapt ladders."""
    with gpu as device:
        trainer = new(device, PersistentChains(7, Tempering(4, adapt_every=4)))
        rows, numbers = grey()[:BATCH].to(device), torch.arange(BATCH, device=device)
        trainer._step(rows, numbers)  # machine and ladders are made
        with recording(gpu, trainer) as recorder:
            for _ in range(3):
                with no_looks():
                    trainer._step(rows, numbers)
            trainer.optimizer.param_groups[0]["lr"] = 0.01  # and so the next one is not recorded
            with pytest.raises(AssertionError, match=r"a number of a tensor .* was asked for"), no_looks():
                trainer._step(rows, numbers)  # which begins by adapting
            trainer._step(rows, numbers)
            with no_looks():
                trainer._step(rows, numbers)
        assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_a_graph_is_recorded_anew_for_other_ladders(gpu: Gpu) -> None:
    with gpu as device:
        operator = Tempering(4)
        trainer = new(device, PersistentChains(7, operator))
        rows, numbers = grey()[:BATCH].to(device), torch.arange(BATCH, device=device)
        changes: list[Callable[[], object]] = [
            lambda: None,
            lambda: operator.load_state_dict(deepcopy(operator.state_dict())),
            lambda: setattr(operator, "rounds", 2),
            lambda: setattr(operator, "sweeps", 3),
        ]
        with recording(gpu, trainer) as recorder:
            for n, change in enumerate(changes, 1):
                change()
                for _ in range(3):
                    trainer._step(rows, numbers)
                assert (recorder.recorded, recorder.replayed) == (n, 2 * n)
        assert operator.counts == (3 * (1 + 1 + 2 + 2), 3 * (1 + 1 + 2 + 6), 12)


def test_a_base_that_is_not_finite_is_refused_at_the_start(gpu: Gpu) -> None:
    with gpu as device:
        base = base_on(device)
        base[1][2] = float("nan")
        trainer = new(device, PersistentChains(7, Tempering(4, base=base)))
        with pytest.raises(ValueError, match=r"base\[1\]: expected finite numbers, got NaN or infinity"):
            trainer.fit(grey().to(device), 1)


class Slower(Tempering):
    """An operator of a user's own may decide whatever it likes."""


@pytest.mark.parametrize("kind", [TemperedTransitions, Slower])
def test_operators_that_may_wait_are_launched_one_by_one(gpu: Gpu, kind: type[TemperedTransitions | Slower]) -> None:
    with gpu as device:
        trainer = new(device, PersistentChains(7, kind(4)))
        assert trainer.why_not_captured == f"{kind.__name__} decides on the host how its chains go on"
        trainer.fit(grey().to(device), 1)

"""Training on a GPU: updates that nothing waits for, recorded once and replayed, with the bits of the same launches.

Without a GPU the kernels are emulated and a recording is the update itself, run with what the host knew when it was
recorded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from bm_fast import DBM, RBM, Kind
from bm_fast.tempering import Gibbs, Tempering
from bm_fast.training import (
    CD,
    PCD,
    Callback,
    FastPCD,
    MeanFieldPCD,
    PersistentChains,
    Progress,
    Trainer,
    TrainingError,
    batches,
    captured,
)
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper

__all__ = ["emulation", "gpu"]  # fixtures

N_ROWS, N_VISIBLE, N_HIDDEN, BATCH = 50, 20, 9, 20  # three batches an epoch, the last one ragged
LOOKS = ("item", "tolist", "__bool__", "__int__", "__float__", "numpy", "cpu", "nonzero", "__array__")


def grey() -> Tensor:
    return torch.rand(N_ROWS, N_VISIBLE, generator=torch.Generator().manual_seed(3))


def sgd(rbm: RBM) -> Optimizer:
    return SGD(rbm.parameters(), lr=0.05, momentum=0.5, weight_decay=1e-3)


def adam(rbm: RBM) -> Optimizer:
    return Adam(rbm.parameters(), lr=0.01)


def capturable_adam(rbm: RBM) -> Optimizer:
    return Adam(rbm.parameters(), lr=0.01, capturable=True)


def new(
    device: torch.device,
    estimator: object,
    make: Callable[[RBM], Optimizer] = sgd,
    kind: Kind = Kind.BERNOULLI,
    callbacks: tuple[Callback, ...] = (),
) -> Trainer:
    rbm = RBM(N_VISIBLE, N_HIDDEN, kind, seed=3, weight_scale=0.3).to(device)
    optimizer = make(rbm)
    scheduler = MultiStepLR(optimizer, [1, 3], 0.5)
    return Trainer(rbm, optimizer, estimator, BATCH, seed=4, scheduler=scheduler, callbacks=callbacks)  # type: ignore[arg-type]


def results(trainer: Trainer) -> list[Tensor]:
    return [*(parameter.detach() for parameter in trainer.model.parameters()), *trainer.chains.layers]


class Recorder:
    """Takes the place of ``captured.record``: counts recordings, and replays the host's knowledge of their time."""

    def __init__(self, real: Callable[..., Callable[[], object]] | None) -> None:
        self.trainer: Trainer
        self.recorded = self.replayed = 0
        self._real = real

    def __call__(self, work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        self.recorded += 1
        updates = self.trainer._captured
        assert updates is not None
        then, replay = updates.counts, work if self._real is None else self._real(work, device)

        def again() -> None:
            self.replayed += 1
            now, updates.counts = updates.counts, then
            with no_looks():
                replay()
            updates.counts = now

        return again


@contextmanager
def recording(gpu: Gpu, trainer: Trainer) -> Iterator[Recorder]:
    recorder = Recorder(captured.record if gpu.device.type == "cuda" else None)
    recorder.trainer = trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "record", recorder)
        yield recorder


@contextmanager
def no_looks() -> Iterator[None]:
    """Inside, nothing may ask a tensor for a number, which would wait for the device."""

    def refuse(tensor: Tensor, *_arguments: object, **_options: object) -> None:
        raise AssertionError(f"a number of a tensor {list(tensor.shape)} was asked for")

    with pytest.MonkeyPatch.context() as patch:
        for name in LOOKS:
            patch.setattr(Tensor, name, refuse)
        # the sweeps that a call has done are counted on the host
        whole = Tensor.__index__
        patch.setattr(Tensor, "__int__", lambda t: whole(t) if is_host_count(t) else refuse(t))
        yield


def is_host_count(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype is torch.int64 and tensor.shape == (1,)


def launched(device: torch.device, estimator: object, make: Callable[[RBM], Optimizer], epochs: int) -> list[Tensor]:
    """What the same training gives with a snapshot for each update and every operation launched by itself."""
    trainer = new(device, estimator, make)
    trainer._captured = None
    trainer.fit(grey().to(device), epochs)
    return results(trainer)


@with_hopper
@pytest.mark.parametrize("make", [sgd, adam, capturable_adam])
@pytest.mark.parametrize(
    "estimator", [PCD(n_chains=7, sweeps=2), CD(2), PersistentChains(7, Gibbs(2))], ids=["PCD", "CD", "operator"]
)
def test_replayed_updates_have_the_bits_of_launched_ones(
    gpu: Gpu, estimator: PCD | CD | PersistentChains, make: Callable[[RBM], Optimizer]
) -> None:
    if make is capturable_adam and gpu.device.type == "cpu":
        pytest.skip("torch's Adam is capturable on a GPU only")
    with gpu as device:
        wanted = launched(device, estimator, make, epochs=3)
        trainer = new(device, estimator, make)
        assert trainer.why_not_captured is None
        with recording(gpu, trainer) as recorder:
            trainer.fit(grey().to(device), 3)
        assert_same(results(trainer), [tensor.cpu() for tensor in wanted])
        # a whole batch before and after the learning rate changes, and then a ragged one; Adam's own step is no part
        assert recorder.recorded == (2 if make is adam else 2 + 1)
        assert recorder.replayed > 0
        per_update = 3 if isinstance(estimator, CD) else 2
        assert trainer.chains.sweep == 9 * per_update


def test_gaussian_units_are_trained_by_replays_too(gpu: Gpu) -> None:
    data = torch.randn(N_ROWS, N_VISIBLE, generator=torch.Generator().manual_seed(3))
    got = list[list[Tensor]]()
    with gpu as device:
        for is_captured in (False, True):
            trainer = new(device, PCD(5), kind=Kind.GAUSSIAN)
            if not is_captured:
                trainer._captured = None
            with recording(gpu, trainer) as recorder:
                trainer.fit(data.to(device), 2)
            got.append([tensor.cpu() for tensor in results(trainer)])
        assert recorder.replayed > 0
    assert_same(got[1], got[0])


class Unconverged(Callback):
    """Keeps the metric of each epoch."""

    def __init__(self) -> None:
        self.shares = list[float]()

    def on_epoch(self, progress: Progress) -> None:
        self.shares.append(progress.metrics["unconverged"])


@with_hopper
@pytest.mark.parametrize("kind", [Kind.BERNOULLI, Kind.GAUSSIAN])
def test_deep_machines_are_trained_by_replays_too(gpu: Gpu, kind: Kind) -> None:
    """With all that the data phase counts and follows: cases that do not come to rest, centring, activities."""
    data = torch.randn(N_ROWS, 9, generator=torch.Generator().manual_seed(3))
    data = data.sigmoid() if kind is Kind.BERNOULLI else data
    estimator = MeanFieldPCD(n_chains=6, sweeps=2, iterations=3, tolerance=1e-6, sparsity=(0.2, 0.3))
    got, shares = list[list[Tensor]](), list[list[float]]()
    with gpu as device:
        for is_captured in (False, True):
            dbm = DBM((9, 7, 4), kind, seed=3, weight_scale=0.3).to(device)
            seen = Unconverged()
            trainer = Trainer(dbm, SGD(dbm.parameters(), lr=0.05), estimator, BATCH, seed=4, callbacks=(seen,))
            assert trainer.why_not_captured is None
            if not is_captured:
                trainer._captured = None
            with recording(gpu, trainer) as recorder:
                trainer.fit(data.to(device), 3)
            got.append([tensor.cpu() for tensor in (*results(trainer), *trainer._learner.activity)])
            shares.append(seen.shares)
        assert (recorder.recorded, recorder.replayed) == (2, 9 - 2)
    assert_same(got[1], got[0])
    assert shares[1] == shares[0]
    assert max(shares[0]) > 0


@pytest.mark.parametrize(
    ("units", "estimator", "n_known"),
    [((9, 7, 4), MeanFieldPCD(n_chains=6, sweeps=2, iterations=3), N_ROWS), ((9, 7), CD(), N_ROWS - 7)],
    ids=["all known", "some known"],
)
def test_labels_are_learnt_by_replays_too(
    gpu: Gpu, units: tuple[int, ...], estimator: MeanFieldPCD | CD, n_known: int
) -> None:
    """A recording holds for one number of rows with known labels, which other rows have in the next epoch."""
    labels = torch.arange(N_ROWS) % 5
    labels[n_known:] = -1
    got = list[list[Tensor]]()
    with gpu as device:
        for is_captured in (False, True):
            dbm = DBM(units, seed=3, weight_scale=0.3, n_classes=5).to(device)
            trainer = Trainer(dbm, SGD(dbm.parameters(), lr=0.05), estimator, BATCH, seed=4)
            assert trainer.why_not_captured is None
            if not is_captured:
                trainer._captured = None
            with recording(gpu, trainer) as recorder:
                trainer.fit(grey()[:, :9].contiguous().to(device), 4, labels=labels.to(device))
            got.append([tensor.cpu() for tensor in results(trainer)])
        assert recorder.recorded >= 2
        assert recorder.replayed > 3
        assert_same(got[1], got[0])
        if n_known == N_ROWS:
            rows, numbers = grey()[-10:, :9].contiguous().to(device), torch.arange(10, device=device)
            with no_looks():
                trainer._step(rows, numbers)


def test_a_whole_update_asks_for_no_number(gpu: Gpu) -> None:
    """The draw of the data, the launches of an update that is not recorded, and a replay."""
    with gpu as device:
        trainer = new(device, PCD(7))
        rows, numbers = grey()[:BATCH].to(device), torch.arange(BATCH, device=device)
        trainer._step(rows, numbers)  # a machine is built
        with recording(gpu, trainer) as recorder:
            for _ in range(3):
                with no_looks():
                    trainer._step(rows, numbers)
        assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_a_graph_is_recorded_anew_when_what_it_depends_on_changes(gpu: Gpu) -> None:
    with gpu as device:
        trainer = new(device, PCD(7))
        rows, numbers = grey()[:BATCH].to(device), torch.arange(BATCH, device=device)
        group, parameter = trainer.optimizer.param_groups[0], trainer.model.layer_biases[0]
        changes: list[Callable[[], object]] = [
            lambda: None,
            lambda: group.update(lr=0.01),
            lambda: group.update(weight_decay=0.0),
            lambda: setattr(parameter, "grad", None),
            lambda: setattr(parameter, "data", parameter.data.clone()),
            lambda: trainer.optimizer.load_state_dict(deepcopy(trainer.optimizer.state_dict())),
        ]
        with recording(gpu, trainer) as recorder:
            for n, change in enumerate(changes, 1):
                change()
                for _ in range(3):  # launched, recorded and replayed, replayed
                    trainer._step(rows, numbers)
                assert (recorder.recorded, recorder.replayed) == (n, 2 * n)


def test_data_on_a_gpu_are_brought_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the checksum that a checkpoint knows them by; again after torch has changed them."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    data, seen, crc = grey().cuda(), list[int](), zlib.crc32

    def counted(values: memoryview) -> int:
        seen.append(crc(values))
        return seen[-1]

    monkeypatch.setattr(zlib, "crc32", counted)
    there, here = (batches.ArrayBatches(rows, BATCH, torch.Generator()) for rows in (data, grey()))
    assert [there.description, there.description] == [here.description] * 2
    assert len(seen) == 3
    data[0, 0] = 0
    assert there.description != here.description


def tempered(device: torch.device) -> PersistentChains:
    base = [torch.zeros(units, device=device) for units in (N_VISIBLE, N_HIDDEN)]
    return PersistentChains(7, Tempering([0.5, 0.8, 1.0], base=base))


@pytest.mark.parametrize("made", [lambda device: PCD(7), tempered], ids=["PCD", "tempering"])
def test_training_resumes_to_the_same_bits(
    gpu: Gpu, tmp_path: Path, made: Callable[[torch.device], PCD | PersistentChains]
) -> None:
    class Stop(Callback):
        def on_update(self, progress: Progress) -> None:
            if progress.trainer.update == 4:  # in the middle of an epoch
                progress.stop_reason = "enough"

    with gpu as device:
        whole = new(device, made(device))
        whole.fit(grey().to(device), 3)
        first = new(device, made(device), callbacks=(Stop(),))
        first.fit(grey().to(device), 3)
        first.save(tmp_path / "file")
        other = new(device, made(device))
        again = Trainer.resume(tmp_path / "file", other.model, other.optimizer, other.scheduler)
        again.fit(grey().to(device), 3)
        assert_same(results(again), [tensor.cpu() for tensor in results(whole)])


class Spoil(Callback):
    """Sets a weight after the second update."""

    def __init__(self, value: float) -> None:
        self._value = value

    def on_update(self, progress: Progress) -> None:
        if progress.trainer.update == 2:
            with torch.no_grad():
                progress.trainer.model.get_parameter("weight")[3, 4] = self._value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "after update 3: parameter 'weight' is not finite any more"),
        (1e6, r"after update 3: weights\[0\]: expected weights of at most 32639 in size, got 999950"),
    ],
)
def test_weights_that_leave_the_grid_end_training(gpu: Gpu, value: float, message: str) -> None:
    with gpu as device:
        trainer = new(device, PCD(7), callbacks=(Spoil(value),))
        with pytest.raises(TrainingError, match=f"{message}.*; a lower learning rate may help"):
            trainer.fit(grey().to(device), 2)


def test_long_epochs_are_looked_at_on_the_way(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bm_fast.training.trainer.LOOK_EVERY", 5)
    with gpu as device:
        trainer = new(device, PCD(7), callbacks=(Spoil(1e6),))
        with pytest.raises(TrainingError, match="after update 4: "):
            trainer.fit(grey().repeat(4, 1).to(device), 1)


def test_weights_that_came_back_to_the_grid_are_told_too(gpu: Gpu, tmp_path: Path) -> None:
    """A checkpoint after a refused update would not be that of the machine."""
    with gpu as device:
        trainer = new(device, PCD(7))
        rows, numbers = grey()[:BATCH].to(device), torch.arange(BATCH, device=device)
        trainer._step(rows, numbers)
        with torch.no_grad():
            trainer.model.get_parameter("weight")[3, 4] = 1e6
        trainer._step(rows, numbers)
        with torch.no_grad():
            trainer.model.get_parameter("weight")[3, 4] = 0
        with pytest.raises(TrainingError, match="weights were beyond the integer grid"):
            trainer.save(tmp_path / "file")
        assert not (tmp_path / "file").exists()


def test_what_cannot_be_recorded_says_why(gpu: Gpu) -> None:
    assert new(torch.device("cpu"), PCD(7)).why_not_captured == "the model is on cpu"
    with gpu as device:
        why = new(device, FastPCD(7)).why_not_captured
        assert why == "FastPCD decides on the host how its chains go on"


def test_updates_go_on_where_a_recording_fails(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        raise RuntimeError("operation not permitted")

    with gpu as device:
        wanted = launched(device, PCD(7), sgd, epochs=2)
        trainer = new(device, PCD(7))
        with monkeypatch.context() as patch:
            patch.setattr(captured, "record", fail)
            with pytest.warns(UserWarning, match="launched one by one: operation not permitted"):
                trainer.fit(grey().to(device), 2)
        assert_same(results(trainer), [tensor.cpu() for tensor in wanted])

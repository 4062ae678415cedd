"""Fine-tunes a deep Boltzmann machine into a classifier, and measures its error on test data once.

    python recipes/classify.py digits                     after recipes/dbm.py digits: a minute or two
    python recipes/classify.py mnist                      all labels
    python recipes/classify.py mnist --labels 100         ten images of each class have labels; three draws of them
    python recipes/classify.py ocr-letters

The machine is runs/dbm-NAME/dbm.safetensors, which recipes/dbm.py leaves, unless --dbm names another. It has seen
training images without labels. The network begins as its mean field (docs/deep.md, section 6), and learns by Adam with
dropout or, with --optimizer lbfgs, by L-BFGS without.

The rate falls linearly to zero, and the network that counts has the mean of the weights after each epoch of the last
quarter. Settings are those with the lowest error on held-out labels: of the validation images, or, where only some
labels are given, on each fifth of these in turn. Then a network learns anew with them from all labels that are given,
validation images included, and is asked for the test images. The same, with a choice of its own, is done for a network
of the same shape that begins at random weights. The one setting of mnist was the best of several on the validation
images, for the network that begins at the machine.

Networks are saved in runs/classify-NAME after an epoch, at most every ten seconds, and the same command goes on where
an interrupted one stopped. --device cuda computes on a GPU. Results go to recipes/results/classify-NAME.json and .log.
With --epochs of one's own it is a trial: networks and record lie in runs/classify-NAME-epochs-N, recorded results stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import SEED, place
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from tqdm import tqdm

from bm_fast import DBM, checkpoints
from bm_fast.cli.common import commit
from bm_fast.cli.devices import add_device
from bm_fast.data import load
from bm_fast.mlp import DeepClassifier

FOLDS, DRAWS, SAVE_EVERY = 5, 3, 10.0
BIG_BATCH, BIG_BATCH_STEPS = 10_000, 5
STARTS = ("machine", "random")


@dataclass(frozen=True)
class Settings:
    """rate: of Adam for the output layer, falling linearly to zero; lower_rate: its factor for the layers below.

    dropout, input_dropout: shares of hidden units, and of data and posteriors, that are left out in training.
    """

    dropout: float
    input_dropout: float
    rate: float = 1e-3
    lower_rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """What is tried: every setting for ``epochs`` passes in batches of ``batch`` rows."""

    epochs: int
    batch: int
    settings: tuple[Settings, ...]


PLAIN, NOISY = Settings(0.0, 0.0), Settings(0.5, 0.2)
ALL_LABELS = {
    "digits": Recipe(100, 50, (replace(PLAIN, rate=1e-2), replace(NOISY, rate=1e-2))),
    "mnist": Recipe(100, 200, (Settings(0.5, 0.2, 2e-3),)),
    "ocr-letters": Recipe(80, 500, (PLAIN, Settings(0.25, 0.1, 2e-3))),
}
CAREFUL = (Settings(0.5, 0.2, 1e-2, 0.0), Settings(0.5, 0.2, 1e-2, 0.03), NOISY)
"""For few labels: lower layers stay, move a little, or learn as fast as the output."""


@dataclass(frozen=True)
class Rows:
    """Inputs of the network and labels, row by row."""

    x: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> Rows:
        return Rows(self.x[index], self.labels[index])


Fit = tuple[DeepClassifier, dict[str, Any]]
"""A network that has learnt, and how it was chosen."""


class Task:
    """What all networks of a call share: the machine, the way they learn, and where they are saved."""

    def __init__(self, dbm: DBM, n_classes: int, recipe: Recipe, options: argparse.Namespace, run: Path) -> None:
        self.dbm, self.n_classes, self.recipe, self.run = dbm, n_classes, recipe, run
        self.lbfgs, self.bfloat16 = options.optimizer == "lbfgs", options.bfloat16
        parameters = b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in dbm.parameters())
        self.fingerprint = hashlib.sha256(parameters).hexdigest()

    def rows(self, v: Tensor, labels: Tensor) -> Rows:
        return Rows(self.dbm.mlp_inputs(v, iterations=30, tolerance=1e-3), labels)

    def network(self, start: str, settings: Settings) -> DeepClassifier:
        """Begins at the machine, or at random weights (Glorot and Bengio, 2010); the latter takes the data alone."""
        if start == "machine":
            return self.dbm.to_mlp(self.n_classes, settings.dropout, SEED)
        torch.manual_seed(SEED)
        # the same numbers on any device
        weights = [
            nn.init.xavier_uniform_(torch.empty(weight.shape), 4.0).to(weight.device) for weight in self.dbm.weights
        ]
        biases = [torch.zeros_like(bias) for bias in self.dbm.biases]
        return DeepClassifier(weights, biases, self.n_classes, settings.dropout, SEED, posteriors=False)

    def logits(self, network: DeepClassifier, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            return network(x if len(network.above) else x[:, : self.dbm.n_visible]).float()

    def errors(self, network: DeepClassifier, rows: Rows) -> tuple[int, float]:
        """How many rows are taken for another class, and the mean negative log-probability of the right one."""
        network.eval()
        with torch.no_grad():
            logits = torch.cat([self.logits(network, part) for part in rows.x.split(1000)])
        return int((logits.argmax(1) != rows.labels).sum()), float(cross_entropy(logits, rows.labels))

    def learn(self, name: str, start: str, settings: Settings, train: Rows, held_out: Rows | None) -> Any:
        """A network after all epochs, and its learning curve; goes on from its file where there is one."""
        epochs = self.recipe.epochs
        network = self.network(start, settings)
        average = self.network(start, settings)
        what = {"start": start, **asdict(settings), "epochs": epochs, "rows": len(train.x)}
        what |= {"batch": self.recipe.batch, "lbfgs": self.lbfgs}
        what |= {"bfloat16": self.bfloat16, "machine": self.fingerprint}
        path, curve = self.run / f"{name}.safetensors", []
        output = [network.weight, network.bias]
        lower = [*network.below, *network.above, *network.biases]
        groups = [{"params": output, "factor": 1.0}, {"params": lower, "factor": settings.lower_rate}]
        adam = torch.optim.Adam(groups, lr=settings.rate, fused=True)
        if path.exists():
            state = checkpoints.load(path)["classifier"]
            if state["what"] != what:
                raise SystemExit(f"{path} was made with {state['what']}, not with {what}: move it away to start anew")
            network.load_state_dict(state["parameters"])
            average.load_state_dict(state["average"])
            adam.load_state_dict(state["optimizer"])
            curve = state["curve"]
        saved = time.monotonic()
        with tqdm(total=epochs, initial=len(curve), unit="epoch", desc=name, leave=False) as bar:
            for epoch in range(len(curve), epochs):
                began = time.process_time()
                torch.manual_seed(SEED + epoch)  # of the order of the rows and of dropout: resuming needs no state
                network.train()
                loss = self._pass(network, adam, settings, train, epoch)
                row = {"epoch": epoch + 1, "loss": loss, "seconds": time.process_time() - began}
                n_averaged = epoch + 1 - 3 * epochs // 4
                if n_averaged > 0:
                    with torch.no_grad():
                        for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
                            mean.lerp_(parameter, 1 / n_averaged)
                if held_out is not None:
                    wrong, nll = self.errors(average if n_averaged > 0 else network, held_out)
                    row |= {"error": wrong / len(held_out.x), "nll": nll}
                curve.append(row)
                if time.monotonic() - saved > SAVE_EVERY or epoch == epochs - 1:
                    kept = {"parameters": network.state_dict(), "average": average.state_dict(), "curve": curve}
                    checkpoints.save(path, {"classifier": {"what": what, "optimizer": adam.state_dict(), **kept}})
                    saved = time.monotonic()
                bar.set_postfix({key: f"{value:.4f}" for key, value in row.items() if isinstance(value, float)})
                bar.update()
        return average, curve

    def _pass(
        self, network: DeepClassifier, adam: torch.optim.Adam, settings: Settings, train: Rows, epoch: int
    ) -> float:
        """One pass over the rows in a random order; the mean loss."""
        size = BIG_BATCH if self.lbfgs else self.recipe.batch
        batches = torch.randperm(len(train.x)).to(train.x.device).split(size)
        total = 0.0
        for number, index in enumerate(batches):
            batch = train.at(index)
            if self.lbfgs:
                total += len(index) * self._minimise(network, batch)
                continue
            done = (epoch + number / len(batches)) / self.recipe.epochs
            for group in adam.param_groups:
                group["lr"] = settings.rate * group["factor"] * (1 - done)
            loss = cross_entropy(self.logits(network, dropout(batch.x, settings.input_dropout)), batch.labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += len(index) * loss.item()
        return total / len(train.x)

    def _minimise(self, network: DeepClassifier, batch: Rows) -> float:
        """A few steps of L-BFGS on one large batch, whose loss it gives; each batch begins anew."""
        lbfgs = torch.optim.LBFGS(network.parameters(), max_iter=BIG_BATCH_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            lbfgs.zero_grad()
            loss = cross_entropy(self.logits(network, batch.x), batch.labels)
            loss.backward()
            return loss

        return lbfgs.step(closure).item()

    # --- the protocol -----------------------------------------------------------------------------------------------

    def choose(self, name: str, start: str, folds: list[tuple[Rows, Rows]], log: list[str]) -> tuple[Settings, float]:
        """The setting with the lowest error on held-out rows, of equals the one that is surer of the right classes."""
        found = []
        for number, settings in enumerate(self.recipe.settings):
            ends = [
                self.learn(f"{name}-{start}-{number}-{fold}", start, settings, *rows)[1][-1]
                for fold, rows in enumerate(folds)
            ]
            error, nll = (sum(row[key] for row in ends) / len(ends) for key in ("error", "nll"))
            log.append(f"{name} {start} {settings}: held-out error {error:.2%}")
            found.append((error, nll, number))
        error, _, number = min(found)
        return self.recipe.settings[number], error

    def fit(self, name: str, folds: list[tuple[Rows, Rows]], given: Rows, log: list[str]) -> dict[str, Fit]:
        """For each start chooses, and learns anew from all rows with labels."""
        fitted = {}
        for start in STARTS:
            settings, error = self.choose(name, start, folds, log)
            network, curve = self.learn(f"{name}-{start}", start, settings, given, None)
            step = max(1, len(curve) // 20)
            log += [f"{name} {start} epoch {r['epoch']}: loss {r['loss']:.4f}" for r in curve[step - 1 :: step]]
            chosen = {"settings": asdict(settings), "epochs": self.recipe.epochs, "held_out_error": error}
            fitted[start] = network, chosen
        return fitted

    def measure(self, name: str, fitted: dict[str, Fit], test: Rows, log: list[str]) -> dict[str, Any]:
        """The errors of networks that are final."""
        found = {}
        for start, (network, chosen) in fitted.items():
            wrong, nll = self.errors(network, test)
            share = wrong / len(test.x)
            error = math.sqrt(share * (1 - share) / len(test.x))
            found[start] = {
                **chosen,
                "test_error": share,
                "test_error_standard_error": error,
                "test_negative_log_probability": nll,
            }
            log.append(f"{name} {start}: test error {share:.2%} ± {error:.2%} ({wrong:,} of {len(test.x):,})")
            print(log[-1], flush=True)
        return found


def few(labels: Tensor, n: int, n_classes: int, seed: int) -> Tensor:
    """Numbers of ``n`` rows, as many of each class, in a random order that mixes the classes."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    of_class = [order[labels[order] == c][: n // n_classes] for c in range(n_classes)]
    return torch.stack(of_class, 1).flatten()  # class after class within each group of n_classes rows


def cross_validation(rows: Rows, n_classes: int) -> list[tuple[Rows, Rows]]:
    """Each part of the rows held out in turn; every part has as many of each class, give or take one."""
    fold = torch.arange(len(rows.x), device=rows.x.device) // n_classes % FOLDS
    return [(rows.at((fold != k).nonzero()[:, 0]), rows.at((fold == k).nonzero()[:, 0])) for k in range(FOLDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=ALL_LABELS)
    parser.add_argument("--dbm", type=Path, help="checkpoint of the machine")
    parser.add_argument("--labels", type=int, help="how many labels are given (default: all)")
    parser.add_argument("--optimizer", choices=("adam", "lbfgs"), default="adam")
    parser.add_argument("--epochs", type=int, help="most passes, over which the rate falls to zero")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16; where the device has them")
    add_device(parser)
    options = parser.parse_args()
    name = f"{options.recipe}{'' if options.labels is None else f'-{options.labels}'}"
    name += "-lbfgs" if options.optimizer == "lbfgs" else ""
    dataset = load(options.recipe).to(options.device)
    train, valid, test = ((dataset.split(s), getattr(dataset, f"{s}_labels")) for s in ("train", "valid", "test"))
    n_classes = int(train[1].max()) + 1
    if options.labels is not None and (options.labels % n_classes or options.labels < FOLDS * n_classes):
        parser.error(f"--labels: expected a multiple of {n_classes}, at least {FOLDS * n_classes}")
    recipe = ALL_LABELS[options.recipe]
    if options.labels is not None:
        recipe = Recipe(max(30, 20_000 // options.labels), 100, CAREFUL)
    if options.optimizer == "lbfgs":
        recipe = replace(recipe, settings=(PLAIN,))
    recipe = recipe if options.epochs is None else replace(recipe, epochs=options.epochs)
    source = options.dbm or Path("runs") / f"dbm-{options.recipe}" / "dbm.safetensors"
    here = place(f"classify-{name}", None if options.epochs is None else [options.epochs])
    task = Task(DBM.load(source, options.device), n_classes, recipe, options, here.run)
    begun_at = commit()
    log: list[str] = []
    try:
        if options.labels is None:
            fit, held_out = task.rows(*train), task.rows(*valid)
            given = Rows(torch.cat([fit.x, held_out.x]), torch.cat([fit.labels, held_out.labels]))
            fitted = {"all": task.fit("all", [(fit, held_out)], given, log)}
        else:
            fitted = {}
            for draw in range(DRAWS):
                index = few(train[1], options.labels, n_classes, SEED + draw)
                given = task.rows(train[0][index], train[1][index])
                fitted[f"draw{draw}"] = task.fit(f"draw{draw}", cross_validation(given, n_classes), given, log)
        rows = task.rows(*test)  # when all networks are final
        found = {draw: task.measure(draw, networks, rows, log) for draw, networks in fitted.items()}
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on after the last epoch")
    record: dict[str, Any] = {
        "command": shlex.join(["python", "recipes/classify.py", *sys.argv[1:]]),
        "machine_units": list(task.dbm.units),
        "seed": SEED,
        "commit": begun_at,
        "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "processor_seconds_of_learning": round(sum(seconds(path) for path in here.run.glob("*.safetensors"))),
        "test_error": {start: sum(f[start]["test_error"] for f in found.values()) / len(found) for start in STARTS},
        "found": found,
    }
    here.record.write_text(json.dumps(record, indent=2) + "\n")
    head = [f"{key}: {value}" for key, value in record.items() if key != "found"]
    here.record.with_suffix(".log").write_text("\n".join(head + log) + "\n")
    for start, error in record["test_error"].items():
        print(f"test error, from {start} weights: {error:.2%}")


def seconds(path: Path) -> float:
    """Processor time that a network has taken to learn, interruptions left out."""
    curve = checkpoints.load(path)["classifier"]["curve"]
    return sum(row["seconds"] for row in curve)


if __name__ == "__main__":
    main()

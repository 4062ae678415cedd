"""Centring and flipped data: the exact test log-likelihood of small RBMs on MNIST and on 1 - MNIST.

    python recipes/flipped_mnist.py [--epochs 50]

A model of flipped pixels is as hard to learn as one of the pixels themselves. The centred gradient is meant not to see
the difference; the ordinary gradient does. 16 hidden units, PCD-1, learning rate 0.01, batches of 100, as in the
experiment that docs/results.md names. Prints a table and writes recipes/results/flipped-mnist.json; a trial with
another number of epochs writes runs/flipped-mnist-epochs-N/record.json instead.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from common import place

from bm_fast import RBM
from bm_fast.data import load
from bm_fast.estimation import exact_log_z, mean_log_likelihood
from bm_fast.training import PCD, ProgressBar, Trainer

SEED, HIDDEN, BATCH, RATE, EPOCHS = 0, 16, 100, 0.01, 50


def test_log_likelihood(train: torch.Tensor, test: torch.Tensor, *, centred: bool, epochs: int) -> float:
    rbm = RBM(train.shape[1], HIDDEN, seed=SEED)
    rbm.initialise_biases(train)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=RATE)
    callbacks = [ProgressBar()]
    Trainer(rbm, optimizer, PCD(n_chains=BATCH), BATCH, SEED, centred=centred, callbacks=callbacks).fit(train, epochs)
    return mean_log_likelihood(rbm, test, exact_log_z(rbm)).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    here = place("flipped-mnist", None if epochs == EPOCHS else [epochs])
    mnist = load("mnist")
    test = mnist.binarised(SEED).test  # one fixed sample; training draws its pixels anew in each epoch
    results, began = {}, time.monotonic()
    for centred in (True, False):
        for flipped in (False, True):
            train_rows, test_rows = (1 - mnist.train, 1 - test) if flipped else (mnist.train, test)
            name = f"{'centred' if centred else 'ordinary'} gradient, {'flipped ' if flipped else ''}MNIST"
            results[name] = test_log_likelihood(train_rows, test_rows, centred=centred, epochs=epochs)
            print(f"{name:40s} {results[name]:8.2f} nats per image", flush=True)
    record = {"epochs": epochs, "seed": SEED, "seconds": round(time.monotonic() - began), "log_likelihood": results}
    here.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

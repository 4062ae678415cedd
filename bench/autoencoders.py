"""Times the importance-weighted autoencoder beside plain PyTorch: python bench/autoencoders.py [--name NAME]

The model is that of Burda et al. (2016) for MNIST, 784 - 200 - 200 - 50 with tanh, on random binary images. The rival
is the shortest PyTorch for the same model with the same parameters. Contenders are timed in turns, a training step with
k = 50 and batches of 20, and log p(x) with k = 5000 for as many rows as --rows says; before that the two must agree on
the bound. Prints a table; with --name, saves all of it in bench/results.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bm_fast.vae import IWAE, VAE, DReG, log_likelihood
from timing import environment, interleave

PIXELS, LATENT, HIDDEN = 784, 50, 200
K, BATCH = 50, 20
K_EVALUATION = 5000


class Plain(nn.Module):
    """The model as a tutorial would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.mean, self.log_scale = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(x)
        return self.mean(features), self.log_scale(features)

    def log_weights(self, x: Tensor, mean: Tensor, log_scale: Tensor, k: int) -> Tensor:
        scale = log_scale.exp()
        h = mean + scale * torch.randn(k, *mean.shape)
        logits = self.decoder(h)
        log_p = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_prior = -0.5 * h.square().sum(-1)
        log_q = (-0.5 * ((h - mean) / scale).square() - log_scale).sum(-1)
        return log_p + log_prior - log_q

    def like(self, model: VAE) -> Plain:
        """With the parameters of ``model``, which come in the same order."""
        with torch.no_grad():
            for own, other in zip(self.parameters(), model.parameters(), strict=True):
                own.copy_(other)
        return self


def training(x: Tensor) -> dict[str, Callable[[int], None]]:
    contenders = {}
    for name, estimator, mixed in (
        ("bm_fast, IWAE", IWAE(K), False),
        ("bm_fast, DReG", DReG(K), False),
        ("bm_fast, IWAE, mixed precision", IWAE(K), True),
    ):
        model = VAE(PIXELS)
        contenders[name] = ours(model, optimiser(model), estimator, x, mixed)
    plain = Plain().like(VAE(PIXELS))
    contenders["plain PyTorch, IWAE"] = rival(plain, optimiser(plain), x)
    return contenders


def ours(
    model: VAE, optimizer: torch.optim.Adam, estimator: IWAE | DReG, x: Tensor, mixed: bool
) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                estimator.backward(model, x)
            optimizer.step()

    return run


def rival(model: Plain, optimizer: torch.optim.Adam, x: Tensor) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            bound = model.log_weights(x, *model.encode(x), K).logsumexp(0) - math.log(K)
            (-bound.mean()).backward()
            optimizer.step()

    return run


def optimiser(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)


def evaluation(x: Tensor) -> dict[str, Callable[[int], None]]:
    model = VAE(PIXELS)
    plain = Plain().like(model)

    def repeat(measure: Callable[[], Tensor]) -> Callable[[int], None]:
        def run(n: int) -> None:
            for _ in range(n):
                measure()  # what the contenders find was compared before

        return run

    return {
        "bm_fast": repeat(lambda: log_likelihood(model, x, K_EVALUATION)),
        "loop over samples": repeat(lambda: loop(plain, x, K_EVALUATION, encode_once=False)),
        "loop over samples, x encoded once": repeat(lambda: loop(plain, x, K_EVALUATION, encode_once=True)),
    }


@torch.no_grad()
def loop(model: Plain, x: Tensor, k: int, *, encode_once: bool) -> Tensor:
    code = model.encode(x)
    log_w = torch.empty(k, len(x))
    for i in range(k):
        log_w[i] = model.log_weights(x, *(code if encode_once else model.encode(x)), 1)[0]
    return log_w.logsumexp(0) - math.log(k)


def check(x: Tensor) -> None:
    """Both programs must compute the same bound, with weights so small that 200 samples tell it to a tenth of a nat."""
    model = VAE(PIXELS, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    difference = log_likelihood(model, x, 200) - loop(Plain().like(model), x, 200, encode_once=True)
    if not (float(difference.abs().max()) < 1 and abs(float(difference.mean())) < 0.1):
        raise SystemExit(f"the bounds disagree: {difference.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=7, help="timed calls of each contender (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long one timed call should take (default: 0.2)")
    parser.add_argument("--training", action=argparse.BooleanOptionalAction, default=True, help="time training steps")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=(1, 20), help="times log p(x) of so many (default: 1 20)"
    )
    parser.add_argument("--name", help="write bench/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    described = environment()
    images = (torch.rand(max(50, BATCH, *options.rows), PIXELS) < 0.15).float()
    check(images[:50])
    cases = {f"training step, k = {K}, batch {BATCH}": training(images[:BATCH])} if options.training else {}
    for n in options.rows:
        cases[f"log p(x), k = {K_EVALUATION}, rows: {n}"] = evaluation(images[:n])
    print(f"| case, {options.threads} thread(s) | contender | median ms | least | most | against bm_fast |")
    print("|---|---|---|---|---|---|")
    results = []
    for case, contenders in cases.items():
        timings = interleave(contenders, options.calls, options.seconds)
        first = next(iter(timings.values())).median
        for name, timing in timings.items():
            ratio = timing.median / first
            print(f"| {case} | {name} | {timing.median:.2f} | {timing.least:.2f} | {timing.most:.2f} | {ratio:.2f} |")
            results.append({"case": case, "contender": name, "ms": asdict(timing), "against_bm_fast": ratio})
    if options.name is not None:
        path = Path(__file__).parent / "results" / f"{options.name}.json"
        content = {"environment": described, "settings": vars(options), "results": results}
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

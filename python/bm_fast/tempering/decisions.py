"""Random decisions of transition operators, counted like all other random numbers: by seed, chain and sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast.chains import Chains
from bm_fast.ops import bernoulli
from bm_fast.reference import Purpose


def accepted(log_ratio: Tensor, chains: Chains) -> Tensor:
    """Whether each chain takes a Metropolis proposal, bool ``[n_chains]``: with probability min(1, exp(log_ratio)).

    log_ratio: float64 ``[n_chains]``. At most one decision after each sweep of ``chains``, by which they are counted.
    """
    return _drawn(log_ratio.clamp(max=0).exp()[:, None], chains)[:, 0]


def chosen(log_weights: Tensor, chains: Chains) -> Tensor:
    """One of k options for each chain, int64 ``[n_chains]``, with probabilities ∝ exp(log_weights).

    log_weights: float64 ``[n_chains, k]``. The options are offered one after the other, each with its probability
    given that none before was taken.
    """
    weights = log_weights.softmax(1)
    left = weights.flip(1).cumsum(1).flip(1)
    shares = torch.where(left > 0, weights / left, 1.0).clamp(max=1)
    shares[:, -1] = 1
    return _drawn(shares, chains).byte().argmax(1)


def _drawn(probabilities: Tensor, chains: Chains) -> Tensor:
    rows = torch.arange(chains.first_chain, chains.first_chain + chains.n_chains, device=probabilities.device)
    return bernoulli(
        probabilities.float(), rows, seed=chains.seed, sweep=chains.sweep, purpose=Purpose.DECISION, are_known=True
    ).bool()

"""From a deep model to a classifier: a feed-forward network that begins as one pass of mean field, or of recognition.

A unit of a deep machine gets input from both sides, a unit of a network from below alone. So the network gets the
mean-field posteriors of the layers above beside the data, computed once and held fixed:

    hˡ = σ(hˡ⁻¹ Wˡ + q(hˡ⁺¹ | v) Wˡ⁺¹ᵀ + bˡ)        h⁰ = v, and no q for the top layer

With the weights of the machine, both copies of Wˡ⁺¹ being free to change, every hˡ is the mean field of its layer where
the iterations have come to rest. A linear layer on top gives logits.

Source: Salakhutdinov and Hinton, Deep Boltzmann machines (AISTATS 2009), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DeepClassifier(nn.Module):
    """A network with ``n_classes`` outputs, as ``DBM.to_mlp`` and ``DBN.to_mlp`` make it; an ordinary torch module.

    weights, biases: of the machine, one per coupling and layer; copied.
    dropout: probability with which each hidden unit is left out in training.
    seed: decides the weights of the output, N(0, 0.01²).
    posteriors: whether rows hold the posteriors of the layers above the first hidden one beside the data. A belief net
        needs none: its recognition net goes up alone.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        n_classes: int,
        dropout: float = 0.0,
        seed: int = 0,
        posteriors: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(n_classes, int) or n_classes < 2:
            raise ValueError(f"n_classes: expected a whole number of at least 2, got {n_classes!r}")
        self.units = tuple(len(bias) for bias in biases)
        self.below = nn.ParameterList(weight.detach().clone() for weight in weights)
        self.above = nn.ParameterList(weight.detach().T.contiguous().clone() for weight in weights[1:] if posteriors)
        self.biases = nn.ParameterList(bias.detach().clone() for bias in biases[1:])
        self.dropout = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(
            0.01 * torch.randn(self.units[-1], n_classes, generator=generator).to(biases[0].device)
        )
        self.bias = nn.Parameter(torch.zeros(n_classes, device=biases[0].device))

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Activities of the hidden layers for rows of ``DBM.mlp_inputs``, or of data where there are no posteriors."""
        parts = [self.units[0], *(self.units[2:] if len(self.above) else ())]
        if x.dim() != 2 or x.shape[1] != sum(parts):
            what = "data beside posteriors as from DBM.mlp_inputs" if len(self.above) else "data"
            raise ValueError(f"x: expected [n, {sum(parts)}], {what}, got {list(x.shape)}")
        v, *posteriors = torch.split(x, parts, 1)
        layers, h = [], v
        for level, (below, bias) in enumerate(zip(self.below, self.biases, strict=True)):
            field = h @ below + bias
            if level < len(posteriors):
                field = field + posteriors[level] @ self.above[level]
            h = torch.sigmoid(field)
            layers.append(h)
            h = self.dropout(h)
        return layers

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, n_classes]``; rows as for ``hidden``."""
        logits: Tensor = self.dropout(self.hidden(x)[-1]) @ self.weight + self.bias
        return logits

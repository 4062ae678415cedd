"""From the states of both phases to the gradient of the negative log-likelihood, ordinary or centred.

Rows of data carry the sign and weight s = -1/n_data, rows of the model s = +1/n_model, so that each phase is divided by
its own number of rows. With m the hidden means of a row, μ and λ the offsets (zero for the ordinary gradient):

    g_W = Σ s (v - μ) (m - λ)ᵀ        g_b = Σ s v - g_W λ        g_c = Σ s m - g_Wᵀ μ

and -½ precision Σ s v² for the log-precision of Gaussian visible units. This is the step in (W, b, c) that equals a
plain gradient step in the parameters of E = -(v - μ)ᵀ W (h - λ) - b'ᵀv - c'ᵀh, with b' = b + W λ and c' = c + Wᵀ μ
(docs/training.md).

Source: Montavon and Müller, Deep Boltzmann machines and the centering trick (2012); Melchior, Fischer and Wiskott, How
to center deep Boltzmann machines, JMLR 17(99) (2016), of whose variants this is dd: both offsets are means of the data.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bm_fast import ops
from bm_fast.graph import Kind
from bm_fast.ops.backends import backend
from bm_fast.rbm import RBM

OFFSET_RATE = 0.01
"""Weight of the newest batch in the moving averages of the offsets, as in the experiments of Melchior et al."""


class Block:
    """The rows of one update: ``n_data`` data rows directly followed by ``n_model`` model rows.

    visible: states of all rows ``[n_data + n_model, n_visible]``; data is its first part.
    means: hidden means of all rows, float32; data_means and model_means are its two parts.
    shares: float32 ``[n, 2]``, 1/n_data or 1/n_model in the column of the row's phase, 0 in the other.
    signs: float32 ``[n]``, s of the formulas above.
    """

    def __init__(self, visible: Tensor, means: Tensor, n_data: int) -> None:
        n = len(visible)
        self.n_data, self.n_model = n_data, n - n_data
        self.visible, self.means = visible, means
        self.data = visible[:n_data]
        self.data_means, self.model_means = means[:n_data], means[n_data:]
        self.shares = means.new_zeros(n, 2)
        self.shares[:n_data, 0] = 1 / n_data
        self.shares[n_data:, 1] = 1 / self.n_model
        self.signs = self.shares[:, 1] - self.shares[:, 0]


class Rows:
    """Memory for the rows of an update; data rows end where model rows begin.

    So both phases of any smaller last batch still lie side by side, one statistics call gives their difference, and
    persistent chains can keep their visible states in ``model_visible``.
    """

    def __init__(self, rbm: RBM, batch_size: int, n_chains: int) -> None:
        n = batch_size + n_chains
        dtype = torch.uint8 if rbm.visible is Kind.BERNOULLI else torch.float32
        self.batch_size = batch_size
        self._visible = torch.zeros(n, rbm.n_visible, dtype=dtype, device=rbm.device)
        self._means = torch.zeros(n, rbm.n_hidden, device=rbm.device)
        self.model_visible = self._visible[batch_size:]
        self._blocks: dict[tuple[int, int], Block] = {}

    def block(self, n_data: int, n_model: int) -> Block:
        """The rows of an update with this many data and model rows."""
        if (n_data, n_model) not in self._blocks:
            part = slice(self.batch_size - n_data, self.batch_size + n_model)
            self._blocks[n_data, n_model] = Block(self._visible[part], self._means[part], n_data)
        return self._blocks[n_data, n_model]


class Offsets:
    """What centring subtracts: moving averages of the visible states and of the hidden means of the data.

    visible starts at the mean of the data set where that is known, else at the mean of the first batch, as hidden does.
    """

    def __init__(self, rbm: RBM) -> None:
        self.visible = torch.zeros(rbm.n_visible, device=rbm.device)
        self.hidden = torch.zeros(rbm.n_hidden, device=rbm.device)
        self.visible_known = self.hidden_known = False

    def load(self, visible: Tensor, hidden: Tensor, visible_known: bool, hidden_known: bool) -> None:
        """Takes up the values that ``vars`` gave."""
        self.visible.copy_(visible)
        self.hidden.copy_(hidden)
        self.visible_known, self.hidden_known = visible_known, hidden_known

    def start_at(self, data_mean: Tensor) -> None:
        self.visible.copy_(data_mean)
        self.visible_known = True

    def follow(self, visible_mean: Tensor, hidden_mean: Tensor) -> None:
        self.visible.lerp_(visible_mean, OFFSET_RATE if self.visible_known else 1)
        self.hidden.lerp_(hidden_mean, OFFSET_RATE if self.hidden_known else 1)
        self.visible_known = self.hidden_known = True


class GradientMemory:
    """Memory for the gradients of parameters, used again in every update.

    Between updates it lies behind ``.grad``, where optimisers and callbacks may drop it or make something else of it.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._named = list(named_parameters)
        self._of = {id(p): torch.zeros_like(p, requires_grad=False) for _, p in self._named}

    def __getitem__(self, parameter: nn.Parameter) -> Tensor:
        try:
            return self._of[id(parameter)]
        except KeyError:
            shape = list(parameter.shape)
            raise ValueError(
                f"model: expected the parameters that this trainer was made with, got another tensor {shape}; "
                "make a new trainer"
            ) from None

    def check(self) -> None:
        """ValueError, naming the parameter, unless all of it still fits."""
        for name, parameter in self._named:
            ops.check(f"{name}.grad", self._of[id(parameter)], torch.float32, parameter.shape, parameter.device)

    def hand_out(self) -> None:
        """Puts it behind ``.grad``."""
        for _, parameter in self._named:
            parameter.grad = self._of[id(parameter)]


class Gradient:
    """Writes the gradient of one update into ``.grad`` of an RBM's parameters; its memory is used again and again.

    out: that of the last update in weight, visible bias and hidden bias.
    """

    def __init__(self, rbm: RBM) -> None:
        self._rbm = rbm
        self._memory = GradientMemory(rbm.named_parameters())
        self.out = (self._memory[rbm.weight], self._memory[rbm.visible_bias], self._memory[rbm.hidden_bias])
        self._phases = (
            torch.zeros(2, rbm.n_visible, device=rbm.device),
            torch.zeros(2, rbm.n_hidden, device=rbm.device),
        )
        self._squares = torch.zeros(2, rbm.n_visible, device=rbm.device)

    @torch.no_grad()
    def fill(self, block: Block, precision: Tensor | None, offsets: Offsets | None) -> None:
        """From a block whose states and means are complete; ``offsets`` (None: no centring) first follow its data.

        precision: that of the machine that ran the update, for Gaussian visible units.
        """
        phases = self._phases
        self._memory.check()
        sums = backend("visible", block.visible)  # rows, phases and offsets are this module's own, and fit
        sums.statistics(block.shares, block.visible, phases[0])
        sums.statistics(block.shares, block.means, phases[1])
        if offsets is not None:
            offsets.follow(phases[0][0], phases[1][0])
        centring = None if offsets is None else (offsets.visible, offsets.hidden)
        sums.gradient(block.visible, block.means, block.signs, phases, centring, self.out)
        rbm = self._rbm
        if rbm.log_precision is not None and precision is not None:
            squares = ops.statistics(block.shares, block.visible.square(), self._squares)
            torch.mul(squares[0] - squares[1], precision / 2, out=self._memory[rbm.log_precision])
        self._memory.hand_out()

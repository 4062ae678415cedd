"""A drop-in for ``sklearn.neural_network.BernoulliRBM``; needs the extra ``sklearn``."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

try:
    import scipy.sparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("bm_fast.sklearn needs scikit-learn; install it with pip install 'bm_fast[sklearn]'") from error

from bm_fast import ops
from bm_fast.chains import Chains
from bm_fast.program import full_update, gibbs_program
from bm_fast.rbm import HIDDEN, RBM, VISIBLE
from bm_fast.reference import Purpose
from bm_fast.training.estimators import PCD
from bm_fast.training.gradient import Block, Gradient

CHUNK = 4096
"""Rows that are made dense and computed at a time."""


class BernoulliRBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An RBM of Bernoulli units with the parameters, attributes and methods of scikit-learn's class of this name.

    It learns by persistent contrastive divergence, one Gibbs sweep per batch. What differs from scikit-learn: rows are
    shuffled in each iteration; the mean over the ``batch_size`` chains is taken over just these, however small the last
    batch is; ``score_samples`` depends on neither the order of the rows nor on the other rows; arithmetic is float32.

    Grey values in [0, 1] stand for the states of visible units, as in scikit-learn. So do values outside, which no
    Bernoulli unit takes: ``fit`` warns of them.

    n_components: number of hidden units.
    learning_rate: step along the mean gradient of a batch.
    batch_size: rows per update, and number of persistent chains.
    n_iter: passes over the rows in ``fit``.
    verbose: whether ``fit`` prints a line for each pass.
    random_state: int, ``RandomState`` or None; with an int, each ``fit`` starts anew and gives the same result.

    components_: float32 ``[n_components, n_features]``, the weights.
    intercept_hidden_, intercept_visible_: float32 ``[n_components]`` and ``[n_features]``, the biases.
    h_samples_: float32 0/1 ``[batch_size, n_components]``, hidden units of the persistent chains.
    n_features_in_, feature_names_in_: as in every scikit-learn estimator.

    Source: Tieleman, Training RBMs using approximations to the likelihood gradient (2008).
    """

    components_: NDArray[np.float32]
    intercept_hidden_: NDArray[np.float32]
    intercept_visible_: NDArray[np.float32]
    h_samples_: NDArray[np.float32]

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learns from X ``[n_samples, n_features]``, dense or sparse, from the start; y is not used.

        ValueError for parameters out of range and for X that is not finite, as in every scikit-learn estimator.
        """
        self._check_parameters()
        rows = self._rows(X, reset=True)
        self.random_state_ = check_random_state(self.random_state)
        self._initialise(rows.shape[1])
        begin = time.perf_counter()
        for iteration in range(1, self.n_iter + 1):
            order = self.random_state_.permutation(rows.shape[0])
            self._learn(rows[order[i : i + self.batch_size]] for i in range(0, len(order), self.batch_size))
            if self.verbose:
                end = time.perf_counter()
                print(
                    f"[{type(self).__name__}] Iteration {iteration}, "
                    f"pseudo-likelihood = {self._score(rows).mean():.2f}, time = {end - begin:.2f}s"
                )
                begin = end
        return self

    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Makes one update from X ``[n_samples, n_features]`` as one batch; the chains go on. Errors as in ``fit``."""
        self._check_parameters()
        first = not hasattr(self, "components_")
        rows = self._rows(X, reset=first)
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        if first:
            self._initialise(rows.shape[1])
        self._learn([rows])
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """P(h = 1 | v = X), ``[n_samples, n_components]`` in the dtype of X, for X ``[n_samples, n_features]``."""
        check_is_fitted(self)
        rows = self._rows(X)
        machine, update = self._rbm().machine(), full_update(_GRAPH, HIDDEN)
        means = np.empty((rows.shape[0], len(self.components_)), dtype=rows.dtype)
        for start, values in _chunks(rows):
            unread = torch.zeros(len(values), means.shape[1])
            means[start : start + len(values)] = machine.layer_means(update, (values, unread)).numpy()
        return means

    def gibbs(self, v: ArrayLike) -> NDArray[np.bool_]:
        """One Gibbs sweep, hidden units and then visible ones: bool ``[n_samples, n_features]`` from v of this shape.

        Successive calls draw different random numbers.
        """
        check_is_fitted(self)
        rows = self._rows(v, dtypes=(np.float64, np.float32, np.bool_))
        machine = self._rbm().machine()
        update, sample_visible = full_update(_GRAPH, HIDDEN), gibbs_program(_GRAPH, clamped=(HIDDEN,))
        seed = self._seed()
        drawn = np.empty(rows.shape, dtype=np.bool_)
        for start, values in _chunks(rows):
            hidden = torch.zeros(len(values), len(self.components_))
            chains = Chains(
                (
                    torch.zeros(values.shape, dtype=torch.uint8),
                    ops.bernoulli(
                        machine.layer_means(update, (values, hidden)),
                        torch.arange(start, start + len(values)),
                        seed=seed,
                        layer=HIDDEN,
                        purpose=Purpose.BINARISE,
                    ),
                ),
                seed,
                first_chain=start,
            )
            machine.sweep(sample_visible, chains, 1)
            drawn[start : start + len(values)] = chains.layers[VISIBLE].numpy()
        return drawn

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """n_features log σ(F(X with one unit flipped) - F(X)), float64 ``[n_samples]``: a pseudo-log-likelihood.

        Which unit is flipped depends on the row's values and on ``random_state``; the mean over all units is the exact
        pseudo-log-likelihood.
        """
        check_is_fitted(self)
        return self._score(self._rows(X))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # --- parts ------------------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        for name, kind, least in (("n_components", Integral, 1), ("batch_size", Integral, 1), ("n_iter", Integral, 0)):
            value = getattr(self, name)
            if not isinstance(value, kind) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        rate = self.learning_rate
        if not isinstance(rate, Real) or not 0 < rate < float("inf"):
            raise ValueError(f"learning_rate: expected a finite number above 0, got {rate!r}")

    def _rows(self, X: ArrayLike, *, reset: bool = False, dtypes: tuple[type, ...] = (np.float64, np.float32)) -> Any:
        """X as scikit-learn checks it: finite, as wide as in ``fit``, a numpy array or a sparse one of rows."""
        return validate_data(self, X, accept_sparse="csr", reset=reset, dtype=dtypes)

    def _seed(self) -> int:
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        return int(self.random_state_.randint(2**63 - 1, dtype=np.int64))

    def _initialise(self, n_features: int) -> None:
        rbm = RBM(n_features, self.n_components, seed=self._seed())
        self._keep(rbm)
        self._n_features_out = self.n_components  # for get_feature_names_out
        self.h_samples_ = rbm.chains(self.batch_size, self._seed()).layers[HIDDEN].float().numpy()

    def _rbm(self) -> RBM:
        """The model that the public attributes describe."""
        rbm = RBM(self.components_.shape[1], self.components_.shape[0], weight_scale=0)
        with torch.no_grad():
            rbm.weight.copy_(torch.as_tensor(self.components_).T)
            rbm.visible_bias.copy_(torch.as_tensor(self.intercept_visible_))
            rbm.hidden_bias.copy_(torch.as_tensor(self.intercept_hidden_))
        return rbm

    def _keep(self, rbm: RBM) -> None:
        self.components_ = rbm.weight.detach().T.contiguous().numpy()
        self.intercept_visible_ = rbm.visible_bias.detach().numpy()
        self.intercept_hidden_ = rbm.hidden_bias.detach().numpy()

    def _learn(self, batches: Iterator[Any] | list[Any]) -> None:
        """One update from each batch of rows."""
        rbm, estimator = self._rbm(), PCD(len(self.h_samples_))
        optimizer, gradient = torch.optim.SGD(rbm.parameters(), lr=self.learning_rate), Gradient(rbm)
        hidden = torch.from_numpy(self.h_samples_).to(torch.uint8)
        chains = Chains((hidden.new_zeros(len(hidden), rbm.n_visible), hidden), self._seed())
        inside = True
        for batch in batches:
            values = _values(batch)
            n_data, n = len(values), len(values) + chains.n_chains
            inside = inside and (values.dtype is torch.uint8 or 0 <= float(values.min()) <= float(values.max()) <= 1)
            block = Block(values.new_empty(n, rbm.n_visible), torch.zeros(n, rbm.n_hidden), n_data)
            block.data.copy_(values)
            estimator.run(rbm.machine(), chains, block)
            block.visible[n_data:].copy_(chains.layers[VISIBLE])
            gradient.fill(block, None, None)
            optimizer.step()
        self._keep(rbm)
        self.h_samples_ = hidden.float().numpy()
        if not inside:
            warnings.warn("X: expected values from 0 to 1, which units of this model take; got others", stacklevel=3)

    def _score(self, rows: Any) -> NDArray[np.float64]:
        machine, summed_out = self._rbm().machine(), (full_update(_GRAPH, HIDDEN),)
        salt = int(check_random_state(self.random_state).randint(2**32, dtype=np.uint32))
        n_features, scores = rows.shape[1], np.empty(rows.shape[0])
        for start, values in _chunks(rows):
            # a hash of the row decides, so that a row's score does not depend on its place or on the other rows
            hashes = [zlib.crc32(row.tobytes(), salt) for row in values.float().numpy()]
            units = torch.tensor(hashes)[:, None] % n_features
            flipped = values.scatter(1, units, 1 - values.gather(1, units))
            unread = torch.zeros(len(values), len(self.components_), dtype=torch.uint8)
            energy, other = (machine.free_energy(summed_out, (v, unread))[0] for v in (values, flipped))
            scores[start : start + len(values)] = n_features * torch.nn.functional.logsigmoid(other - energy).numpy()
        return scores


_GRAPH = RBM(1, 1).graph  # programs name layers and couplings only, so that of one size serves all


def _values(rows: Any) -> Tensor:
    """Dense rows: uint8 where all are 0 or 1, which the kernels take faster, else float32."""
    dense = rows.toarray() if scipy.sparse.issparse(rows) else rows
    binary = dense.dtype == bool or bool(((dense == 0) | (dense == 1)).all())
    return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.uint8 if binary else np.float32))


def _chunks(rows: Any) -> Iterator[tuple[int, Tensor]]:
    """First row and values of each chunk."""
    for start in range(0, rows.shape[0], CHUNK):
        yield start, _values(rows[start : start + CHUNK])

"""The variational autoencoder: a directed model of data, and the recognition network that inverts it approximately."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from bm_fast import checkpoints
from bm_fast.arguments import count
from bm_fast.arrays import Array, given_kind
from bm_fast.ops import usable
from bm_fast.vae.networks import ACTIVATIONS, Gaussian, Observation

Kind = Literal["bernoulli", "gaussian"]
Form = Literal["kl", "importance"]

Route = Literal["score", "path"]
"""How gradients reach the recognition network: through everything, or through the samples alone."""


class VAE(nn.Module):
    """A variational or importance-weighted autoencoder; the difference lies in how it is trained.

    p(x, h) = p(x | h¹) p(h¹ | h²) … p(hᴸ)        p(hᴸ) = N(0, 1)
    q(h | x) = q(h¹ | x) q(h² | h¹) … q(hᴸ | hᴸ⁻¹)

    Every q and every p between hidden layers is a Gaussian with independent units, mean and log standard deviation
    from a perceptron. p(x | h¹) has Bernoulli pixels, or Gaussian ones with a learned standard deviation each.

    n_visible: units of x. latents: units of h¹ to hᴸ. hidden: for each of these layers the sizes of the perceptron
        between it and the layer below, seen from below; both directions have them. Empty: linear maps.
    activation: "tanh", "relu", "softplus" or "elu". visible: "bernoulli" (x is 0/1) or "gaussian" (x is real).
    seed: decides the initial weights.

    Methods take float32 or uint8 ``[n, n_visible]`` on the device of the model, checked for shape and range, and draw
    from ``generator`` (torch's global one by default). A numpy array gives numpy arrays back, without gradients.

    Source: Kingma and Welling (2014); Burda, Grosse and Salakhutdinov, Importance weighted autoencoders (2016).
    """

    name = "vae"
    """What checkpoints call it."""

    def __init__(
        self,
        n_visible: int,
        latents: Sequence[int] = (50,),
        hidden: Sequence[Sequence[int]] = ((200, 200),),
        activation: str = "tanh",
        visible: Kind = "bernoulli",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(n_visible, latents, hidden)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if visible not in ("bernoulli", "gaussian"):
            raise ValueError(f"visible: expected 'bernoulli' or 'gaussian', got {visible!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 to 2^64 - 1, got {seed}")
        self.n_visible, self.latents = n_visible, tuple(latents)
        self.hidden = tuple(tuple(sizes) for sizes in hidden)
        self.activation, self.visible = activation, visible
        generator = torch.Generator().manual_seed(seed)
        below = (n_visible, *latents)
        self.recognition = nn.ModuleList(
            Gaussian(below[i], self.hidden[i], units, activation, generator) for i, units in enumerate(latents)
        )
        self.priors = nn.ModuleList(
            Gaussian(latents[i + 1], self.hidden[i + 1][::-1], latents[i], activation, generator)
            for i in range(len(latents) - 1)
        )
        self.observation = Observation(
            latents[0], self.hidden[0][::-1], n_visible, activation, visible == "bernoulli", generator
        )

    @property
    def device(self) -> torch.device:
        return self.observation.output.weight.device

    def extra_repr(self) -> str:
        return f"{self.n_visible}, latents={self.latents}, hidden={self.hidden}, visible={self.visible!r}"

    # --- bounds -----------------------------------------------------------------------------------------------------

    def log_weights(
        self,
        x: Array,
        k: int = 1,
        generator: torch.Generator | None = None,
        *,
        form: Form = "importance",
        route: Route = "score",
    ) -> Array:
        """log p(x, h) / q(h | x) for k samples h from q(h | x), float32 ``[k, n]``, differentiable.

        form: "kl" takes log p(hᴸ) / q(hᴸ | hᴸ⁻¹) by its mean, −KL(q(hᴸ | hᴸ⁻¹) ‖ N(0, 1)), which changes no mean.
        route: "path" keeps the parameters of q in log q constant, so that gradients reach them through h alone.
        """
        count("k", k)
        if form not in ("kl", "importance"):
            raise ValueError(f"form: expected 'kl' or 'importance', got {form!r}")
        if route not in ("score", "path"):
            raise ValueError(f"route: expected 'score' or 'path', got {route!r}")
        return given_kind(self.log_weights_and_samples(self.rows(x), k, generator, form, route)[0], x)

    def log_weights_and_samples(
        self, x: Tensor, k: int, generator: torch.Generator | None, form: Form = "importance", route: Route = "score"
    ) -> tuple[Tensor, list[Tensor]]:
        """``log_weights`` of rows that are checked already, and h¹ to hᴸ as the densities see them, ``[k, n, units]``.

        With the route "path" these are aliases: a gradient that arrives at one of them has yet to go on to the
        parameters of q and to the layers below, and a hook can change its weight there.
        """
        terms: list[Tensor] = []
        seen: list[Tensor] = []
        given = x
        top = len(self.latents) - 1
        for layer, network in enumerate(self.recognition):
            mean, log_scale = network(given)
            mean, log_scale = mean.float(), log_scale.float()
            noise = torch.randn(k, len(x), self.latents[layer], generator=generator, device=x.device)
            h = torch.addcmul(mean, log_scale.exp(), noise)
            as_seen = h.view_as(h) if route == "path" else h
            seen.append(as_seen)
            if layer == top and form == "kl":
                terms.append(0.5 * (1 + 2 * log_scale - mean.square() - (2 * log_scale).exp()).sum(-1))
            else:
                # log q and log p without the ½ log 2π that both have
                if route == "path":
                    mean, log_scale = self._with_constant_parameters(layer, x if layer == 0 else seen[layer - 1])
                    minus_log_q = _half_square(as_seen, mean, log_scale) + log_scale.sum(-1)
                else:
                    minus_log_q = (0.5 * noise.square() + log_scale).sum(-1)
                terms.append(minus_log_q)
                if layer == top:
                    terms.append(-0.5 * as_seen.square().sum(-1))
            given = h
        for layer, network in enumerate(self.priors):
            mean, log_scale = (value.float() for value in network(seen[layer + 1]))
            terms.append(-_half_square(seen[layer], mean, log_scale) - log_scale.sum(-1))
        total = self.observation.log_probability(x, seen[0])
        for term in terms:
            total = total + term
        return total, seen

    def _with_constant_parameters(self, layer: int, given: Tensor) -> tuple[Tensor, Tensor]:
        network = self.recognition[layer]
        constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
        mean, log_scale = functional_call(network, constants, (given,))
        return mean.float(), log_scale.float()

    def elbo(self, x: Array, k: int = 1, generator: torch.Generator | None = None, *, form: Form = "kl") -> Array:
        """The variational bound E log p(x, h) / q(h | x) <= log p(x), from k samples, ``[n]``, differentiable."""
        return given_kind(self.log_weights(self.rows(x), k, generator, form=form).mean(0), x)

    def iwae_bound(self, x: Array, k: int, generator: torch.Generator | None = None) -> Array:
        """One draw of log (1/k) Σᵢ wᵢ, whose mean is L_k, ``[n]``, differentiable.

        L_1 is the variational bound, L_k <= L_{k+1} <= log p(x), and L_k approaches log p(x) (Burda et al., theorem 1).
        All k samples are in memory at once; ``log_likelihood`` takes any k.
        """
        return given_kind(self.log_weights(self.rows(x), k, generator).logsumexp(0) - math.log(k), x)

    # --- means and samples ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def posterior(self, x: Array) -> list[tuple[Array, Array]]:
        """Mean and standard deviation of q for h¹ to hᴸ, ``[n, units]`` each, with the means of the layer below."""
        given, found = self.rows(x), []
        for network in self.recognition:
            mean, log_scale = network(given)
            found.append((given_kind(mean, x), given_kind(log_scale.exp(), x)))
            given = mean
        return found

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """E(x | h¹) for n ancestral samples of h¹, float32 ``[n, n_visible]``."""
        count("n", n)
        h = torch.randn(n, self.latents[-1], generator=generator, device=self.device)
        for network in reversed(self.priors):
            h = _draw(network(h), generator)
        return self.observation.means(h)

    @torch.no_grad()
    def decode(self, top: Array, generator: torch.Generator | None = None) -> Array:
        """E(x | h¹) with h¹ drawn downwards from hᴸ = top, ``[n, n_visible]``; without generator by the means.

        top: float32 ``[n, units of hᴸ]``.
        """
        h = self._tensor("top", top)
        if h.dtype is not torch.float32:
            raise ValueError(f"top: expected float32, got {h.dtype}")
        if h.dim() != 2 or h.shape[1] != self.latents[-1] or len(h) < 1:
            raise ValueError(f"top: expected shape [n, {self.latents[-1]}] with n >= 1, got {list(h.shape)}")
        for network in reversed(self.priors):
            h = network(h)[0] if generator is None else _draw(network(h), generator)
        return given_kind(self.observation.means(h), top)

    @torch.no_grad()
    def reconstruct(self, x: Array) -> Array:
        """E(x | h) with every h at its mean given the layer below, ``[n, n_visible]``."""
        return given_kind(self.observation.means(self.posterior(self.rows(x))[0][0]), x)

    # --- data, files ------------------------------------------------------------------------------------------------

    def rows(self, x: Tensor | NDArray[np.generic], name: str = "x", *, grey: bool = False) -> Tensor:
        """``x`` as float32 ``[n, n_visible]``, checked; ValueError names what was expected and what came.

        Bernoulli pixels are 0 or 1 (with ``grey`` anything between as well), Gaussian ones finite.
        """
        values = self._tensor(name, x)
        if values.dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"{name}: expected float32 or uint8, got {values.dtype}")
        if values.dim() != 2 or values.shape[0] < 1 or values.shape[1] != self.n_visible:
            raise ValueError(f"{name}: expected shape [n, {self.n_visible}] with n >= 1, got {list(values.shape)}")
        low, high = (float(end) for end in torch.aminmax(values))
        if self.visible == "gaussian":
            if not (low > -math.inf and high < math.inf):
                raise ValueError(f"{name}: expected finite values, got {low} to {high}")
        elif not (low >= 0 and high <= 1):
            hint = "; divide grey levels by 255 first" if values.dtype is torch.uint8 else ""
            raise ValueError(f"{name}: expected values from 0 to 1, got {low:g} to {high:g}{hint}")
        elif not grey and values.dtype is torch.float32:
            between = values[(values != 0) & (values != 1)]
            if len(between):
                raise ValueError(f"{name}: expected 0 and 1 only, got {float(between[0]):g}; binarise it first")
        return values.float()

    def _tensor(self, name: str, given: Tensor | NDArray[np.generic]) -> Tensor:
        if isinstance(given, np.ndarray) and not np.issubdtype(given.dtype, np.number):
            raise ValueError(f"{name}: expected numbers, got {given.dtype}")
        values = torch.from_numpy(np.array(given)).to(self.device) if isinstance(given, np.ndarray) else given
        if not isinstance(values, Tensor):
            raise ValueError(f"{name}: expected a torch tensor or a numpy array, got {type(given).__name__}")
        if values.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, where the model is, got {values.device}")
        return values

    @torch.no_grad()
    def initialise_biases(self, data: Tensor | NDArray[np.generic]) -> None:
        """Sets the output biases (and scales) so that, without weights, pixels have their mean (and variance).

        Bernoulli: logit of the mean, limited to 0.001 … 0.999 (Burda et al.). Gaussian: mean, and log standard
        deviation of at least 1/30 of the average one, so that constant pixels keep a density.
        """
        values = self.rows(data, "data", grey=True)
        mean = values.mean(0, dtype=torch.float64)
        if self.observation.log_scale is None:
            self.observation.output.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))
            return
        variance = (values.square().mean(0, dtype=torch.float64) - mean.square()).clamp(min=0)
        if float(variance.sum()) == 0:
            raise ValueError("data: expected values that vary, got the same row again and again")
        self.observation.output.bias.copy_(mean)
        self.observation.log_scale.copy_(0.5 * variance.clamp(min=1e-3 * float(variance.mean())).log())

    def settings(self) -> dict[str, Any]:
        """What a checkpoint holds of a model: its shape and its parameters."""
        return {
            "n_visible": self.n_visible,
            "latents": self.latents,
            "hidden": self.hidden,
            "activation": self.activation,
            "visible": self.visible,
            "parameters": dict(self.state_dict()),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a safetensors file, atomically; errors as in ``checkpoints.save``."""
        checkpoints.save(path, {self.name: self.settings()})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> VAE:
        """The model in a file written by ``VAE.save`` or by its trainer; errors as in ``checkpoints.load``.

        RuntimeError where PyTorch cannot use ``device``.
        """
        device = usable(device, kernels=False)
        held = dict(checkpoints.entry(checkpoints.load(path), cls.name, path))
        parameters = held.pop("parameters")
        model = cls(**held)
        model.load_state_dict(parameters)
        return model.to(device)


def _draw(given: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
    """A sample of a Gaussian layer with this mean and log standard deviation."""
    mean, log_scale = given
    return mean + log_scale.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)


def _half_square(h: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return 0.5 * ((h - mean) * torch.exp(-log_scale)).square().sum(-1)


def _check_sizes(n_visible: int, latents: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    count("n_visible", n_visible)
    if len(latents) < 1:
        raise ValueError("latents: expected the units of at least one layer, got none")
    for layer, units in enumerate(latents):
        count(f"latents[{layer}]", units)
    if len(hidden) != len(latents):
        raise ValueError(
            f"hidden: expected sizes for each of the {len(latents)} stochastic layers, as in "
            f"{[[200, 200]] * len(latents)}, got {len(hidden)}: {hidden!r}"
        )
    for layer, sizes in enumerate(hidden):
        if isinstance(sizes, int):
            raise ValueError(f"hidden[{layer}]: expected a sequence of sizes, as in [200, 200], got {sizes}")
        for i, units in enumerate(sizes):
            count(f"hidden[{layer}][{i}]", units)

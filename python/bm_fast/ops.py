"""The operations that everything else is built from; the only importer of the compiled module.

Arguments are checked here, once, and never converted: a kernel gets addresses of contiguous tensors of the right dtype.
The backend is the compiled module, or ``reference`` where ``BM_FAST_BACKEND=reference`` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from bm_fast import reference
from bm_fast.chains import Chains, empty_layers
from bm_fast.graph import Graph, Kind
from bm_fast.parameters import Parameters, fraction_bits, snapshot
from bm_fast.program import Program, Update, check_program
from bm_fast.reference import Purpose

_why_missing: ImportError | None = None
try:
    from bm_fast import _C
except ImportError as error:
    _C, _why_missing = None, error  # type: ignore[assignment]

MAX_CHAINS = 2**31
MAX_SEED = 2**64 - 1
_MAX_WORD = 2**32 - 1  # of the random counter
_MAX_FLOAT = torch.finfo(torch.float32).max
_STATE_DTYPES = {Kind.BERNOULLI: torch.uint8, Kind.GAUSSIAN: torch.float32}


def _native() -> bool:
    choice = os.environ.get("BM_FAST_BACKEND", "native")
    if choice not in ("native", "reference"):
        raise ValueError(f"BM_FAST_BACKEND: expected 'native' or 'reference', got {choice!r}")
    if choice == "native" and _C is None:
        raise ImportError(
            "the compiled module bm_fast._C cannot be loaded; reinstall, or set BM_FAST_BACKEND=reference"
        ) from _why_missing
    return choice == "native"


def _require_cpu(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: the kernels of this build run on the CPU, got a tensor on {tensor.device}")


def check(
    name: str,
    tensor: Tensor,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """ValueError, naming the argument, unless the tensor is contiguous and of this dtype, shape and device."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a torch tensor, got {type(tensor).__name__}")
    if (
        tensor.dtype not in dtypes
        or tuple(tensor.shape) != shape
        or tensor.device != device
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"{name}: expected a contiguous {' or '.join(str(d) for d in dtypes)} tensor {list(shape)} on {device}, "
            f"got {'' if tensor.is_contiguous() else 'non-contiguous '}{tensor.dtype} {list(tensor.shape)} "
            f"on {tensor.device}"
        )


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """``value`` as int; ValueError, naming the argument, unless it is a whole number from ``low`` to ``high``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number, {low} to {high}, got {value!r}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value!r}")
    return number


def _check_matrix(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dim() != 2:
        got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: expected a torch tensor of two dimensions, got {got}")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Machine:
    """A machine with its parameters fixed on the integer grid, ready to run; see ``Parameters`` for what is sampled.

    Building one copies the parameters. Kernels may keep derived tables in it, so reuse it while parameters stay.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.graph: Graph = parameters.graph
        self.device = parameters.biases[0].device
        _require_cpu("biases[0]", parameters.biases[0])
        self._impl: Any = None
        if _native():
            self._impl = _C.Machine(
                [
                    (layer.name, layer.units, int(layer.kind), _address(bias), _address(precision))
                    for layer, bias, precision in zip(
                        self.graph.layers, parameters.biases, parameters.precisions, strict=True
                    )
                ],
                [
                    (coupling.lower, coupling.upper, _address(weights), bits)
                    for coupling, weights, bits in zip(
                        self.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
                    )
                ],
                torch.get_num_threads(),
            )

    @classmethod
    def build(
        cls,
        graph: Graph,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        precisions: Sequence[Tensor | None] | None = None,
    ) -> Machine:
        """From float parameters; arguments and errors as in ``parameters.snapshot``."""
        return cls(snapshot(graph, weights, biases, precisions, quantise))

    def chains(self, n_chains: int, seed: int, first_chain: int = 0) -> Chains:
        """Chains at sweep 0: fair coins for Bernoulli layers, zeros for Gaussian ones.

        >>> machine.chains(1024, seed=0)  # doctest: +SKIP
        """
        seed = whole_number("seed", seed, 0, MAX_SEED)
        first_chain = whole_number("first_chain", first_chain, 0, MAX_CHAINS - 1)
        n_chains = whole_number("n_chains", n_chains, 1, MAX_CHAINS - first_chain)
        layers = empty_layers(self.graph, n_chains, self.device)
        rows = torch.arange(first_chain, first_chain + n_chains)
        for i, (layer, state) in enumerate(zip(self.graph.layers, layers, strict=True)):
            if layer.kind is Kind.BERNOULLI:
                bernoulli(torch.full(state.shape, 0.5), rows, state, seed=seed, layer=i, purpose=Purpose.INITIAL)
        return Chains(layers, seed, 0, first_chain)

    def sweep(
        self,
        program: Program,
        chains: Chains,
        n_sweeps: int,
        *,
        beta: Tensor | None = None,
        base: Sequence[Tensor] | None = None,
        clamp: Mapping[int, Tensor] | None = None,
        means: Mapping[int, Tensor] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Runs ``n_sweeps`` sweeps of a program in place and advances ``chains.sweep``.

        beta: inverse temperature of each chain, float32 ``[n_chains]``, default 1.
        base: biases at beta = 0, per layer float32 ``[units]``; default: no base, beta scales the whole energy.
        clamp: layer -> uint8 ``[n_chains, units]``, 1 where a unit keeps its value.
        means: layer -> float32 ``[n_chains, units]`` that receives the means from which the last sweep drew that layer.
        progress: called now and then with the number of sweeps done in this call.

        Ctrl-C stops within a second: chains then hold a whole number of sweeps, and ``chains.sweep`` says which.
        """
        clamp, means = clamp or {}, means or {}
        self._check_program(program)
        self._check_states("chains.layers", chains.layers, states=True)
        n_chains = chains.n_chains
        self._check_beta(beta, base, n_chains, program)
        for what, masks, dtype in (("clamp", clamp, torch.uint8), ("means", means, torch.float32)):
            for i, mask in masks.items():
                if not 0 <= i < len(self.graph.layers):
                    raise ValueError(f"{what}: no layer {i} in a graph of {len(self.graph.layers)}")
                check(f"{what}[{i}]", mask, dtype, (n_chains, self.graph.layers[i].units), self.device)
        seed = whole_number("chains.seed", chains.seed, 0, MAX_SEED)
        first_chain = whole_number("chains.first_chain", chains.first_chain, 0, MAX_CHAINS - n_chains)
        first = whole_number("chains.sweep", chains.sweep, 0, 2**32)
        n_sweeps = whole_number("n_sweeps", n_sweeps, 0, 2**32 - first)

        def advance(done: int) -> None:
            chains.sweep = first + done
            if progress is not None:
                progress(done)

        if self._impl is None:
            for s in range(n_sweeps):
                reference.sweep(
                    self.parameters,
                    program,
                    chains.layers,
                    1,
                    seed=seed,
                    first_chain=first_chain,
                    first_sweep=first + s,
                    beta=beta,
                    base=base,
                    clamp=clamp,
                    means=means,
                )
                advance(s + 1)
        else:
            done = torch.zeros(1, dtype=torch.int64)  # written by the kernel: Ctrl-C may come before `advance` begins
            try:
                self._impl.sweep(
                    _plain(program),
                    [layer.data_ptr() for layer in chains.layers],
                    n_chains,
                    n_sweeps,
                    seed,
                    first_chain,
                    first,
                    _address(beta),
                    [] if base is None else [_address(b) for b in base],
                    [_address(clamp.get(i)) for i in range(len(self.graph.layers))],
                    [_address(means.get(i)) for i in range(len(self.graph.layers))],
                    torch.get_num_threads(),
                    done.data_ptr(),
                    advance,
                )
            finally:
                chains.sweep = first + int(done)

    def layer_means(
        self,
        update: Update,
        values: Sequence[Tensor],
        *,
        beta: Tensor | None = None,
        base: Sequence[Tensor] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Mean of each unit of one layer given the others, float32 ``[n_chains, units]``.

        values: per layer uint8 0/1 or float32 (means, probabilities, Gaussian units) ``[n_chains, units]``.
        """
        self._check_program(((update,),))
        self._check_states("values", values, states=False)
        n_chains = values[0].shape[0]
        self._check_beta(beta, base, n_chains, ((update,),))
        shape = (n_chains, self.graph.layers[update.layer].units)
        out = torch.empty(shape, device=self.device) if out is None else out
        check("out", out, torch.float32, shape, self.device)
        if self._impl is None:
            reference.layer_means(self.parameters, update, values, out, beta=beta, base=base)
        else:
            self._impl.layer_means(
                _plain(((update,),))[0][0],
                _values(values),
                n_chains,
                out.data_ptr(),
                _address(beta),
                [] if base is None else [_address(b) for b in base],
                torch.get_num_threads(),
            )
        return out

    def energy(self, layers: Sequence[Tensor]) -> Tensor:
        """Energy of each chain at beta = 1, float64 ``[n_chains]``; layers as in ``Chains.layers``."""
        self._check_states("layers", layers, states=True)
        if self._impl is None:
            return reference.energy(self.parameters, layers)
        out = torch.empty(layers[0].shape[0], dtype=torch.float64, device=self.device)
        self._impl.energy(_values(layers), out.shape[0], out.data_ptr(), torch.get_num_threads())
        return out

    def free_energy(
        self,
        updates: Sequence[Update],
        values: Sequence[Tensor],
        *,
        betas: Tensor | None = None,
        base: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """-log Σ exp(-E_beta) over all units that ``updates`` refresh, float64 ``[n_betas, n_chains]``.

        E_beta = beta E + (1 - beta) E_base. ``updates`` name layers that are not coupled to each other and that every
        coupling leads to (``full_update`` of one colour). betas: float32 ``[n_betas]``, default (1,); 0 needs a base
        where the graph has a Gaussian layer.
        """
        self._check_program((tuple(updates),))
        summed = {update.layer for update in updates}
        for i, coupling in enumerate(self.graph.couplings):
            if coupling.lower not in summed and coupling.upper not in summed:
                raise ValueError(
                    f"updates: coupling {i} leads to none of the layers {sorted(summed)} that are summed out"
                )
        self._check_states("values", values, states=False)
        betas = torch.ones(1, device=self.device) if betas is None else betas
        check("betas", betas, torch.float32, (betas.numel() if isinstance(betas, Tensor) else 0,), self.device)
        self._check_base(base)
        self._check_temperatures("betas", betas, base, range(len(self.graph.layers)))
        if self._impl is None:
            return reference.free_energy(self.parameters, updates, values, betas=betas, base=base)
        out = torch.empty(len(betas), values[0].shape[0], dtype=torch.float64, device=self.device)
        self._impl.free_energy(
            _plain((tuple(updates),))[0],
            _values(values),
            out.shape[1],
            betas.data_ptr(),
            len(betas),
            [] if base is None else [_address(b) for b in base],
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_program(self, program: Program) -> None:
        check_program(self.graph, program)
        for update in (update for block in program for update in block):
            for source in update.inputs:
                bits = self.parameters.fraction_bits[source.coupling]
                if not abs(source.scale) * 2.0**-bits <= _MAX_FLOAT:
                    raise ValueError(
                        f"program: layer {update.layer}, coupling {source.coupling}: expected a scale that times "
                        f"2^-{bits} is a finite float32, got {source.scale}"
                    )

    def _check_states(self, name: str, values: Sequence[Tensor], *, states: bool) -> None:
        if len(values) != len(self.graph.layers):
            raise ValueError(
                f"{name}: expected one tensor for each of {len(self.graph.layers)} layers, got {len(values)}"
            )
        n_chains = values[0].shape[0] if isinstance(values[0], Tensor) and values[0].dim() else 0
        if n_chains < 1:
            raise ValueError(f"{name}[0]: expected at least one chain, got {n_chains}")
        for i, (layer, value) in enumerate(zip(self.graph.layers, values, strict=True)):
            dtypes = (_STATE_DTYPES[layer.kind],) if states else (torch.uint8, torch.float32)
            check(f"{name}[{i}] ({layer.name})", value, dtypes, (n_chains, layer.units), self.device)

    def _check_base(self, base: Sequence[Tensor] | None) -> None:
        if base is not None:
            if len(base) != len(self.graph.layers):
                raise ValueError(
                    f"base: expected one tensor for each of {len(self.graph.layers)} layers, got {len(base)}"
                )
            for i, (layer, bias) in enumerate(zip(self.graph.layers, base, strict=True)):
                check(f"base[{i}]", bias, torch.float32, (layer.units,), self.device)
                if not bool(bias.isfinite().all()):
                    raise ValueError(f"base[{i}]: expected finite numbers, got NaN or infinity")

    def _check_beta(self, beta: Tensor | None, base: Sequence[Tensor] | None, n_chains: int, program: Program) -> None:
        self._check_base(base)
        if beta is None:
            if base is not None:
                raise ValueError("base: has a meaning only together with beta")
            return
        check("beta", beta, torch.float32, (n_chains,), self.device)
        self._check_temperatures("beta", beta, base, (update.layer for block in program for update in block))

    def _check_temperatures(
        self, name: str, beta: Tensor, base: Sequence[Tensor] | None, concerned: Iterable[int]
    ) -> None:
        if beta.numel() == 0:
            raise ValueError(f"{name}: expected at least one inverse temperature, got none")
        low, high = float(beta.min()), float(beta.max())
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{name}: expected finite values of at least 0, got {low} to {high}")
        if low == 0 and base is None and any(self.graph.layers[i].kind is Kind.GAUSSIAN for i in concerned):
            raise ValueError(f"{name}: a Gaussian layer has no distribution at beta = 0 without a base")


def _plain(program: Program) -> list[list[tuple[int, list[tuple[int, bool, float]]]]]:
    return [[(u.layer, [(i.coupling, i.transposed, i.scale) for i in u.inputs]) for u in block] for block in program]


def _values(values: Sequence[Tensor]) -> list[tuple[int, bool]]:
    return [(value.data_ptr(), value.dtype is torch.float32) for value in values]


def quantise(weight: Tensor, name: str = "weight") -> tuple[Tensor, int]:
    """``(W_q, f)`` of float32 weights: W_q = round(weight 2^f), int16, halves to even, on the finest grid that fits.

    ValueError for non-finite or too large weights.
    """
    _require_cpu(name, weight)
    check(name, weight, torch.float32, tuple(weight.shape), weight.device)
    if not _native():
        return reference.quantise(weight, name)
    threads = torch.get_num_threads()
    bits = fraction_bits(_C.largest_weight(weight.data_ptr(), weight.numel(), threads), name)
    out = torch.empty_like(weight, dtype=torch.int16)
    _C.quantise(weight.data_ptr(), weight.numel(), bits, out.data_ptr(), threads)
    return out, bits


def statistics(lower: Tensor, upper: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ over chains of lowerᵀ upper, float32 ``[units of lower, units of upper]``, the same bits on every backend.

    lower, upper: uint8 0/1 or float32 ``[n_chains, units]``. Chains are added in order, one fma each.
    """
    both = (torch.uint8, torch.float32)
    _check_matrix("lower", lower)
    _check_matrix("upper", upper)
    _require_cpu("lower", lower)
    check("lower", lower, both, tuple(lower.shape), lower.device)
    check("upper", upper, both, (lower.shape[0], upper.shape[1]), lower.device)
    shape = (lower.shape[1], upper.shape[1])
    out = torch.empty(shape, device=lower.device) if out is None else out
    check("out", out, torch.float32, shape, lower.device)
    if not _native():
        reference.statistics(lower, upper, out)
    else:
        (a, a_real), (b, b_real) = _values((lower, upper))
        _C.statistics(a, a_real, shape[0], b, b_real, shape[1], lower.shape[0], out.data_ptr(), torch.get_num_threads())
    return out


def bernoulli(
    probabilities: Tensor,
    rows: Tensor,
    out: Tensor | None = None,
    *,
    seed: int,
    sweep: int = 0,
    layer: int = 0,
    purpose: Purpose = Purpose.BINARISE,
) -> Tensor:
    """Draws uint8 0/1 with the given probabilities, float32 ``[n, units]``.

    rows: int64 ``[n]`` from 0 to 2^32 - 1, the chain part of the random counter: a row of data keeps its numbers in
    any batch. ValueError for rows out of range, and for probabilities that are not between 0 and 1.
    """
    _check_matrix("probabilities", probabilities)
    _require_cpu("probabilities", probabilities)
    shape, device = tuple(probabilities.shape), probabilities.device
    check("probabilities", probabilities, torch.float32, shape, device)
    check("rows", rows, torch.int64, (shape[0],), device)
    seed = whole_number("seed", seed, 0, MAX_SEED)
    sweep = whole_number("sweep", sweep, 0, _MAX_WORD)
    layer = whole_number("layer", layer, 0, 2**16 - 1)
    out = torch.empty(shape, dtype=torch.uint8, device=device) if out is None else out
    check("out", out, torch.uint8, shape, device)
    if out.numel():
        first, last = (int(row) for row in rows.aminmax())
        if not (first >= 0 and last <= _MAX_WORD):
            raise ValueError(f"rows: expected 0 to {_MAX_WORD}, got {first} to {last}")
        low, high = (float(p) for p in probabilities.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"probabilities: expected values from 0 to 1, got {low} to {high}")
    if not _native():
        reference.bernoulli(probabilities, rows, out, seed=seed, sweep=sweep, layer=layer, purpose=purpose)
    else:
        _C.bernoulli(
            probabilities.data_ptr(),
            rows.data_ptr(),
            shape[0],
            shape[1],
            out.data_ptr(),
            seed,
            sweep,
            layer | purpose << 16,
            torch.get_num_threads(),
        )
    return out


def info() -> dict[str, Any]:
    """What runs here: backend, instruction sets (compiled, usable on this processor, in use) and GPU."""
    native = _native()
    return {
        "backend": "native" if native else "reference",
        "isas_compiled": list(_C.compiled_isas()) if native else [],
        "isas_usable": list(_C.usable_isas()) if native else [],
        "isa": _C.isa() if native else None,
        "gpu": _C.gpu() if native else "none: plain torch",
    }

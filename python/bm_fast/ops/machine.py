"""A machine, and every operation on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import MAX_CHAINS, Chains, empty_layers
from bm_fast.graph import Graph, Kind
from bm_fast.ops.backends import Runner, backend
from bm_fast.ops.checks import MAX_SEED, check, may_look
from bm_fast.ops.random import bernoulli
from bm_fast.parameters import Parameters
from bm_fast.program import Program, Update, check_program
from bm_fast.reference import Purpose, choose, random_words

_MAX_FLOAT = torch.finfo(torch.float32).max
_STATE_DTYPES = {Kind.BERNOULLI: torch.uint8, Kind.GAUSSIAN: torch.float32, Kind.SOFTMAX: torch.uint8}
_VALUE_DTYPES = (torch.uint8, torch.float32)


_CASES = 1024  # of mean field in one native call, as its memory and that of the reference grow with them


class Convergence(NamedTuple):
    """How mean-field iterations ended, for each case.

    changes: float32 ``[n_cases]``, the largest change of a mean in the last iteration, or what is above the tolerance
        where a case was not at rest for another reason (``docs/kernels.md``).
    iterations: int32 ``[n_cases]``, how many there were.
    """

    changes: Tensor
    iterations: Tensor


class Machine:
    """A machine with its parameters fixed on the integer grid, ready to run; see ``Parameters`` for what is sampled.

    Building one copies the parameters. Kernels may keep derived tables in it, so reuse it while parameters stay.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._take(parameters, backend("biases[0]", parameters.biases[0]).Machine(parameters))

    def _take(self, parameters: Parameters, impl: Runner) -> None:
        self.parameters = parameters
        self.graph: Graph = parameters.graph
        self.device = parameters.biases[0].device
        self._impl = impl

    @classmethod
    def build(
        cls,
        graph: Graph,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        precisions: Sequence[Tensor | None] | None = None,
    ) -> Machine:
        """From float parameters; arguments and errors as in ``parameters.snapshot``."""
        machine = cls.__new__(cls)
        somewhere = biases[0] if biases else torch.empty(0)  # that there are none is told by ``snapshot``
        machine._take(*backend("biases[0]", somewhere).build(graph, weights, biases, precisions))
        return machine

    def chains(self, n_chains: int, seed: int, first_chain: int = 0) -> Chains:
        """Chains at sweep 0: fair coins for Bernoulli layers, zeros for Gaussian ones, any unit of a softmax layer.

        >>> machine.chains(1024, seed=0)  # doctest: +SKIP
        """
        seed = whole_number("seed", seed, 0, MAX_SEED)
        first_chain = whole_number("first_chain", first_chain, 0, MAX_CHAINS - 1)
        n_chains = whole_number("n_chains", n_chains, 1, MAX_CHAINS - first_chain)
        layers = empty_layers(self.graph, n_chains, self.device)
        rows = torch.arange(first_chain, first_chain + n_chains, device=self.device)
        for i, (layer, state) in enumerate(zip(self.graph.layers, layers, strict=True)):
            if layer.kind is Kind.BERNOULLI:
                bernoulli(
                    torch.full(state.shape, 0.5, device=self.device),
                    rows,
                    state,
                    seed=seed,
                    layer=i,
                    purpose=Purpose.INITIAL,
                )
            elif layer.kind is Kind.SOFTMAX:
                words = random_words(1, rows.cpu(), 0, i, Purpose.INITIAL, seed)[:, 0]
                state.copy_(choose(torch.zeros(state.shape), words))
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
        clamp: layer -> uint8 ``[n_chains, units]``, 1 where a unit keeps its value. In a softmax layer held units that
            are off stay off, and one of the others turns on; one that is on keeps the layer as it is.
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

        done = torch.zeros(1, dtype=torch.int64)  # written by the kernels: Ctrl-C may come before `advance` begins
        try:
            self._impl.sweep(
                program,
                chains.layers,
                n_sweeps,
                seed=seed,
                first_chain=first_chain,
                first_sweep=first,
                beta=beta,
                base=base,
                clamp=clamp,
                means=means,
                done=done,
                progress=advance,
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
        self._impl.layer_means(update, values, out, beta=beta, base=base)
        return out

    def mean_field(
        self,
        program: Program,
        values: Sequence[Tensor],
        iterations: int,
        *,
        start: Program = (),
        tolerance: float = 0.0,
        damping: float = 0.0,
    ) -> Convergence:
        """Runs a program on means in place: each update replaces the values of its layer by their means given the rest.

        values: per layer uint8 0/1 or float32 ``[n_cases, units]``; float32 where the program updates the layer. A
            layer that is updated before any update reads it may hold anything finite.
        start: a pass that runs once before, without damping, such as ``mean_field.upward_program``: sets every layer of
            the program from those of its inputs there that stay or come earlier in ``start``, all scaled alike.
        iterations: at most so many; a case stops once no mean changes by more than ``tolerance`` in an iteration. With
            tolerance 0 every case makes all of them. A case's result does not depend on the cases beside it.
        damping: share of the old mean that an update keeps, 0 to below 1.

        Ctrl-C ends the call within a second; the values that the program updates are then neither the old nor the new.
        """
        self._check_program(program)
        self._check_program(start)
        self._check_start(program, start)
        self._check_states("values", values, states=False)
        iterations = whole_number("iterations", iterations, 1, 2**31 - 1)
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance: expected 0 to below 1, got {tolerance}")
        if not 0 <= damping < 1:
            raise ValueError(f"damping: expected 0 to below 1, got {damping}")
        n_cases = values[0].shape[0]
        for layer in (update.layer for block in program for update in block):
            name = f"values[{layer}] ({self.graph.layers[layer].name}), which the program updates"
            check(name, values[layer], torch.float32, tuple(values[layer].shape), self.device)
        changes = torch.empty(n_cases, device=self.device)
        performed = torch.empty(n_cases, dtype=torch.int32, device=self.device)
        whole = (*values, changes, performed)
        blocks: Iterable[tuple[Tensor, ...]] = [whole]
        if n_cases > _CASES:
            blocks = zip(*(torch.split(tensor, _CASES) for tensor in whole), strict=True)
        for *part, part_changes, part_performed in blocks:
            self._impl.mean_field(
                program,
                part,
                start=start,
                iterations=iterations,
                tolerance=tolerance,
                damping=damping,
                changes=part_changes,
                performed=part_performed,
            )
        return Convergence(changes, performed)

    def energy(self, layers: Sequence[Tensor]) -> Tensor:
        """Energy of each chain at beta = 1, float64 ``[n_chains]``; layers as in ``Chains.layers``."""
        self._check_states("layers", layers, states=True)
        return self._impl.energy(layers)

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
        return self._impl.free_energy(updates, values, betas=betas, base=base)

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

    def _check_start(self, program: Program, start: Program) -> None:
        updates = {update.layer: update for block in program for update in block}
        ready = set(range(len(self.graph.layers))) - set(updates)
        for update in (update for block in start for update in block):
            of_program = updates[update.layer].inputs if update.layer in updates else ()
            couplings = [self.graph.couplings[i.coupling] for i in of_program]
            sources = [c.upper if i.transposed else c.lower for i, c in zip(of_program, couplings, strict=True)]
            known = [i for i, source in zip(of_program, sources, strict=True) if source in ready]
            scale = update.inputs[0].scale / known[0].scale if update.inputs and known and known[0].scale else 1.0
            scaled = [(i.coupling, i.transposed, i.scale * scale) for i in known]
            if not known or [(i.coupling, i.transposed, i.scale) for i in update.inputs] != scaled:
                raise ValueError(
                    f"start: layer {update.layer}: expected the inputs that the program has from layers which stay or "
                    f"come earlier in start, all scaled alike, got {update.inputs}"
                )
            ready.add(update.layer)
        if start and len(ready) < len(self.graph.layers):
            missing = sorted(set(range(len(self.graph.layers))) - ready)
            raise ValueError(f"start: expected all layers of the program, got none of the layers {missing}")

    def _check_states(self, name: str, values: Sequence[Tensor], *, states: bool) -> None:
        if len(values) != len(self.graph.layers):
            raise ValueError(
                f"{name}: expected one tensor for each of {len(self.graph.layers)} layers, got {len(values)}"
            )
        n_chains = values[0].shape[0] if isinstance(values[0], Tensor) and values[0].dim() else 0
        if n_chains < 1:
            raise ValueError(f"{name}[0]: expected at least one chain, got {n_chains}")
        for i, (layer, value) in enumerate(zip(self.graph.layers, values, strict=True)):
            dtypes = _STATE_DTYPES[layer.kind] if states else _VALUE_DTYPES
            check(f"{name}[{i}] ({layer.name})", value, dtypes, (n_chains, layer.units), self.device)
            if states and layer.kind is Kind.SOFTMAX and self._may_look():
                on = value.sum(1, dtype=torch.int64)
                if not bool((on == 1).all()):
                    raise ValueError(
                        f"{name}[{i}] ({layer.name}): expected exactly one softmax unit on, got {int(on[on != 1][0])}"
                    )

    def _may_look(self) -> bool:
        """Whether checks may ask for numbers on the device."""
        return may_look(self.device)

    def check_path(self, betas: Tensor, base: Sequence[Tensor] | None) -> None:
        """ValueError unless every layer has a distribution at these betas with this base; waits for a GPU."""
        self._check_base(base, look=True)
        self._check_temperatures("betas", betas, base, range(len(self.graph.layers)), look=True)

    def _check_base(self, base: Sequence[Tensor] | None, *, look: bool | None = None) -> None:
        if base is not None:
            if len(base) != len(self.graph.layers):
                raise ValueError(
                    f"base: expected one tensor for each of {len(self.graph.layers)} layers, got {len(base)}"
                )
            for i, (layer, bias) in enumerate(zip(self.graph.layers, base, strict=True)):
                check(f"base[{i}]", bias, torch.float32, (layer.units,), self.device)
            if (self._may_look() if look is None else look) and not bool(torch.cat(list(base)).isfinite().all()):
                i = next(i for i, bias in enumerate(base) if not bool(bias.isfinite().all()))
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
        self,
        name: str,
        beta: Tensor,
        base: Sequence[Tensor] | None,
        concerned: Iterable[int],
        *,
        look: bool | None = None,
    ) -> None:
        if beta.numel() == 0:
            raise ValueError(f"{name}: expected at least one inverse temperature, got none")
        if not (self._may_look() if look is None else look):
            return
        low, high = (float(end) for end in torch.stack(beta.aminmax()).tolist())
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{name}: expected finite values of at least 0, got {low} to {high}")
        if low == 0 and base is None and any(self.graph.layers[i].kind is Kind.GAUSSIAN for i in concerned):
            raise ValueError(f"{name}: a Gaussian layer has no distribution at beta = 0 without a base")

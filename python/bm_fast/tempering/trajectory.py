"""Parallel trajectory tempering: replicas are machines along a path of learning, all at beta = 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import MAX_CHAINS, Chains
from bm_fast.machines import Model, as_machine
from bm_fast.ops import Machine
from bm_fast.parameters import Parameters
from bm_fast.program import gibbs_program
from bm_fast.tempering.decisions import accepted
from bm_fast.tempering.operators import Replicas, check_continued, refuse_begun

_LOOK_AFTER = 20
"""Tries of the last pair of machines, of each chain, after which its acceptance is looked at."""


@dataclass
class Trajectory:
    """The state of parallel trajectory tempering: as many chains of each machine as of each other one.

    machines: from one in which chains travel everywhere to the target, of one graph; neighbours should be alike.
    replicas: the chains of each machine, ``[n_chains]`` each.
    attempts: int64 ``[n_machines - 1]``, tries to exchange states between neighbours.
    acceptances: float64 ``[n_machines - 1]``, the sum of the probabilities with which they were taken.
    round: rounds of exchanges done; its parity chooses the pairs.
    """

    machines: tuple[Machine, ...]
    replicas: tuple[Chains, ...]
    attempts: Tensor
    acceptances: Tensor
    round: int = 0

    @property
    def n_chains(self) -> int:
        return self.replicas[0].n_chains

    @property
    def acceptance(self) -> Tensor:
        """Mean probability with which neighbours exchanged states, float64 ``[n_machines - 1]``; NaN if never tried."""
        return self.acceptances / self.attempts

    def at_target(self) -> tuple[Tensor, ...]:
        """Samples of the last machine, per layer ``[n_chains, units]``; they change as the trajectory goes on."""
        return self.replicas[-1].layers

    def clone(self) -> Trajectory:
        """An independent copy that would go on in the same way."""
        replicas = tuple(chains.clone() for chains in self.replicas)
        return Trajectory(self.machines, replicas, self.attempts.clone(), self.acceptances.clone(), self.round)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the machines, for ``checkpoints.save``."""
        return {
            "replicas": [chains.state_dict() for chains in self.replicas],
            "attempts": self.attempts,
            "acceptances": self.acceptances,
            "round": self.round,
        }

    @classmethod
    def from_state_dict(cls, models: Sequence[Model], state: Mapping[str, Any]) -> Trajectory:
        """The trajectory that ``state_dict`` described, of the same machines."""
        replicas = tuple(Chains.from_state_dict(chains) for chains in state["replicas"])
        return cls(_machines(models), replicas, state["attempts"], state["acceptances"], state["round"])


def start_trajectory(models: Sequence[Model], n_chains: int, *, seed: int = 0) -> Trajectory:
    """Trajectories at round 0, their chains at fair coins (Gaussian layers: zero).

    models: machines or models, such as checkpoints of one training in their order, the target last.
    ValueError for fewer than two, and for machines of different graphs.
    """
    machines = _machines(models)
    n_chains = whole_number("n_chains", n_chains, 1, MAX_CHAINS // len(machines))
    replicas = tuple(machine.chains(n_chains, seed, i * n_chains) for i, machine in enumerate(machines))
    pairs = torch.zeros(len(machines) - 1, device=machines[0].device)
    return Trajectory(machines, replicas, pairs.long(), pairs.double())


def run_trajectory(
    trajectory: Trajectory, rounds: int, *, sweeps: int = 1, keep_energies: bool = False
) -> Tensor | None:
    """Runs parallel trajectory tempering in place: ``rounds`` times an exchange of states and ``sweeps`` sweeps.

    Machines m and m + 1 with states x and y exchange them with probability

        min(1, p_m(y) p_m+1(x) / (p_m(x) p_m+1(y))),

    p the densities of the layers that a sweep reads first, with the colour that it draws first summed out (all layers,
    where couplings lead past that colour). Pairs (0, 1), (2, 3)… are tried in even rounds, the others in odd ones.

    keep_energies: returns the energies E' - E of neighbours, float64 ``[rounds, 2, n_machines - 1, n_chains]``: of pair
        m at [:, 0, m] for the states of machine m and at [:, 1, m] for those of machine m + 1; for log Z.

    Ctrl-C leaves a whole number of rounds.

    Source: Béreux, Decelle, Furtlehner, Rosset and Seoane, Fast training and sampling of Restricted Boltzmann Machines
    (ICLR 2025).
    """
    rounds = whole_number("rounds", rounds, 1, 2**32)
    sweeps = whole_number("sweeps", sweeps, 1, 2**32)
    kept = []
    for _ in range(rounds):
        after = trajectory.clone()
        if keep_energies:
            kept.append(torch.stack([_steps(after, pair) for pair in range(len(after.attempts))], 1))
        _exchange(after)
        for machine, chains in zip(after.machines, after.replicas, strict=True):
            machine.sweep(gibbs_program(machine.graph), chains, sweeps)
        vars(trajectory).update(vars(after))
    return torch.stack(kept) if keep_energies else None


def _exchange(trajectory: Trajectory) -> None:
    """One round of exchanges, in place."""
    for pair in range(trajectory.round % 2, len(trajectory.attempts), 2):
        low, high = trajectory.replicas[pair : pair + 2]
        of_low, of_high = _steps(trajectory, pair)
        log_ratio = of_high - of_low
        taken = accepted(log_ratio, low)[:, None]
        for lower, upper in zip(low.layers, high.layers, strict=True):
            before = lower.clone()
            lower.copy_(torch.where(taken, upper, before))
            upper.copy_(torch.where(taken, before, upper))
        trajectory.attempts[pair] += len(log_ratio)
        trajectory.acceptances[pair] += log_ratio.clamp(max=0).exp().sum()
    trajectory.round += 1


def _steps(trajectory: Trajectory, pair: int) -> Tensor:
    """E' - E of a pair of neighbours, for the states of the lower and of the upper one, float64 ``[2, n_chains]``."""
    low, high = trajectory.machines[pair : pair + 2]
    states = (replica.layers for replica in trajectory.replicas[pair : pair + 2])
    return torch.stack([_energy(high, layers) - _energy(low, layers) for layers in states])


def _energy(machine: Machine, layers: Sequence[Tensor]) -> Tensor:
    """Minus the logarithm of the density that exchanges go by, float64 ``[n_chains]``."""
    graph, first = machine.graph, gibbs_program(machine.graph)[0]
    drawn = {update.layer for update in first}
    if all(coupling.lower in drawn or coupling.upper in drawn for coupling in graph.couplings):
        return machine.free_energy(first, layers)[0]
    return machine.energy(layers)


def _machines(models: Sequence[Model]) -> tuple[Machine, ...]:
    machines = tuple(as_machine(model) for model in models)
    if len(machines) < 2:
        raise ValueError(f"models: expected at least 2 machines, got {len(machines)}")
    for i, machine in enumerate(machines):
        if machine.graph != machines[-1].graph or machine.device != machines[-1].device:
            raise ValueError(
                f"models: expected machines like the last one, {_described(machines[-1])}, "
                f"got {_described(machine)} at {i}"
            )
    return machines


def _described(machine: Machine) -> str:
    graph = machine.graph
    layers = ", ".join(f"{layer.name} of {layer.units} {layer.kind.name}" for layer in graph.layers)
    couplings = ", ".join(f"{coupling.lower}-{coupling.upper}" for coupling in graph.couplings)
    return f"layers {layers} coupled {couplings} on {machine.device}"


class TrajectoryTempering:
    """Parallel trajectory tempering: each chain is the target of replicas at machines from earlier in learning.

    A call runs ``rounds`` rounds of ``run_trajectory`` on the kept machines and the present one, and costs as many
    sweeps of each chain as there are machines. Where the present machine and the last one kept exchange states with a
    mean probability below ``keep_below``, the present one is kept too, so that the path goes on as learning does.

    Chains at sweep 0 begin new replicas at fair coins, and the path again.

    models: machines to begin the path with, such as checkpoints in their order; none: the machine of the first call,
        in which chains should travel everywhere, as they do before learning.
    keep_below: 0 keeps no machine.
    kept: the machines kept so far.
    trajectory: the replicas; None before the first call.

    Source: Béreux, Decelle, Furtlehner, Rosset and Seoane, Fast training and sampling of Restricted Boltzmann Machines
    (ICLR 2025), who keep checkpoints at acceptances of 0.25.
    """

    def __init__(
        self, models: Sequence[Model] = (), *, rounds: int = 1, sweeps: int = 1, keep_below: float = 0.25
    ) -> None:
        self.rounds = whole_number("rounds", rounds, 1, 2**32)
        self.sweeps = whole_number("sweeps", sweeps, 1, 2**32)
        if not 0 <= keep_below < 1:
            raise ValueError(f"keep_below: expected 0 to below 1, got {keep_below}")
        self.keep_below = keep_below
        self.kept = [as_machine(model) for model in models]
        self._n_given = len(self.kept)
        self.trajectory: Trajectory | None = None
        self._loaded: Mapping[str, Any] | None = None

    def advance(self, machine: Machine, chains: Chains) -> None:
        """Runs the replicas and gives the chains the states of the target; Ctrl-C leaves a whole number of rounds.

        ValueError for chains that have been moved by anything but this operator, and for those whose first is not chain
        0: replicas draw the same random numbers whichever part of the chains they serve.
        """
        self._take_up(machine)
        if chains.first_chain != 0:
            raise ValueError(
                f"chains.first_chain: expected 0, as replicas have numbers of their own, got {chains.first_chain}"
            )
        if chains.sweep == 0:
            self.kept = self.kept[: self._n_given] or [machine]
            self.trajectory = start_trajectory([*self.kept, machine], chains.n_chains, seed=chains.seed)
        trajectory = self.trajectory
        if trajectory is None:
            refuse_begun(chains, "replicas")
        check_continued(chains, trajectory.replicas[-1])
        trajectory.machines = _machines([*self.kept, machine])
        try:
            run_trajectory(trajectory, self.rounds, sweeps=self.sweeps)
        finally:
            for state, target in zip(chains.layers, trajectory.at_target(), strict=True):
                state.copy_(target)
            chains.sweep = trajectory.replicas[-1].sweep
        if trajectory.attempts[-1] >= _LOOK_AFTER * trajectory.n_chains:
            if trajectory.acceptance[-1] < self.keep_below:
                self._keep(machine, trajectory)
            trajectory.attempts[-1], trajectory.acceptances[-1] = 0, 0

    def _keep(self, machine: Machine, trajectory: Trajectory) -> None:
        """Puts the present machine on the path: its chains stay, those of the target begin at copies of them."""
        self.kept.append(machine)
        target = trajectory.replicas[-1].clone()
        target.first_chain += trajectory.n_chains
        trajectory.replicas = (*trajectory.replicas, target)
        zero = trajectory.attempts.new_zeros(1)
        trajectory.attempts = torch.cat([trajectory.attempts, zero])
        trajectory.acceptances = torch.cat([trajectory.acceptances, zero.double()])

    def _take_up(self, machine: Machine) -> None:
        """Makes machines and replicas of a state that was loaded before their graph was known."""
        if self._loaded is None:
            return
        self.kept = [Machine(Parameters(machine.graph, **held)) for held in self._loaded["kept"]]
        held = self._loaded["trajectory"]
        self.trajectory = None if held is None else Trajectory.from_state_dict([*self.kept, machine], held)
        self._loaded = None

    def replicas(self, machine: Machine) -> list[Replicas]:
        """The replicas of each machine on the path."""
        if self.trajectory is None:
            return []
        everywhere = torch.arange(self.trajectory.n_chains, device=machine.device)
        return [
            Replicas(f"machine {i} of the path", own, 1.0, None, chains, everywhere)
            for i, (own, chains) in enumerate(zip(self.trajectory.machines, self.trajectory.replicas, strict=True))
        ]

    def settings(self) -> dict[str, Any]:
        """What the operator was made with, but for machines: those that it kept are part of its state."""
        return {"rounds": self.rounds, "sweeps": self.sweeps, "keep_below": self.keep_below}

    def state_dict(self) -> dict[str, Any]:
        """The machines on the path and the replicas."""
        if self._loaded is not None:
            return dict(self._loaded)
        kept = []
        for parameters in (machine.parameters for machine in self.kept):
            held = {name: each for name, each in vars(parameters).items() if name != "graph"}
            kept.append({**held, "weights": tuple(parameters.weights)})  # which a machine may read back only when asked
        trajectory = None if self.trajectory is None else self.trajectory.state_dict()
        return {"kept": kept, "given": self._n_given, "trajectory": trajectory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave; the next ``advance`` brings the graph of the machines."""
        self._n_given, self._loaded = state["given"], state

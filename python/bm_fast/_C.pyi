"""Compiled kernels of bm_fast; bm_fast.ops is the way to them."""

from collections.abc import Callable, Sequence

_Input = tuple[int, bool, float]
_Update = tuple[int, Sequence[_Input]]
_Values = tuple[int, bool]
_Rungs = tuple[int, int, int, int, int]

class Machine:
    def __init__(
        self,
        layers: Sequence[tuple[str, int, int, int, int]],
        couplings: Sequence[tuple[int, int, int, int]],
        are_values: bool,
        threads: int,
    ) -> None: ...
    def read_weights(self, coupling: int, out: int) -> None: ...
    def has_lookup_tables(self) -> bool: ...
    def sweep(
        self,
        program: Sequence[Sequence[_Update]],
        states: Sequence[int],
        n_chains: int,
        n_sweeps: int,
        seed: int,
        first_chain: int,
        first_sweep: int,
        beta: int,
        base: Sequence[int],
        clamp: Sequence[int],
        means: Sequence[int],
        threads: int,
        sweeps_done: int,
        progress: Callable[[int], None],
    ) -> None: ...
    def temper(
        self,
        program: Sequence[Sequence[_Update]],
        states: Sequence[int],
        rungs: _Rungs,
        n_chains: int,
        n_rungs: int,
        n_rounds: int,
        sweeps_per_round: int,
        seed: int,
        first_chain: int,
        first_sweep: int,
        first_round: int,
        betas: int,
        base: Sequence[int],
        biases: Sequence[int],
        bias_bits: int,
        means: Sequence[int],
        trace: int,
        threads: int,
        rounds_done: int,
        progress: Callable[[int], None],
    ) -> None: ...
    def anneal(
        self,
        program: Sequence[Sequence[_Update]],
        states: Sequence[int],
        n_chains: int,
        n_steps: int,
        seed: int,
        first_chain: int,
        first_sweep: int,
        betas: int,
        base: Sequence[int],
        log_weights: int,
        threads: int,
        steps_done: int,
        progress: Callable[[int], None],
    ) -> None: ...
    def layer_means(
        self,
        update: _Update,
        values: Sequence[_Values],
        n_chains: int,
        out: int,
        beta: int,
        base: Sequence[int],
        threads: int,
    ) -> None: ...
    def mean_field(
        self,
        program: Sequence[Sequence[_Update]],
        values: Sequence[_Values],
        n_cases: int,
        start: Sequence[tuple[int, float]],
        iterations: int,
        tolerance: float,
        damping: float,
        changes: int,
        performed: int,
        threads: int,
    ) -> None: ...
    def energy(self, values: Sequence[_Values], n_chains: int, out: int, threads: int) -> None: ...
    def gap(
        self,
        biases: Sequence[int],
        bias_bits: int,
        has_base: bool,
        values: Sequence[_Values],
        n_chains: int,
        out: int,
        threads: int,
    ) -> None: ...
    def free_energy(
        self,
        updates: Sequence[_Update],
        values: Sequence[_Values],
        n_chains: int,
        betas: int,
        n_betas: int,
        base: Sequence[int],
        out: int,
        threads: int,
    ) -> None: ...

def statistics(
    lower: int,
    lower_real: bool,
    n_lower: int,
    upper: int,
    upper_real: bool,
    n_upper: int,
    n_chains: int,
    out: int,
    threads: int,
) -> None: ...
def gradient(
    visible: int,
    visible_real: bool,
    n_visible: int,
    hidden: int,
    n_hidden: int,
    n_chains: int,
    signs: int,
    visible_means: int,
    hidden_means: int,
    visible_offsets: int,
    hidden_offsets: int,
    weight_out: int,
    visible_out: int,
    hidden_out: int,
    threads: int,
) -> None: ...
def bernoulli(
    probabilities: int,
    rows: int,
    n: int,
    units: int,
    out: int,
    seed: int,
    sweep: int,
    layer_and_purpose: int,
    threads: int,
) -> None: ...
def swap(
    rungs: _Rungs,
    gaps: int,
    betas: int,
    n_rungs: int,
    n_chains: int,
    seed: int,
    first_ladder: int,
    round: int,
) -> None: ...
def largest_weight(weights: int, n: int, threads: int) -> float: ...
def quantise(weights: int, n: int, fraction_bits: int, out: int, threads: int) -> None: ...
def version() -> str:
    """Version that the module was built from."""

def compiled_isas() -> list[str]:
    """Instruction sets in the module, from the least to the most demanding."""

def usable_isas() -> list[str]:
    """Instruction sets that this processor has."""

def isa() -> str:
    """The instruction set in use; ValueError where BM_FAST_ISA names none that can be."""

"""Compiled kernels of bm_fast for NVIDIA GPUs; bm_fast.ops is the way to them."""

from collections.abc import Callable, Sequence

_Input = tuple[int, bool, float]
_Update = tuple[int, Sequence[_Input]]
_Values = tuple[int, bool]
_Rungs = tuple[int, int, int, int, int]

class Place:
    def __init__(self, device: int, stream: int, allocate: Callable[[int], int]) -> None: ...

class Machine:
    def __init__(
        self,
        layers: Sequence[tuple[str, int, int, int, int]],
        couplings: Sequence[tuple[int, int, int, bool, int]],
        place: Place,
    ) -> None: ...
    def refresh(self, refused: int, place: Place) -> None: ...
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
        sweeps_before: int,
        place: Place,
        sweeps_done: int,
        progress: Callable[[int], None],
    ) -> None: ...
    def temper(
        self,
        program: Sequence[Sequence[_Update]],
        states: Sequence[int],
        rungs: _Rungs,
        beta: int,
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
        place: Place,
        rounds_done: int,
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
        place: Place,
    ) -> None: ...
    def mean_field(
        self,
        program: Sequence[Sequence[_Update]],
        values: Sequence[_Values],
        n_cases: int,
        iterations: int,
        tolerance: float,
        damping: float,
        changes: int,
        performed: int,
        scratch: int,
        place: Place,
    ) -> None: ...
    def energy(self, values: Sequence[_Values], n_chains: int, out: int, place: Place) -> None: ...
    def gap(
        self,
        biases: Sequence[int],
        bias_bits: int,
        has_base: bool,
        values: Sequence[_Values],
        n_chains: int,
        out: int,
        place: Place,
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
        place: Place,
    ) -> None: ...

def advance(counter: int, steps: int, place: Place) -> None: ...
def bernoulli(
    probabilities: int,
    rows: int,
    n: int,
    units: int,
    out: int,
    seed: int,
    sweep: int,
    layer_and_purpose: int,
    place: Place,
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
    place: Place,
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
    place: Place,
) -> None: ...
def gpu(device: int) -> str:
    """A CUDA device by its number, or "none: " and why the kernels cannot run on it."""

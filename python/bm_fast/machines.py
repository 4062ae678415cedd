"""What is accepted where a machine is wanted: a machine, or a model that gives one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from bm_fast.ops import Machine


@runtime_checkable
class HasMachine(Protocol):
    """A model that can put its parameters on the integer grid, such as ``RBM``."""

    def machine(self) -> Machine: ...


Model = Machine | HasMachine


def as_machine(model: Model) -> Machine:
    """The machine itself, or a snapshot of a model's parameters."""
    if isinstance(model, Machine):
        return model
    if isinstance(model, HasMachine):
        return model.machine()
    raise TypeError(f"model: expected a Machine or a model with a machine, such as an RBM; got {type(model).__name__}")

"""Whole numbers as arguments: each check gives the number back, or raises ValueError with the argument's name."""

from __future__ import annotations

from numbers import Integral


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """``value`` as int; ValueError unless it is a whole number from ``low`` to ``high``."""
    if type(value) is not int and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise ValueError(f"{name}: expected a whole number, {low} to {high}, got {value!r}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value!r}")
    return number


def count(name: str, value: object) -> int:
    """``value``, how many of something, as int; ValueError unless it is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return int(value)

"""Checks of arguments, and what they say: what several modules share."""

import numbers
from typing import Any

import jax
import numpy as np

from jaxprune._paths import leaf_name


def is_number(x: Any) -> bool:
    """Tells whether x is a real number or a scalar array, traced or not."""
    return isinstance(x, numbers.Real) or getattr(x, "shape", None) == ()


def whole(name: str, value: Any, endless: bool = False) -> int:
    """Gives a number of steps as an integer, be it written 3, 3.0 or jnp.int32(3).

    Where it may be `endless`, infinity and what is beyond the last step that can be
    counted are that step.

    Raises:
      ValueError: if it is negative, not whole or beyond that: no step would equal it.
    """
    last = np.iinfo(np.int32).max
    if endless and is_number(value) and value >= last:
        return last
    if not (is_number(value) and value >= 0 and value % 1 == 0):
        raise ValueError(
            f"{name} is {value!r}, expected at least 0, a whole number of steps."
        )
    if value > last:
        raise ValueError(
            f"{name} is {value!r}, expected at most {last}: steps are counted in 32 "
            "bits."
        )
    return int(value)


def check_integer(name: str, value: Any, least: int) -> None:
    """Checks that an argument is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}, expected at least {least}, an integer.")


def check_fraction(name: str, value: Any) -> None:
    """Checks that a sparsity is in [0, 1)."""
    if not (is_number(value) and 0 <= value < 1):
        raise ValueError(f"{name} is {value!r}, expected a fraction in [0, 1).")


def check_function(name: str, value: Any, example: str) -> None:
    """Checks that an argument can be called.

    Raises:
      ValueError: if it cannot, before a training step runs into it.
    """
    if not callable(value):
        raise ValueError(f"{name} is {value!r}, expected a function such as {example}.")


def check_schedule(schedule: Any) -> None:
    """Checks that a mask schedule is one, or at least a function."""
    check_function("schedule", schedule, "to_sparsity(magnitude, 0.9)")


def is_array(name: str, leaf: Any) -> bool:
    """Tells whether a leaf of params is an array or a shape; a Python number is none.

    Raises:
      ValueError: if it is neither, such as the functions in an equinox module.
    """
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return True
    if isinstance(leaf, numbers.Number):
        return False
    raise ValueError(
        f"{name} is of type {type(leaf).__name__}, expected an array; of an equinox "
        "module give eqx.filter(module, eqx.is_inexact_array)."
    )


def check_arrays(params: Any) -> None:
    """Checks that each leaf is an array or a Python number.

    Raises:
      ValueError: as `is_array`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_array(leaf_name(path), leaf)

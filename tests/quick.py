"""Which cases the README's test command runs."""

from collections.abc import Iterable
from typing import Any

import pytest


# Of tests that .ci/run leaves out too.
LONG = [pytest.mark.slow, pytest.mark.long]


def quick(values: Iterable[Any], *only: Any) -> list[Any]:
    """Gives all values for `parametrize`; those that are not in `only` are slow."""
    values = list(values)
    unknown = [value for value in only if value not in values]
    assert not unknown, unknown
    return [
        pytest.param(value, marks=[pytest.mark.slow] * (value not in only))
        for value in values
    ]

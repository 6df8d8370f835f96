"""FLOP of the two primitives that multiply: 2 for each multiply-add."""

import math
from typing import Any


def dot_flop(
    params: dict[str, Any],
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Counts a matrix product: a multiply-add for each result and contracted entry."""
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def conv_flop(
    params: dict[str, Any],
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Counts a convolution: the whole kernel at every position, at the border too.

    Where the input is dilated, as in a transposed convolution, the kernel meets each
    number of the input once, and not the zeros in between.
    """
    numbers = params["dimension_numbers"]
    out_channels, in_channels, *spatial = numbers.rhs_spec
    kernel = math.prod(right[axis] for axis in spatial) * right[in_channels]
    if math.prod(params["lhs_dilation"]) == 1:
        return 2 * math.prod(result) * kernel
    places = left[numbers.lhs_spec[0]]
    places *= math.prod(left[axis] for axis in numbers.lhs_spec[2:])
    return 2 * places * kernel * right[out_channels]

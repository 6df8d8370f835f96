"""Greenup, powerup, speedup: what a change does to time, power and energy."""

import math
from typing import NamedTuple


class GpsUp(NamedTuple):
    """Two measurements compared.

    Attributes:
      greenup: energy before over energy after; above 1 energy is saved.
      powerup: power after over power before.
      speedup: time before over time after.
      edp_ratio: energy times time, before over after.
      category: "green" or "red", or "neutral" where energy is the same, and how that
        comes about.
    """

    greenup: float
    powerup: float
    speedup: float
    edp_ratio: float
    category: str


def gps_up(before: tuple[float, float], after: tuple[float, float]) -> GpsUp:
    """Compares two measured pairs of time and power.

    There are eight categories besides "neutral", four green and four red: of two ways
    to differ, in speed and in power, either both help, or one alone does, or one helps
    more than the other hurts; and the mirror images of these.

    >>> gps_up((2.0, 100.0), (1.0, 150.0)).category
    'green: faster, more power'
    >>> gps_up((2.0, 100.0), (2.5, 90.0)).category
    'red: slower, less power'

    Args:
      before: seconds, or any unit of time, and watts.
      after: the same of the changed program, in the same units.

    Raises:
      ValueError: if a number is not positive and finite.

    Source:
      Abdulsalam et al. 2015, "Using the Greenup, Powerup, and Speedup metrics to
      evaluate software energy efficiency".
    """
    for name, pair in {"before": before, "after": after}.items():
        if not all(0 < value < math.inf for value in pair):
            raise ValueError(
                f"{name} is {pair}, expected a time and a power, positive and finite."
            )
    (time, power), (new_time, new_power) = before, after
    speedup, powerup = time / new_time, new_power / power
    saved, spent = time * power, new_time * new_power
    return GpsUp(
        greenup=saved / spent,
        powerup=powerup,
        speedup=speedup,
        edp_ratio=saved * time / (spent * new_time),
        category=_category(saved, spent, speedup, powerup),
    )


def _category(saved: float, spent: float, speedup: float, powerup: float) -> str:
    if saved == spent:
        return "neutral: the same energy"
    green = saved > spent
    power = "same" if powerup == 1 else "more" if powerup > 1 else "less"
    if green:
        speed = "faster" if speedup > 1 else "not faster"
    else:
        speed = "slower" if speedup < 1 else "not slower"
    return f"{'green' if green else 'red'}: {speed}, {power} power"

"""The file that holds what a product costs on this machine."""

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxprune.sparse._choose import Costs


_VERSION = 1


def default_path() -> Path | None:
    """Gives the file that `calibrate` writes, in the user's folder of caches.

    It is `None` without the package platformdirs, which the extra `fast` installs.
    """
    if find_spec("platformdirs") is None:
        return None
    from platformdirs import user_cache_path

    return user_cache_path("jaxprune") / "costs.json"


def default_costs() -> Costs:
    """Gives the costs that `calibrate` measured on this machine, else estimates.

    Raises:
      ValueError: as `read_costs`.
    """
    path = default_path()
    return Costs() if path is None or not path.exists() else read_costs(path)


def read_costs(path: str | os.PathLike[str]) -> Costs:
    """Reads what `write_costs` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file, if it is anything else.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if content["version"] != _VERSION:
            raise ValueError(f"its version is {content['version']!r}, not {_VERSION}")
        costs = content["nanoseconds"]
        if set(costs) != set(Costs._fields):
            odd = sorted(set(costs) ^ set(Costs._fields))
            raise ValueError(f"missing or unknown: {', '.join(odd)}")
        for name, cost in costs.items():
            number = isinstance(cost, int | float) and not isinstance(cost, bool)
            if not (number and math.isfinite(cost) and cost >= 0):
                raise ValueError(f"{name} is {cost!r}, expected a number of 0 or more")
        numbers: dict[str, Any] = {name: float(costs[name]) for name in costs}
        return Costs(**numbers | {"cache": int(costs["cache"])})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{os.fspath(path)} holds no costs of products: {error}. Delete it, or "
            "write it anew by `python -m jaxprune.sparse.calibrate`."
        ) from error


def write_costs(path: str | os.PathLike[str], costs: Costs) -> None:
    """Writes costs as JSON; a file that is there is replaced as a whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    text = json.dumps({"version": _VERSION, "nanoseconds": costs._asdict()}, indent=2)
    try:
        part.write_text(text + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""Packages that only some readers need, imported when they do."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Raises:
      ImportError: naming the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} needs the package {error.name}, which is not installed: "
            f"pip install 'jaxprune[{extra}]'."
        ) from error

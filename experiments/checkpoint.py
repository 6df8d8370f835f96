"""Checkpoints: written whole or not at all, and read only if they are what they say."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from orbax.checkpoint import v1 as ocp

from experiments.config import Refused, difference


State = TypeVar("State")

FORMAT = "jaxprune experiment 2"


class Checkpoints:
    """The checkpoints of one run, in one folder, the last two of them kept.

    Orbax writes each under a temporary name and renames it, so a checkpoint that has a
    step for a name is complete; one that was being written when the process died does
    not count. Shapes, dtypes and a checksum of every array are stored beside them, for
    Orbax casts a foreign dtype in silence and does not notice a flipped bit.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Opens the folder; `settings` are what must agree for a run to continue.

        Raises:
          Refused: if it is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise Refused(
                f"{folder} is a file, expected the folder of the checkpoints; move it "
                "away, or start anew elsewhere."
            )
        keep: Any = ocp.training.preservation_policies.LatestN(2)
        self._folder = folder
        self._begun: int | None = None
        self._settings = settings
        with _quiet():
            self._orbax = ocp.training.Checkpointer(
                str(folder.absolute()),
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )

    def latest(self) -> int | None:
        """Gives the step of the last checkpoint, which may still be being written.

        `None` if there is none.
        """
        if self._begun is not None:
            return self._begun
        last = self._orbax.latest
        return None if last is None else last.step

    def save(self, step: int, state: Any) -> None:
        """Begins to write the checkpoint of `step`, when the one before is on disk.

        Returns when `state` is copied and may change. In a run of several processes
        each calls it, and writes what it has.
        """
        if step == self.latest():
            return
        about = {
            "format": FORMAT,
            "settings": self._settings,
            "leaves": _leaves(state),
        }
        self.wait()
        self._orbax.save_async(step, state, custom_metadata=about)
        self._begun = step

    def wait(self) -> None:
        """Returns when the last checkpoint that was begun is on disk."""
        self._orbax.wait()

    def load(self, step: int, like: State) -> State:
        """Reads a checkpoint into the structure, dtypes and shardings of `like`.

        Raises:
          Refused: if it is not of this program, of this network or of these settings,
            or if it cannot be read in full. Nothing is written.
        """
        name = f"the checkpoint {self._folder / str(step)}"
        advice = "move it away to go on from the one before, or start anew elsewhere"
        with _quiet():
            try:
                about: Any = self._orbax.metadata(step).custom_metadata
            except Exception as error:
                raise Refused(
                    f"{name} cannot be read ({type(error).__name__}); {advice}."
                ) from error
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise Refused(
                    f"{name} is damaged or was not written by this program; {advice}."
                )
            if changed := difference(about["settings"], self._settings):
                raise Refused(f"{name} is of another run: {changed}.")
            wanted, stored = _leaves(like, checksum=False), about["leaves"]
            for path in sorted({*wanted, *stored}):
                found = stored.get(path, [None])[:-1] or None
                if found != wanted.get(path):
                    raise Refused(
                        f"{name} is of another network or optimizer: {path} is {found} "
                        f"there, expected {wanted.get(path)}."
                    )
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                like,
            )
            try:
                state = self._orbax.load(step, abstract)
            except Exception as error:
                raise Refused(
                    f"{name} cannot be read, a part is missing or cut off "
                    f"({type(error).__name__}); {advice}."
                ) from error
        for path, (*_, found) in _leaves(state).items():
            if found != stored[path][-1]:
                raise Refused(f"{name} is damaged in {path}; {advice}.")
        return state

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder."""
        self._orbax.close()


def _leaves(tree: Any, checksum: bool = True) -> dict[str, list[Any]]:
    """Gives shape, dtype and, if wanted, a checksum of each array, by path."""
    rows = {}
    sums = jax.device_get(_checksums(tree)) if checksum else tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), crc in zip(leaves, jax.tree.leaves(sums), strict=True):
        row: list[Any] = [list(leaf.shape), str(leaf.dtype)]
        if checksum:
            row.append(int(crc))
        rows[jax.tree_util.keystr(path, simple=True, separator="/")] = row
    return rows


@jax.jit
def _checksums(tree: Any) -> Any:
    """Sums the bits of each array, every element times an odd number of its own.

    It is computed where the array lies, whichever way it is divided among devices. One
    flipped bit always changes it, and so does an exchange of parts but by chance.
    """
    return jax.tree.map(_checksum, tree)


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype.itemsize == 1:
        bits = x.astype(jnp.uint8)
    else:
        bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    bits = bits.astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):  # modulo 2^32
        place = place * jnp.uint32(size) + lax.broadcasted_iota(
            jnp.uint32, x.shape, axis
        )
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's pages about a checkpoint that cannot be read off the screen."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

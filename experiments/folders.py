"""What programs that make many points share: the command line and the folder."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments import files
from experiments.config import Refused
from experiments.step import Diverged
from experiments.stop import Stopped


def command(
    options: type,
    run: Callable[[Any], Any],
    prog: str,
    description: str | None,
    args: Sequence[str] | None,
) -> int:
    """Reads the flags and runs; gives the exit code."""
    flags = tyro.cli(options, prog=prog, description=description, args=args)
    try:
        run(flags)
    except (Refused, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"Stopped at step {stopped.step} of a point; go on with --resume.")
    return 0


def open_points(options: Any, kind: str, dataset: str, free: tuple[str, ...]) -> Path:
    """Opens the folder of a comparison; --out is runs/KIND-NETWORK-DATASET if None.

    Raises:
      Refused: as `open_folder`.
    """
    if options.out is None:
        name = options.network.lower().replace("-", "")
        out = Path("runs") / f"{kind}-{name}-{dataset}"
        options = dataclasses.replace(options, out=out)
    return open_folder(options, free=free)


def open_folder(
    options: Any, free: tuple[str, ...] = (), holds: str = "such points"
) -> Path:
    """Makes the folder, or opens one to go on with; settings are in options.json.

    Args:
      options: a dataclass with `out`, the folder, and `resume`.
      free: fields, beside these and `data_dir`, that may change between the two.
      holds: what is in the folder, for the message.

    Raises:
      Refused: if it holds other things, other settings, or the same without --resume.
    """
    folder: Path = options.out
    free = ("data_dir", "out", "resume", *free)
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in free}
    settings = json.loads(json.dumps(settings, default=str))
    path = folder / "options.json"
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file, expected a folder; choose another --out.")
    if folder.exists() and any(folder.iterdir()):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            raise Refused(
                f"{folder} holds files but no readable options.json, so this program "
                "did not write it; choose another --out."
            ) from None
        # A flag that there was not yet: its default is what was done before it.
        defaults = {f.name: f.default for f in dataclasses.fields(options)}
        found = json.loads(json.dumps(defaults, default=str)) | found
        for name in settings:
            if found.get(name) != settings[name]:
                raise Refused(
                    f"{folder} was begun with --{name.replace('_', '-')} "
                    f"{found.get(name)}, now it is {settings[name]}; choose another "
                    "--out."
                )
        if not options.resume:
            raise Refused(
                f"{folder} holds {holds}; give --resume to go on with it, or "
                "another --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(settings, indent=2) + "\n")
    return folder

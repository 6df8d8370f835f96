"""The log of a run, which a continued run goes on with."""

import json
from pathlib import Path
from typing import Any

from experiments import files


class Log:
    """metrics.jsonl: a line of JSON each time values are read back.

    Opened for a step, it drops the lines after that step, and a last line cut off by a
    kill, so that a resumed run leaves no step out and writes none twice.
    """

    def __init__(self, path: Path, step: int):
        """Opens the log to go on after `step`; `seconds` is the time it has told."""
        lines = []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if line["step"] > step:
                break
            lines.append(line)
        self.seconds: float = lines[-1]["seconds"] if lines else 0.0
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, at once."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

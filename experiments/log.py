"""The log of a run, which a continued run goes on with."""

import json
from pathlib import Path
from typing import Any

from experiments import files
from experiments.config import Refused


class Log:
    """metrics.jsonl: a line of JSON each time values are read back.

    Opened for a step, it drops the lines after that step, and a last line cut off by a
    kill, so that a resumed run leaves no step out and writes none twice.
    """

    def __init__(
        self, path: Path, step: int, written: bool = True, tensorboard: bool = False
    ):
        """Opens the log to go on after `step`; `seconds` is the time it has told.

        Args:
          path: the file.
          step: the last step that is done.
          written: whether this process writes it; of several only the first does.
          tensorboard: whether to write the numbers for TensorBoard too, beside it.

        Raises:
          Refused: if TensorBoard's writer is not installed.
        """
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
        self._file: Any = None
        self._board: Any = None
        if not written:
            return
        if tensorboard:
            self._board = _open_board(path.with_name("tensorboard"), step)
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, at once."""
        if self._file is None:
            return
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and not isinstance(value, str):
                    self._board.add_scalar(name, value, line["step"])
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def _open_board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise Refused(
            "--tensorboard needs tensorboardX: pip install tensorboardX, or leave it "
            "out; metrics.jsonl holds the same numbers."
        ) from error
    # What was logged after a resumed step is no longer shown then.
    return SummaryWriter(str(folder), purge_step=step)

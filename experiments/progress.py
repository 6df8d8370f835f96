"""The progress bar; where the output is not a terminal, a few lines instead."""

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column

from experiments.recipes import Plan


QUIET = 300  # seconds without a line, where there is no terminal
PERIOD = 3600  # seconds over which the speed is averaged


class Progress:
    """Shows where a run stands: phase, step, loss, error, sparsity, time left.

    A context manager; on a terminal a bar, elsewhere a line for each tenth of the run,
    and every five minutes.
    """

    def __init__(
        self,
        plan: Plan,
        step: int,
        console: Console | None = None,
        *,
        shown: bool = True,
    ):
        """Begins at `step` of `plan`; `console` is the screen if it is not given.

        Of several processes only one is `shown`.
        """
        self._shown = shown
        self._plan = plan
        self._console = console or Console()
        self._told = 10 * step // plan.steps
        self._told_at = time.monotonic()
        # 80 columns hold all of it: the bar gives way, not the steps.
        steps = Column(no_wrap=True, min_width=2 * len(str(plan.steps)) + 1)
        self._bar = Bar(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=steps),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=PERIOD,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task(
            self._phase(step), total=plan.steps, completed=step, values=""
        )

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()

    def update(self, step: int, line: dict[str, Any]) -> float | None:
        """Shows a line of the log; gives the seconds left, from the second line on."""
        phase = self._phase(step - 1)
        top5 = line.get("train_top5_error")
        values = (
            f"loss {line['loss']:<6.4g} error {line['train_error']:5.2f}% "
            + ("" if top5 is None else f"top-5 {top5:5.2f}% ")
            + f"sparsity {line['sparsity']:5.1%}"
            + ("" if top5 is None else f" {line['images_per_second']:.4g} images/s")
        )
        self._bar.update(self._task, completed=step, description=phase, values=values)
        left = self._bar.tasks[0].time_remaining
        tenth, now = 10 * step // self._plan.steps, time.monotonic()
        due = tenth > self._told or now - self._told_at > QUIET
        if self._shown and not self._console.is_terminal and due:
            self._told, self._told_at = tenth, now
            clock = "" if left is None else f"  {timedelta(seconds=left)} left"
            print(
                f"step {step:>6} of {self._plan.steps}  {phase:<10}  {values}{clock}",
                flush=True,
            )
        return left

    def _phase(self, step: int) -> str:
        return [name for begin, name in self._plan.phases if begin <= max(step, 0)][-1]

"""What a recipe gives to the training loop: an optimizer, and how long to run it."""

from typing import NamedTuple

import optax

from experiments.config import Refused


# Weights that stay alive in each layer, whatever the settings.
MIN_KEEP = 1


class Plan(NamedTuple):
    """What `train.fit` runs.

    Attributes:
      tx: the optimizer, with pruning inside; its state holds a `PruneState`.
      steps: how many steps in all.
      phases: first step and name of each part, for the progress bar and the figures.
      dense_step: the first step of the phase in which pruning begins; the params are
        kept then. `None` if it never does.
      dense_is_trained: whether the params kept there are those of a fully trained
        dense network, so that its error is a reference.
    """

    tx: optax.GradientTransformationExtraArgs
    steps: int
    phases: tuple[tuple[int, str], ...]
    dense_step: int | None
    dense_is_trained: bool

    @property
    def ends(self) -> dict[int, str]:
        """Gives the names of the phases, by the first step after each.

        Params that are trained from the start on are as if a phase ended there.
        """
        names = [name for _, name in self.phases]
        ends = [*[begin for begin, _ in self.phases[1:]], self.steps]
        given = {0: "dense"} if self.dense_is_trained and self.dense_step == 0 else {}
        return given | dict(zip(ends, names, strict=True))


# Steps are counted in 32 bits.
MAX_STEPS = 2**31
FEWER_STEPS = f"so few that the steps stay below {MAX_STEPS}"


def steps_of(flag: str, epochs: float, epoch: int) -> int:
    """Gives the steps of `epochs`, at least one; `epoch` is the steps in an epoch.

    Raises:
      Refused: naming the flag, if there are too many.
    """
    if epochs * epoch >= MAX_STEPS - 1:
        raise Refused(f"--{flag} is {epochs:g}, expected {FEWER_STEPS}.")
    return max(round(epochs * epoch), 1)

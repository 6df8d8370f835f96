"""Tables 2 to 6 of the paper, as printed.

Source:
  Han et al. 2015 (arXiv:1506.02626), tables 2 to 6.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of these tables.

    Attributes:
      weights: number of weights, rounded as printed.
      flop: operations of one example, 2 for each multiply-add.
      activations: Act%, percent of the layer's outputs that are not zero.
      kept: Weights%, percent of the weights that live.
      needed: FLOP%, percent of the operations that are needed.
    """

    weights: str
    flop: str
    activations: float
    kept: float
    needed: float


def _rows(text: str, renamed: dict[str, str] | None = None) -> dict[str, Row]:
    """Reads lines of layer, weights, FLOP, Act%, Weights%, FLOP%; the total is last."""
    rows = {}
    for line in text.strip().splitlines():
        layer, weights, flop, *percents = line.split()
        layer = (renamed or {}).get(layer, layer)
        path = layer if layer == "total" else f"{layer}/kernel"
        rows[path] = Row(weights, flop, *map(float, percents))
    return rows


TABLES: dict[str, dict[str, Row]] = {
    "LeNet-300-100": _rows("""
        fc1   235K  470K   38   8    8
        fc2   30K   60K    65   9    4
        fc3   1K    2K     100  26   17
        total 266K  532K   46   8    8"""),
    "LeNet-5": _rows("""
        conv1 0.5K  576K   82   66   66
        conv2 25K   3200K  72   12   10
        fc1   400K  800K   55   8    6
        fc2   5K    10K    100  19   10
        total 431K  4586K  77   8    16"""),
    "AlexNet": _rows(
        """
        conv1 35K   211M   88   84   84
        conv2 307K  448M   52   38   33
        conv3 885K  299M   37   35   18
        conv4 663K  224M   40   37   14
        conv5 442K  150M   34   37   14
        fc1   38M   75M    36   9    3
        fc2   17M   34M    40   9    3
        fc3   4M    8M     100  25   10
        total 61M   1.5B   54   11   30""",
        {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"},  # as Caffe names them
    ),
    "VGG-16": _rows("""
        conv1_1 2K   0.2B  53   58   58
        conv1_2 37K  3.7B  89   22   12
        conv2_1 74K  1.8B  80   34   30
        conv2_2 148K 3.7B  81   36   29
        conv3_1 295K 1.8B  68   53   43
        conv3_2 590K 3.7B  70   24   16
        conv3_3 590K 3.7B  64   42   29
        conv4_1 1M   1.8B  51   32   21
        conv4_2 2M   3.7B  45   27   14
        conv4_3 2M   3.7B  34   34   15
        conv5_1 2M   925M  32   35   12
        conv5_2 2M   925M  29   29   9
        conv5_3 2M   925M  19   36   11
        fc6     103M 206M  38   4    1
        fc7     17M  34M   42   4    2
        fc8     4M   8M    100  23   9
        total   138M 30.9B 64   7.5  21"""),
}
"""By network, then by path of the kernel, the total last."""

NUMBER = {"LeNet-300-100": 2, "LeNet-5": 3, "AlexNet": 4, "VGG-16": 5}
"""The number of each network's table."""


class Reduction(NamedTuple):
    """A row of table 6: a way to make AlexNet smaller, as printed.

    Attributes:
      method: its name.
      error: top-1 error in percent.
      top5: top-5 error in percent, `None` where none is printed.
      millions: parameters left.
      rate: compression.
    """

    method: str
    error: float
    top5: float | None
    millions: float
    rate: float


REDUCTIONS = (
    Reduction("baseline Caffemodel", 42.78, 19.73, 61.0, 1),
    Reduction("data-free pruning", 44.40, None, 39.6, 1.5),
    Reduction("Fastfood-32-AD", 41.93, None, 32.8, 2),
    Reduction("Fastfood-16-AD", 42.90, None, 16.4, 3.7),
    Reduction("Collins & Kohli", 44.40, None, 15.2, 4),
    Reduction("naive cut", 47.18, 23.23, 13.8, 4.4),
    Reduction("SVD", 44.02, 20.56, 11.9, 5),
    Reduction("network pruning", 42.77, 19.67, 6.7, 9),
)
"""Table 6."""

"""Deep Compression: shared weights, coded positions, one small file."""

from jaxprune.compress._huffman import CorruptError as CorruptError
from jaxprune.compress._kmeans import Codebook as Codebook
from jaxprune.compress._kmeans import share_weights as share_weights
from jaxprune.compress._save import load as load
from jaxprune.compress._save import read_graph as read_graph
from jaxprune.compress._save import save as save
from jaxprune.compress._share import share as share
from jaxprune.compress._sizes import LayerSize as LayerSize
from jaxprune.compress._sizes import Sizes as Sizes
from jaxprune.compress._sizes import sizes as sizes
from jaxprune.compress._tie import TieState as TieState
from jaxprune.compress._tie import tie as tie

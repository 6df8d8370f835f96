"""Deep Compression: shared weights, coded positions, one small file."""

from jaxprune.compress._kmeans import Codebook as Codebook
from jaxprune.compress._kmeans import share_weights as share_weights

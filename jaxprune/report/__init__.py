"""Reports: what a network costs, dense and pruned, layer by layer."""

from jaxprune.report._activations import Activations as Activations
from jaxprune.report._activations import Reading as Reading
from jaxprune.report._activations import activations as activations
from jaxprune.report._counts import Counts as Counts
from jaxprune.report._counts import count as count
from jaxprune.report._counts import first_and_last as first_and_last
from jaxprune.report._rows import LayerCount as LayerCount

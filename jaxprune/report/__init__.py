"""Reports: what a network costs, dense and pruned, layer by layer."""

from jaxprune.report._activations import Activations as Activations
from jaxprune.report._activations import Reading as Reading
from jaxprune.report._activations import activations as activations
from jaxprune.report._costs import costs as costs
from jaxprune.report._counts import Counts as Counts
from jaxprune.report._counts import count as count
from jaxprune.report._counts import first_and_last as first_and_last
from jaxprune.report._counts import positions as positions
from jaxprune.report._energy import ENERGY_45NM as ENERGY_45NM
from jaxprune.report._energy import Energy as Energy
from jaxprune.report._energy import LayerEnergy as LayerEnergy
from jaxprune.report._energy import energy as energy
from jaxprune.report._gps_up import GpsUp as GpsUp
from jaxprune.report._gps_up import gps_up as gps_up
from jaxprune.report._page import page as page
from jaxprune.report._rows import LayerCount as LayerCount
from jaxprune.report._storage import LayerStorage as LayerStorage
from jaxprune.report._storage import Storage as Storage
from jaxprune.report._storage import storage as storage
from jaxprune.report._table import table as table
from jaxprune.report._table import to_csv as to_csv
from jaxprune.report._table import to_markdown as to_markdown
from jaxprune.report._table import to_rich as to_rich

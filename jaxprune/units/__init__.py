"""Units that have become useless: finding them, and the smaller net without them."""

from jaxprune.units._find import find_links as find_links
from jaxprune.units._link import Link as Link
from jaxprune.units._remove import Smaller as Smaller
from jaxprune.units._remove import Units as Units
from jaxprune.units._remove import dead_units as dead_units
from jaxprune.units._remove import remove_dead as remove_dead

"""Running a pruned model faster: matrices without their dead weights.

`sparsify` puts the matrices that gain by it in a form for execution; `lift` lets a
function written for dense params take them. The product is plain XLA, so it runs under
jit, vmap and grad, exports, and lowers for every platform; with the extra `fast`, a CPU
runs it by a numba kernel on all its cores. Which way is fastest is estimated from
`Costs`, which `python -m jaxprune.sparse.calibrate` measures once on a machine.
"""

from jaxprune.sparse._choose import Costs as Costs
from jaxprune.sparse._choose import choose as choose
from jaxprune.sparse._choose import conv_pays as conv_pays
from jaxprune.sparse._choose import dense_time as dense_time
from jaxprune.sparse._choose import fast_time as fast_time
from jaxprune.sparse._choose import pays as pays
from jaxprune.sparse._choose import sparse_time as sparse_time
from jaxprune.sparse._conv import SparseConv as SparseConv
from jaxprune.sparse._conv import conv_to_dense as conv_to_dense
from jaxprune.sparse._conv import convolve as convolve
from jaxprune.sparse._conv import to_conv as to_conv
from jaxprune.sparse._costs import default_costs as default_costs
from jaxprune.sparse._costs import read_costs as read_costs
from jaxprune.sparse._costs import write_costs as write_costs
from jaxprune.sparse._groups import SparseGroups as SparseGroups
from jaxprune.sparse._groups import groups_to_dense as groups_to_dense
from jaxprune.sparse._groups import to_groups as to_groups
from jaxprune.sparse._kernel import SparseKernel as SparseKernel
from jaxprune.sparse._kernel import to_dense as to_dense
from jaxprune.sparse._kernel import to_kernel as to_kernel
from jaxprune.sparse._lift import lift as lift
from jaxprune.sparse._product import product as product
from jaxprune.sparse._sparsify import densify as densify
from jaxprune.sparse._sparsify import sparsify as sparsify

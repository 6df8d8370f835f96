"""What networks are trained on and judged on: digits here, photographs in the modules.

Only the digits are imported with the package: Grain and the decoders, which photographs
need, take a second to load. For those: `images.make_batches`, `sources.open_source`,
`settings.Images`, `device.OnDevice`, and `cifar.load_cifar10`.
"""

from experiments.data.digits import Digits as Digits
from experiments.data.digits import Split as Split
from experiments.data.digits import load as load
from experiments.data.digits import put as put

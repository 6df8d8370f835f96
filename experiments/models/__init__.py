"""The networks of the paper, each with its data for tables and dropout."""

from experiments.models.lenet import LENET5 as LENET5
from experiments.models.lenet import LENET300 as LENET300
from experiments.models.lenet import LeNet5 as LeNet5
from experiments.models.lenet import LeNet300 as LeNet300
from experiments.models.lenet import Network as Network
from experiments.models.lenet import Rates as Rates

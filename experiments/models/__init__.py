"""The networks of the paper, each with its data for tables and dropout."""

from experiments.models.alexnet import ALEXNET as ALEXNET
from experiments.models.alexnet import ALEXNET_CIFAR10 as ALEXNET_CIFAR10
from experiments.models.alexnet import ALEXNET_TORCHVISION as ALEXNET_TORCHVISION
from experiments.models.alexnet import AlexNet as AlexNet
from experiments.models.lenet import LENET5 as LENET5
from experiments.models.lenet import LENET300 as LENET300
from experiments.models.lenet import LeNet5 as LeNet5
from experiments.models.lenet import LeNet300 as LeNet300
from experiments.models.network import Link as Link
from experiments.models.network import Network as Network
from experiments.models.network import Rates as Rates
from experiments.models.network import resized as resized
from experiments.models.preprocess import preprocess as preprocess
from experiments.models.squeezenet import SQUEEZENET as SQUEEZENET
from experiments.models.squeezenet import SqueezeNet as SqueezeNet
from experiments.models.vgg import VGG16 as VGG16
from experiments.models.vgg import VGG16_CAFFE as VGG16_CAFFE
from experiments.models.vgg import VGG16_CIFAR10 as VGG16_CIFAR10
from experiments.models.vgg import VGG16_TORCHVISION as VGG16_TORCHVISION

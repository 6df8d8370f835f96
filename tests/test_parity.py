"""The ImageNet networks give the logits of the same networks in PyTorch layers.

The weights are PyTorch's, random, in its layout; they are brought over in NumPy, the
rows of fc6 permuted from channels, height, width.
"""

from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import pytest
from quick import quick

from experiments import models


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the reference here")


def caffe_alexnet(nn, classes):
    norm = lambda: nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    return OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, 4),
        relu1=nn.ReLU(),
        norm1=norm(),
        pool1=pool(),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(),
        norm2=norm(),
        pool2=pool(),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(),
        pool5=pool(),
        **head(nn, 256 * 6 * 6, 4096, classes),
    )


def torchvision_alexnet(nn, classes):
    return OrderedDict(
        conv1=nn.Conv2d(3, 64, 11, 4, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, 2),
        conv2=nn.Conv2d(64, 192, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, 2),
        conv3=nn.Conv2d(192, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 256, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(256, 256, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, 2),
        average=nn.AdaptiveAvgPool2d((6, 6)),
        **head(nn, 256 * 6 * 6, 4096, classes),
    )


def cifar_alexnet(nn, classes):
    layers = torchvision_alexnet(nn, classes)
    layers["conv1"] = nn.Conv2d(3, 64, 3, padding=1)
    layers["conv2"] = nn.Conv2d(64, 192, 3, padding=1)
    for i in (1, 2, 5):
        layers[f"pool{i}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    del layers["average"]
    layers.update(head(nn, 256 * 4 * 4, 1024, classes))
    return layers


def vgg16(nn, classes, *, units=4096, side=7, normalised=False):
    layers, inputs = OrderedDict(), 3
    for block, (width, count) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1
    ):
        for i in range(1, count + 1):
            layers[f"conv{block}_{i}"] = nn.Conv2d(inputs, width, 3, padding=1)
            if normalised:
                layers[f"norm{block}_{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{block}_{i}"] = nn.ReLU()
            inputs = width
        layers[f"pool{block}"] = nn.MaxPool2d(2, 2)
    layers.update(head(nn, 512 * side**2, units, classes, normalised))
    return layers


def cifar_vgg16(nn, classes):
    return vgg16(nn, classes, units=512, side=1, normalised=True)


def head(nn, inputs, units, classes, normalised=False):
    layers = OrderedDict(flatten=nn.Flatten())
    for i in (6, 7):
        layers[f"fc{i}"] = nn.Linear(inputs, units)
        if normalised:
            layers[f"norm{i}"] = nn.BatchNorm1d(units)
        layers[f"relu{i}"] = nn.ReLU()
        inputs = units
    layers["fc8"] = nn.Linear(units, classes)
    return layers


def squeezenet(nn, classes):
    class Fire(nn.Module):
        def __init__(self, inputs, squeeze):
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, squeeze, 1)
            self.expand1 = nn.Conv2d(squeeze, 4 * squeeze, 1)
            self.expand3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            one, three = self.expand1(x).relu(), self.expand3(x).relu()
            width = one.shape[1]
            both = one.new_empty(len(x), 2 * width, *x.shape[2:])
            both[:, :width], both[:, width:] = one, three
            return both

    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    return OrderedDict(
        conv1=nn.Conv2d(3, 96, 7, 2),
        relu1=nn.ReLU(),
        pool1=pool(),
        fire2=Fire(96, 16),
        fire3=Fire(128, 16),
        fire4=Fire(128, 32),
        pool4=pool(),
        fire5=Fire(256, 32),
        fire6=Fire(256, 48),
        fire7=Fire(384, 48),
        fire8=Fire(384, 64),
        pool8=pool(),
        fire9=Fire(512, 64),
        conv_final=nn.Conv2d(512, classes, 1, padding=1),
        relu_final=nn.ReLU(),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )


def to_flax(state, network) -> Any:
    """The weights of a torch network by our names, in our layouts."""
    params: dict[str, Any] = {}
    for key, value in state.items():
        *names, kind = key.split(".")
        if kind == "num_batches_tracked":
            continue
        kind = {"running_mean": "mean", "running_var": "variance"}.get(kind, kind)
        node = params
        for name in names:
            node = node.setdefault(name, {})
        weight = value.numpy()
        path = "/".join([*names, "kernel"])
        if kind == "weight" and path in network.flatten:
            weight = weight.reshape(-1, *network.flatten[path])
            weight = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
        elif weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        elif weight.ndim == 2:
            weight = weight.T
        if kind == "weight":
            kind = "scale" if weight.ndim == 1 else "kernel"
        node[kind] = weight
    return params


# Sides at which pooling reaches past the border too: 215 leaves 52 and 26 rows of
# AlexNet, 224 leaves 109 and 54 of SqueezeNet.
CASES = {
    "alexnet": (models.ALEXNET, caffe_alexnet, (227, 215), 50),
    "alexnet_torchvision": (models.ALEXNET_TORCHVISION, torchvision_alexnet, (224,), 1),
    "alexnet_cifar10": (models.ALEXNET_CIFAR10, cifar_alexnet, (32,), 1),
    "vgg16": (models.VGG16_CAFFE, vgg16, (224,), 50),
    "vgg16_cifar10": (models.VGG16_CIFAR10, cifar_vgg16, (32,), 1),
    "squeezenet": (models.SQUEEZENET, squeezenet, (227, 224), 50),
}


@pytest.mark.parametrize("case", quick(CASES, "alexnet_cifar10"))
def test_logits_are_torchs(torch, case):
    network, layers, sides, deviation = CASES[case]
    torch.manual_seed(0)
    reference = torch.nn.Sequential(layers(torch.nn, network.classes)).eval()
    with torch.no_grad():
        for weight in reference.parameters():  # activations as large in every layer
            if weight.ndim > 1:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
            elif deviation > 1:
                weight.normal_(0, deviation / 10)
            else:
                weight.add_(torch.randn_like(weight) / 10)
        for name, statistic in reference.named_buffers():
            if name.endswith("mean"):
                statistic.normal_(0, 0.3)
            elif name.endswith("var"):
                statistic.uniform_(0.5, 2)
    params = to_flax(reference.state_dict(), network)
    logits_of = jax.jit(lambda p, x: network.module.apply({"params": p}, x))

    for side in sides:
        draw = np.random.default_rng(side)
        images = draw.normal(0, deviation, (2, side, side, 3)).astype(np.float32)
        images[1] *= 0.3
        got = logits_of(params, images)
        with torch.no_grad():
            expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        expected = expected.numpy()
        assert expected.std() > 0.1 * deviation  # the images count, not biases alone
        assert abs(expected[0] - expected[1]).max() > 0.1 * expected.std()
        scale = float(abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * scale)

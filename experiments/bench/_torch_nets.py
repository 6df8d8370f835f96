"""VGG-16 and AlexNet of torch layers, and a training step, to be timed beside ours."""

import importlib
from collections.abc import Callable
from typing import Any

from experiments.models import VGG16, AlexNet, Network
from experiments.models.preprocess import KINDS
from experiments.models.vgg import BLOCKS


MOMENTUM = 0.9  # that of the experiments


def make_net(torch: Any, network: Network) -> Any:
    """Makes the network, with weights drawn by PyTorch, for inputs of its size.

    Its dropout has the rates of dense training.
    """
    nn, module = torch.nn, network.module
    height, width, channels = network.input
    if isinstance(module, VGG16) and not module.batch_norm:
        layers, channels = _vgg(nn, channels)
        hidden = (module.units, module.units)
    elif isinstance(module, AlexNet):
        layers, channels = _alexnet(nn, module, channels)
        hidden = tuple(dense.units for dense in module.hidden)
    else:
        raise ValueError(f"{network.name} has no PyTorch twin here.")
    features = nn.Sequential(*layers)
    with torch.no_grad():
        shape = features(torch.zeros(1, network.input[2], height, width)).shape
    fan = channels * shape[2] * shape[3]
    rates = network.rates
    head: list[Any] = [nn.Flatten()]
    if "conv5" in rates:
        head.append(nn.Dropout(rates["conv5"]))
    for name, units in zip(("fc6", "fc7"), hidden, strict=True):
        head += [nn.Linear(fan, units), nn.ReLU()]
        if name in rates:
            head.append(nn.Dropout(rates[name]))
        fan = units
    return nn.Sequential(features, *head, nn.Linear(fan, network.classes))


def make_steps(
    network: Network,
    images: Any,
    labels: Any,
    *,
    device: str,
    dtype: str,
    lr: float,
    strength: float,
    compiled: bool,
) -> Callable[[], None]:
    """Makes the function that trains one step, and waits for nothing.

    Args:
      network: what is trained.
      images: uint8 array of the host, (batch, height, width, channels).
      labels: integers of the host, (batch,).
      device: "cuda" or "cpu".
      dtype: of the computation, by autocast: "float32" is none.
      lr: learning rate of SGD with momentum.
      strength: weight decay.
      compiled: whether forward pass and loss go through torch.compile.
    """
    torch: Any = importlib.import_module("torch")  # an extra, so not typed
    # What XLA does by default too: float32 products in TF32, the fastest convolution.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    net = make_net(torch, network).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=lr,
        momentum=MOMENTUM,
        weight_decay=strength,
        fused=device == "cuda",
    )
    mean, deviation, bgr = KINDS[network.preprocessing]
    mean, deviation = (
        torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, deviation)
    )
    # Seen as (batch, channels, height, width), the bytes are in channels_last.
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long().to(device)
    half = dtype == "bfloat16"

    def loss_of(pixels: Any, targets: Any) -> Any:
        x = (pixels.flip(1) if bgr else pixels).float()
        x = (x - mean) / deviation
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(pixels, targets).backward()
        optimizer.step()

    return step


def _vgg(nn: Any, channels: int) -> tuple[list[Any], int]:
    layers = []
    for features, count in BLOCKS:
        for _ in range(count):
            layers.append(nn.Conv2d(channels, features, 3, padding=1))
            layers.append(nn.ReLU())
            channels = features
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return layers, channels


def _alexnet(nn: Any, module: AlexNet, channels: int) -> tuple[list[Any], int]:
    layers = []
    for c in module.convs:
        layers += [
            nn.Conv2d(channels, c.features, c.size, c.stride, c.padding, 1, c.groups),
            nn.ReLU(),
        ]
        if c.lrn:
            layers.append(nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0))
        if c.pool:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        channels = c.features
    return layers, channels

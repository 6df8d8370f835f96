"""From the bytes of a photograph to the square of pixels that a network is given.

For each of two conventions, Caffe's and torchvision's, a transform to train with and
one to judge with. All write uint8 RGB, (crop, crop, 3); the mean is subtracted, and
channels are swapped, on the device. What is drawn comes from the generator alone.

To judge, photographs are resized by Pillow's bilinear filter, antialiased, the
reference of both. To train, by OpenCV's, as Caffe does: much faster, and not
antialiased. JPEGs that are twice too large in both directions come halved from the
decoder, and what is still more than three times too large in one is averaged.
"""

import functools
import math
import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from experiments.data.decode import Box, decode_box, decode_rows, size


# Bytes of a file, generator of what is drawn, where to write uint8 (crop, crop, 3).
Transform = Callable[[bytes, random.Random, np.ndarray], None]
Convention = Literal["caffe", "torchvision"]


def crop_of(convention: Convention) -> int:
    """Gives the side of the crop that the convention's networks are made for."""
    return 227 if convention == "caffe" else 224


def make_transform(
    convention: Convention, *, train: bool, crop: int, resize: int = 256
) -> Transform:
    """Makes a transform, which can be sent to another process.

    Args:
      convention: caffe: the whole photograph is squashed to a square. torchvision: the
        middle is judged on, and random boxes are trained on.
      train: draw a crop and a reflection, or take the crop in the middle.
      crop: side of the result.
      resize: side of Caffe's square, or length of the shorter side to judge on.

    Raises:
      ValueError: if the crop is not in the resized photograph.
    """
    if not 1 <= crop <= resize:
        raise ValueError(
            f"crop is {crop} and resize is {resize}, expected 1 <= crop <= resize."
        )
    if convention == "caffe":
        function = caffe_train if train else caffe_eval
        return functools.partial(function, resize=resize)
    if train:
        return torchvision_train
    return functools.partial(torchvision_eval, resize=resize)


def caffe_train(
    data: bytes, draw: random.Random, out: np.ndarray, *, resize: int = 256
) -> None:
    """Squashes to a square, takes a random crop, reflects every second one.

    Source:
      Caffe's data layer and its ImageNet example, which squashes beforehand.
    """
    crop = len(out)
    pixels = decode_box(data, Box(0, 0, *size(data)), resize)
    square = _shrink_or_grow(pixels, np.empty((resize, resize, 3), np.uint8))
    top, left = draw.randrange(resize - crop + 1), draw.randrange(resize - crop + 1)
    out[:] = square[top : top + crop, left : left + crop]
    _reflect(out, draw)


def torchvision_train(data: bytes, draw: random.Random, out: np.ndarray) -> None:
    """Takes a random box, resizes it to the crop, reflects every second one.

    Source:
      Szegedy et al. 2015 (arXiv:1409.4842), section 6, as in torchvision's
      RandomResizedCrop and RandomHorizontalFlip.
    """
    box = random_box(draw, *size(data))
    _shrink_or_grow(decode_box(data, box, len(out)), out)
    _reflect(out, draw)


def caffe_eval(
    data: bytes, draw: random.Random, out: np.ndarray, *, resize: int = 256
) -> None:
    """Squashes to a square and takes the crop in its middle."""
    offset = (resize - len(out)) // 2
    _resized_crop(data, (resize, resize), (offset, offset), out)


def torchvision_eval(
    data: bytes, draw: random.Random, out: np.ndarray, *, resize: int = 256
) -> None:
    """Resizes the shorter side, the aspect kept, and takes the crop in the middle."""
    shape = short_side(*size(data), resize)
    top, left = (round((side - len(out)) / 2) for side in shape)
    _resized_crop(data, shape, (top, left), out)


def short_side(height: int, width: int, resize: int) -> tuple[int, int]:
    """Gives the shape whose shorter side is `resize`, the longer one rounded down.

    >>> short_side(400, 470, 256)
    (256, 300)
    """
    if height <= width:
        return resize, resize * width // height
    return resize * height // width, resize


def random_box(draw: random.Random, height: int, width: int) -> Box:
    """Draws a box of 8% to 100% of the area, of an aspect of 3:4 to 4:3.

    The area is uniform and the aspect uniform in its logarithm. After ten draws that
    do not fit, the largest box of an allowed aspect in the middle.
    """
    for _ in range(10):
        area = height * width * draw.uniform(0.08, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = draw.randrange(height - rows + 1)
            return Box(top, draw.randrange(width - columns + 1), rows, columns)
    rows = min(height, max(1, round(width * 4 / 3)))
    columns = min(width, max(1, round(height * 4 / 3)))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def _resized_crop(
    data: bytes, shape: tuple[int, int], corner: tuple[int, int], out: np.ndarray
) -> None:
    """Writes what Pillow's resize to `shape`, cut to `out` at `corner`, would give.

    Only the crop is computed: Pillow's filter reaches over the edges of its box.
    """
    from PIL import Image

    height, width = size(data)
    crop = len(out)
    down, right = height / shape[0], width / shape[1]
    bottom = (corner[0] + crop) * down
    # The filter reaches as far as it shrinks.
    pixels = decode_rows(data, math.ceil(bottom + max(1.0, down)) + 1)
    # A side that keeps its length is cut here, which spares Pillow a pass over it.
    top, left = corner[0] * down, corner[1] * right
    if shape[0] == height:
        pixels, top, bottom = pixels[corner[0] : corner[0] + crop], 0, crop
    if shape[1] == width:
        pixels, left = pixels[:, corner[1] : corner[1] + crop], 0
    if pixels.shape[:2] == (crop, crop):
        out[:] = pixels
        return
    edges = (left, top, min(pixels.shape[1], left + crop * right), min(height, bottom))
    image = Image.fromarray(pixels)
    out[:] = image.resize((crop, crop), Image.Resampling.BILINEAR, box=edges)


def _shrink_or_grow(pixels: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Resizes to the shape of `out`, which is contiguous, and into it."""
    cv2 = _opencv()
    rows, columns = out.shape[:2]
    # Averaging takes as long as decoding: only where most pixels would be skipped.
    far = pixels.shape[0] > 3 * rows or pixels.shape[1] > 3 * columns
    method = cv2.INTER_AREA if far else cv2.INTER_LINEAR
    return cv2.resize(pixels, (columns, rows), dst=out, interpolation=method)


def _reflect(out: np.ndarray, draw: random.Random) -> None:
    if draw.random() < 0.5:
        _opencv().flip(out, 1, dst=out)


@functools.cache
def _opencv() -> Any:
    import cv2

    # The caller's threads and processes take a photograph each.
    cv2.setNumThreads(1)
    return cv2

"""Transforms of photographs as one writes them around a decoder, without short cuts.

Each decodes the whole file with one library and then does what
`experiments.data.transforms` does. They are what that module is measured beside.
"""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data.decode import Box
from experiments.data.transforms import Convention, Transform, random_box, short_side


def opencv(data: bytes) -> np.ndarray:
    """Decodes with OpenCV; the channels are put in the order RGB."""
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV gave no image")
    return pixels


def simplejpeg(data: bytes) -> np.ndarray:
    """Decodes with simplejpeg."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data)


def pillow(data: bytes) -> np.ndarray:
    """Decodes with Pillow."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "simplejpeg": simplejpeg,
    "OpenCV": opencv,
    "PIL": pillow,
}


def plain_transform(
    decoder: str, convention: Convention, *, train: bool, resize: int
) -> Transform:
    """Makes a transform that decodes the whole file with one of `DECODERS`.

    To train, PIL resizes with its own filter and the others with OpenCV; to judge, all
    resize with PIL, for the pixels are to be those of published results.
    """
    decode = DECODERS[decoder]
    shrink = _resize_pillow if decoder == "PIL" or not train else _resize_opencv

    def transform(data: bytes, draw: random.Random, out: np.ndarray) -> None:
        pixels = decode(data)
        height, width = pixels.shape[:2]
        crop = len(out)
        if train and convention == "torchvision":
            box = random_box(draw, height, width)
            out[:] = shrink(pixels, box, crop, crop)
        else:
            shape = (resize, resize)
            if convention == "torchvision":
                shape = short_side(height, width, resize)
            whole = shrink(pixels, Box(0, 0, height, width), *shape)
            top, left = ((side - crop) // 2 for side in shape)
            if train:
                top, left = (draw.randrange(side - crop + 1) for side in shape)
            out[:] = whole[top : top + crop, left : left + crop]
        if train and draw.random() < 0.5:
            out[:] = out[:, ::-1].copy()

    return transform


def _resize_opencv(pixels: np.ndarray, box: Box, rows: int, columns: int) -> Any:
    import cv2

    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR)


def _resize_pillow(pixels: np.ndarray, box: Box, rows: int, columns: int) -> Any:
    from PIL import Image

    top, left, height, width = box
    part = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    return np.asarray(part.resize((columns, rows), Image.Resampling.BILINEAR))

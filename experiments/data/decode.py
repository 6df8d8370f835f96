"""Bytes of an image file to RGB pixels, or only to those that a crop needs.

JPEG files of the usual kinds go through simplejpeg (libjpeg-turbo), everything else
through Pillow: CMYK, PNG named .jpg, 12 bits, arithmetic coding, files without an end
marker. The EXIF orientation is not applied, as in every published ImageNet result.
"""

import io
import math
import struct
from typing import NamedTuple

import numpy as np


# Pillow's own limit, beyond which it refuses a file as a decompression bomb.
_MOST_PIXELS = 178_956_970
# Rows to decode below a crop: libjpeg interpolates colour across the edge of a block.
_MARGIN = 16


class Broken(ValueError):
    """An image that cannot be read; the message says why."""


class Box(NamedTuple):
    """A rectangle of pixels: first row and column, rows and columns."""

    top: int
    left: int
    height: int
    width: int


class _Frame(NamedTuple):
    """What a JPEG's frame header says, and where it says the height."""

    offset: int
    height: int
    width: int


def size(data: bytes) -> tuple[int, int]:
    """Gives (height, width) without decoding.

    Raises:
      Broken: if the bytes are of no image format that is known.
    """
    frame = _frame(data)
    if frame is not None:
        return frame.height, frame.width
    with _open(data) as image:
        return image.height, image.width


def decode(data: bytes) -> np.ndarray:
    """Decodes a whole image to uint8, (height, width, 3), RGB.

    Raises:
      Broken: if it is cut off or of no image format that is known.
    """
    return decode_rows(data, None)


def decode_rows(data: bytes, rows: int | None) -> np.ndarray:
    """Decodes at least the first `rows` rows, all of them if `None`.

    The pixels are those of `decode`. Of a JPEG the rows below are not decoded: a copy
    with a smaller height in its header goes to the decoder.

    Raises:
      Broken: if it is cut off or of no image format that is known.
    """
    frame = _frame(data)
    if frame is not None:
        height = _rows_needed(frame, rows)
        pixels = _jpeg(data, frame, height, 1)
        if pixels is not None:
            return pixels
    return _pillow(data)


def decode_box(data: bytes, box: Box, least: int) -> np.ndarray:
    """Decodes a box, at a half, a quarter or an eighth of the size if it can.

    A JPEG is reduced, in its cosine transform, as long as both sides of the box stay at
    least `least` pixels long; the box is then widened to whole pixels. Other files, and
    boxes too small to be reduced, come in full size: pixels of `decode`, exactly.

    Returns:
      uint8, (rows, columns, 3), RGB; a view.

    Raises:
      Broken: if it is cut off or of no image format that is known.
    """
    frame = _frame(data)
    if frame is not None:
        shorter = min(box.height, box.width)
        factor = next((k for k in (8, 4, 2) if shorter >= k * least), 1)
        height = _rows_needed(frame, box.top + box.height)
        pixels = _jpeg(data, frame, height, factor)
        if pixels is not None:
            top, left = box.top // factor, box.left // factor
            bottom = math.ceil((box.top + box.height) / factor)
            right = math.ceil((box.left + box.width) / factor)
            return pixels[top:bottom, left:right]
    pixels = _pillow(data)
    return pixels[
        box.top : box.top + box.height,
        box.left : box.left + box.width,
    ]


def _rows_needed(frame: _Frame, rows: int | None) -> int:
    if rows is None:
        return frame.height
    return min(frame.height, (rows + 2 * _MARGIN - 1) // _MARGIN * _MARGIN)


def _jpeg(data: bytes, frame: _Frame, height: int, factor: int) -> np.ndarray | None:
    """Decodes the first `height` rows, reduced; `None` if the decoder gives up."""
    import simplejpeg

    if height < frame.height:
        at = frame.offset
        data = b"".join((data[:at], struct.pack(">H", height), data[at + 2 :]))
    try:
        # Not strict: libjpeg warns of the bytes after the last row wanted, and of
        # harmless oddities that Pillow passes over too. Files that are cut off were
        # sorted out by their end marker.
        return simplejpeg.decode_jpeg(
            data,
            min_height=math.ceil(height / factor),
            min_width=math.ceil(frame.width / factor),
            min_factor=factor,
            strict=False,
        )
    except ValueError:
        return None


def _frame(data: bytes) -> _Frame | None:
    """Reads the frame header of a JPEG of the usual kinds; `None` for other bytes."""
    if data[:3] != b"\xff\xd8\xff" or data[-2:] != b"\xff\xd9":
        return None
    at, end = 2, len(data) - 9
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            usual = bits == 8 and channels in (1, 3) and height and width
            if not usual or height * width > _MOST_PIXELS:
                return None
            return _Frame(at + 5, height, width)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # lossless, hierarchical or arithmetic
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _pillow(data: bytes) -> np.ndarray:
    with _open(data) as image:
        try:
            if "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's plugins raise what they like
            raise Broken(f"{type(error).__name__}: {error}") from error


def _open(data: bytes):
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise Broken(f"{len(data)} bytes of no known image format") from error
    except Exception as error:  # Pillow's plugins raise what they like
        raise Broken(f"{type(error).__name__}: {error}") from error

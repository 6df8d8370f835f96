"""Caffe's `.caffemodel` as arrays by name.

The file is a protocol buffer. Only the fields that hold weights are described here;
protobuf skips the others. Layers are written as `layer`, or in older files, such as
AlexNet's and VGG's published weights, as `layers` with types by number and shapes of
four dimensions throughout.

Source:
  Numbers and types of the fields: BVLC Caffe, src/caffe/proto/caffe.proto.
"""

import functools
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.interop._optional import require


# Message: field, number, type (of protobuf, or another message), repeated.
_SCHEMA = {
    "BlobShape": [("dim", 1, "int64", True)],
    "BlobProto": [
        ("num", 1, "int64", False),
        ("channels", 2, "int64", False),
        ("height", 3, "int64", False),
        ("width", 4, "int64", False),
        ("data", 5, "float", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "double", True),
    ],
    "V1LayerParameter": [
        ("name", 4, "string", False),
        ("type", 5, "int32", False),  # an enumeration
        ("blobs", 6, "BlobProto", True),
    ],
    "LayerParameter": [
        ("name", 1, "string", False),
        ("type", 2, "string", False),
        ("blobs", 7, "BlobProto", True),
    ],
    "NetParameter": [
        ("name", 1, "string", False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ],
}
# Dimensions of a layer's first blob; all others have one.
_RANKS = {"Convolution": 4, "Deconvolution": 4, "InnerProduct": 2, 4: 4, 39: 4, 14: 2}
_LEGACY = ("num", "channels", "height", "width")


def read_caffemodel(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights of a `.caffemodel`, with layers of either format.

    A layer's tensors are "conv1/0", its weights, and "conv1/1", its bias; further ones
    of other layers follow in their order. Convolutions are (out, in / groups, height,
    width), dense layers (out, in), biases (out,), also where an old file pads their
    shapes with ones in front.

    Returns:
      float32 arrays by name (float64 where the file holds doubles).

    Raises:
      ImportError: if protobuf is not installed.
      OSError: if the file cannot be opened.
      ValueError: if it is damaged, or holds no weights; naming the layer where one
        lies about its shape.
    """
    decode_error = require("google.protobuf.message", "interop").DecodeError
    net = caffe_message("NetParameter")()
    try:
        net.ParseFromString(Path(path).read_bytes())
    except decode_error as error:
        raise ValueError(f"{path} is not a whole .caffemodel: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    for layer in (*net.layers, *net.layer):
        name = layer.name
        if layer.blobs and f"{name}/0" in tensors:
            raise ValueError(f"{path} has two layers named {name!r} with weights.")
        for i, blob in enumerate(layer.blobs):
            tensors[f"{name}/{i}"] = _array(
                blob,
                f"{path}: layer {name!r}, blob {i}",
                _RANKS.get(layer.type, 1) if i == 0 else 1,
            )
    if not tensors:
        raise ValueError(
            f"{path} holds no weights: it is no .caffemodel, an empty one, or one of "
            "Caffe's first format, which Caffe's upgrade_net_proto_binary converts."
        )
    return tensors


def _array(blob: Any, where: str, rank: int) -> np.ndarray:
    values, dtype = blob.data, np.float32
    if len(blob.double_data):
        values, dtype = blob.double_data, np.float64
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        shape = tuple(getattr(blob, field) for field in _LEGACY)
        # The old four dimensions: a bias is (1, 1, 1, out), a matrix (1, 1, out, in).
        while len(shape) > rank and shape[0] == 1:
            shape = shape[1:]
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(
            f"{where} has shape {shape} but {len(values)} values; the file is damaged, "
            "or its values are of a kind that Caffe's own files do not have."
        )
    # Older versions of protobuf would make a Python float of every value at once.
    if hasattr(values, "__array__"):
        return np.array(values, dtype).reshape(shape)
    return np.fromiter(values, dtype, len(values)).reshape(shape)


@functools.cache
def caffe_message(name: str) -> Any:
    """Makes the class of one of Caffe's messages, with the fields that hold weights."""
    descriptor_pb2 = require("google.protobuf.descriptor_pb2", "interop")
    descriptor_pool = require("google.protobuf.descriptor_pool", "interop")
    message_factory = require("google.protobuf.message_factory", "interop")
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="jaxprune_caffe.proto", package="caffe", syntax="proto2"
    )
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for field, number, kind, repeated in fields:
            entry = described.field.add(name=field, number=number)
            entry.label = (
                field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            )
            if kind in _SCHEMA:
                entry.type = field_type.TYPE_MESSAGE
                entry.type_name = f".caffe.{kind}"
            else:
                entry.type = getattr(field_type, f"TYPE_{kind.upper()}")
                entry.options.packed = repeated and kind != "string"
    # A pool of its own: the process may hold Caffe's whole schema under these names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))

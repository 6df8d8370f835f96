"""Caffe's files: OpenCV's dnn module reads the same file and computes the same."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxprune import interop
from jaxprune.interop._caffe import caffe_message


PROTOTXT = """
name: "tiny"
input: "data"
input_shape { dim: 2 dim: 4 dim: 8 dim: 9 }
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 3 stride: 1 pad: 1 group: 2 }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "block/fc2" type: "InnerProduct" bottom: "pool1" top: "fc2"
  inner_product_param { num_output: 7 }
}
layer { name: "relu2" type: "ReLU" bottom: "fc2" top: "fc2" }
layer {
  name: "fc3" type: "InnerProduct" bottom: "fc2" top: "fc3"
  inner_product_param { num_output: 5 }
}
"""
LAYERS = {"conv1": "conv1", "fc2": "block/fc2", "fc3": "fc3"}
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 9, 4)).astype(np.float32)


class Net(nn.Module):
    """The same network here. Caffe rounds up when it pools: nine columns give five."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, name="conv1")(x))
        x = nn.max_pool(x, (2, 2), (2, 2), padding=((0, 0), (0, 1)))
        x = nn.relu(nn.Dense(7, name="fc2")(x.reshape(x.shape[0], -1)))
        return nn.Dense(5, name="fc3")(x)


def arrays():
    rng = np.random.default_rng(0)
    shapes = {
        "conv1/0": (6, 2, 3, 3),
        "conv1/1": (6,),
        "block/fc2/0": (7, 6 * 4 * 5),
        "block/fc2/1": (7,),
        "fc3/0": (5, 7),
        "fc3/1": (5,),
    }
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


KINDS = {  # of a convolution, a dense layer and a ReLU, in each format
    "layer": ("Convolution", "InnerProduct", "ReLU"),
    "layers": (4, 14, 18),
}


def caffe_net(form, tensors):
    """A NetParameter with these weights, in one of Caffe's two formats."""
    net = caffe_message("NetParameter")()
    net.name = "tiny"
    for name in ("conv1", "relu1", "block/fc2", "fc3"):
        layer = net.layer.add() if form == "layer" else net.layers.add()
        layer.name = name
        conv, dense, relu = KINDS[form]
        layer.type = {"conv1": conv, "relu1": relu}.get(name, dense)
        for i in range(2 if name != "relu1" else 0):
            fill(layer.blobs.add(), tensors[f"{name}/{i}"], old=form != "layer")
    return net


def fill(blob, tensor, old):
    blob.data.extend(tensor.ravel().tolist())
    if old:
        dims = (1,) * (4 - tensor.ndim) + tensor.shape
        blob.num, blob.channels, blob.height, blob.width = dims
    else:
        blob.shape.dim.extend(tensor.shape)


def sources():
    return interop.sources_of(like(), LAYERS, ("{}/0", "{}/1"), {"fc2": (6, 4, 5)})


def like():
    return jax.eval_shape(Net().init, jax.random.key(0), IMAGES)["params"]


@pytest.mark.parametrize("form", KINDS)
def test_opencv_computes_the_same_from_the_same_file(form, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the reference here")
    model, text = tmp_path / "tiny.caffemodel", tmp_path / "tiny.prototxt"
    model.write_bytes(caffe_net(form, arrays()).SerializeToString())
    text.write_text(PROTOTXT)
    net = cv2.dnn.readNetFromCaffe(str(text), str(model))
    net.setInput(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    expected = net.forward()
    assert np.abs(expected).max() > 1  # it did read the weights

    tensors = interop.read_caffemodel(model)
    chex.assert_trees_all_equal(tensors, arrays())
    params = interop.load_into(like(), tensors, sources(), origin=str(model))
    logits = np.asarray(Net().apply({"params": params}, IMAGES))
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(logits / scale, expected / scale, atol=1e-5, rtol=0)


def read(net, tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(net.SerializeToString())
    return interop.read_caffemodel(path)


def test_doubles_and_values_in_pieces(tmp_path):
    net = caffe_message("NetParameter")()
    blob = net.layer.add(name="a", type="Scale").blobs.add()
    blob.shape.dim.extend([2, 1])
    blob.double_data.extend([0.1, -3.0])
    read_back = read(net, tmp_path)["a/0"]
    assert read_back.dtype == np.float64
    np.testing.assert_array_equal(read_back, [[0.1], [-3.0]])
    # A protocol buffer that repeats a layer's blobs in two parts is one message.
    first = caffe_message("NetParameter")()
    first.layer.add(name="b").blobs.add(data=[1.0, 2.0], num=1, width=3, height=1)
    first.layer[0].blobs[0].channels = 1
    first.layer[0].blobs[0].data.append(3.0)
    np.testing.assert_array_equal(read(first, tmp_path)["b/0"], [1, 2, 3])


@pytest.mark.parametrize(
    ("kind", "dims", "shape"),
    [
        ("Convolution", (1, 1, 1, 2), (1, 1, 1, 2)),
        ("Deconvolution", (1, 2, 1, 1), (1, 2, 1, 1)),
        ("InnerProduct", (1, 1, 1, 2), (1, 2)),
        ("PReLU", (1, 1, 1, 2), (2,)),
        ("PReLU", (1, 2, 1, 1), (2, 1, 1)),
        ("InnerProduct", (1, 1, 2, 1), (2, 1)),
        # By numbers, in `layers`: convolution, deconvolution, inner product.
        (4, (1, 1, 1, 2), (1, 1, 1, 2)),
        (39, (1, 1, 1, 2), (1, 1, 1, 2)),
        (14, (1, 1, 1, 2), (1, 2)),
    ],
)
def test_shapes_of_old_files(kind, dims, shape, tmp_path):
    net = caffe_message("NetParameter")()
    layers = net.layers if isinstance(kind, int) else net.layer
    blob = layers.add(name="a", type=kind).blobs.add(data=[1.0, 2.0])
    blob.num, blob.channels, blob.height, blob.width = dims
    assert read(net, tmp_path)["a/0"].shape == shape


def test_a_file_that_lies(tmp_path):
    net = caffe_net("layer", arrays())
    net.layer[2].blobs[1].data.pop()
    with pytest.raises(ValueError, match=r"'block/fc2', blob 1 has shape \(7,\) but 6"):
        read(net, tmp_path)
    net = caffe_net("layer", arrays())
    net.layer[0].blobs[0].shape.dim[:2] = [-6, -2]
    with pytest.raises(ValueError, match=r"layer 'conv1', blob 0 has shape \(-6, -2"):
        read(net, tmp_path)
    net = caffe_net("layer", arrays())
    net.layer[2].name = "conv1"
    with pytest.raises(ValueError, match="two layers named 'conv1' with weights"):
        read(net, tmp_path)
    empty = caffe_message("NetParameter")(name="no layers")
    with pytest.raises(ValueError, match=r"x\.caffemodel holds no weights"):
        read(empty, tmp_path)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "short.caffemodel"
    data = caffe_net("layer", arrays()).SerializeToString()
    wanted, table = like(), sources()

    def load():
        tensors = interop.read_caffemodel(path)
        return interop.load_into(wanted, tensors, table, origin=str(path))

    # Cut between two layers it is a whole file, of a smaller network.
    part, whole = caffe_message("NetParameter")(name="tiny"), set()
    for layer in caffe_net("layer", arrays()).layer:
        part.layer.append(layer)
        whole.add(part.ByteSize())
    assert max(whole) == len(data)
    for length in whole.union(range(0, len(data), 7)) - {len(data)}:
        path.write_bytes(data[:length])
        message = (
            "not fit these params" if length in whole else "not a whole|no weights"
        )
        with pytest.raises(ValueError, match=rf"short\.caffemodel .*({message})"):
            load()
    path.write_bytes(data)
    load()
    with pytest.raises(FileNotFoundError):
        interop.read_caffemodel(tmp_path / "none.caffemodel")


def test_random_bytes_are_refused_or_read(tmp_path):
    path = tmp_path / "noise.caffemodel"
    rng = np.random.default_rng(0)
    data = caffe_net("layers", arrays()).SerializeToString()
    for _ in range(300):
        noise = bytearray(data)
        noise[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(noise)
        try:
            tensors = interop.read_caffemodel(path)
        except ValueError as error:
            message = str(error)
            if "noise.caffemodel" not in message:
                raise
        else:
            assert all(isinstance(t, np.ndarray) for t in tensors.values())

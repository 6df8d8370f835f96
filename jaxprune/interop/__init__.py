"""Weights in and out: files of other frameworks as params, and params as such files.

A reader gives the tensors of a file by name; `sources_of` says which of them each leaf
comes from and how it is laid out there; `load_into` compares and loads, and the writers
go the other way. This is host code on NumPy arrays. What a reader or writer needs
beyond NumPy is imported when it is called.
"""

from jaxprune.interop._caffe import read_caffemodel as read_caffemodel
from jaxprune.interop._csr import read_csr as read_csr
from jaxprune.interop._csr import write_csr as write_csr
from jaxprune.interop._layout import AS_IS as AS_IS
from jaxprune.interop._layout import CONV as CONV
from jaxprune.interop._layout import DENSE as DENSE
from jaxprune.interop._layout import Layout as Layout
from jaxprune.interop._layout import Source as Source
from jaxprune.interop._layout import flattened as flattened
from jaxprune.interop._layout import same_sources as same_sources
from jaxprune.interop._layout import sources_of as sources_of
from jaxprune.interop._litert import write_litert as write_litert
from jaxprune.interop._load import load_into as load_into
from jaxprune.interop._load import tensors_of as tensors_of
from jaxprune.interop._net import net_tensors as net_tensors
from jaxprune.interop._net import read_net as read_net
from jaxprune.interop._net import write_net as write_net
from jaxprune.interop._netcode import NetLayer as NetLayer
from jaxprune.interop._netcode import decode_net as decode_net
from jaxprune.interop._netcode import encode_net as encode_net
from jaxprune.interop._orbax import read_orbax as read_orbax
from jaxprune.interop._stablehlo import read_stablehlo as read_stablehlo
from jaxprune.interop._stablehlo import write_stablehlo as write_stablehlo
from jaxprune.interop._torch import read_safetensors as read_safetensors
from jaxprune.interop._torch import read_torch as read_torch
from jaxprune.interop._write import write_safetensors as write_safetensors
from jaxprune.interop._write import write_torch as write_torch

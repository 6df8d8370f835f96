"""Weights in and out: files of other frameworks, as NumPy arrays by name."""

from jaxprune.interop._net import net_tensors as net_tensors
from jaxprune.interop._net import read_net as read_net
from jaxprune.interop._net import write_net as write_net
from jaxprune.interop._netcode import NetLayer as NetLayer
from jaxprune.interop._netcode import decode_net as decode_net
from jaxprune.interop._netcode import encode_net as encode_net

import re

import jax.numpy as jnp
import optax
import pytest
import toy
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

import jaxprune
from jaxprune._paths import leaf_name, matches


MATRIX, VECTOR = jnp.ones((2, 2)), jnp.ones(2)
PARAMS = {
    "conv1": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": VECTOR},
    "conv2": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": VECTOR},
    "block": {"fc": {"kernel": MATRIX, "bias": VECTOR}},
    "head": {"kernel": MATRIX, "bias": VECTOR},
}


@pytest.mark.parametrize(("pattern", "name", "expected"), [
    ("fc", "fc", True),
    ("fc", "fc/kernel", False),
    ("*", "fc/kernel", False),
    ("*/*", "fc/kernel", True),
    ("fc?/kernel", "fc1/kernel", True),
    ("fc?/kernel", "fc12/kernel", False),
    ("fc[12]/kernel", "fc2/kernel", True),
    ("fc[!12]/kernel", "fc2/kernel", False),
    ("**", "a/b/c", True),
    ("**/c", "a/b/c", True),
    ("a/**/c", "a/c", True),
    ("a/**/c", "a/x/y/c", True),
    ("a/**", "a", True),
    ("a/**", "b/a", False),
    ("FC", "fc", False),
    ("a.b", "axb", False),
    (re.compile(r"fc\d+/.*"), "fc12/kernel", True),
    (re.compile(r"fc\d"), "fc12", False),
    (re.compile(r"c"), "fc", False),
    ("", "", True),
])  # fmt: skip
def test_matches(pattern, name, expected):
    assert matches(pattern, name) == expected


def chosen(*rules):
    mask = jaxprune.dense_mask(PARAMS, jaxprune.where(*rules))
    return set(toy.by_name(mask))


KERNELS = {"conv1/kernel", "conv2/kernel", "head/kernel", "block/fc/kernel"}


@pytest.mark.parametrize(("rules", "expected"), [
    (["**/kernel"], KERNELS),
    (["*/kernel"], KERNELS - {"block/fc/kernel"}),
    (["conv*/kernel"], {"conv1/kernel", "conv2/kernel"}),
    (["conv*/*"], {"conv1/kernel", "conv2/kernel", "conv1/bias", "conv2/bias"}),
    ([re.compile(r"conv\d/kernel")], {"conv1/kernel", "conv2/kernel"}),
    # Later rules win.
    (["**/kernel", "!head/*"], KERNELS - {"head/kernel"}),
    (["**/kernel", "!conv*/*", "conv2/kernel"], KERNELS - {"conv1/kernel"}),
    (["!head/*", "**/kernel"], KERNELS),
    # A leading exclusion starts from the default, floats of rank two or more.
    (["!head/*"], KERNELS - {"head/kernel"}),
    (["!head/*", "head/bias"], KERNELS - {"head/kernel"} | {"head/bias"}),
    (["head/bias"], {"head/bias"}),
])  # fmt: skip
def test_where(rules, expected):
    assert chosen(*rules) == expected


@pytest.mark.parametrize(("rules", "shown"), [
    (["fc8/*"], r"the rule 'fc8/\*' matches no leaf"),
    (["**/kernel", "!fc8/*"], r"the rule !'fc8/\*' matches no leaf"),
    ([re.compile("kernel")], "the rule 'kernel' matches no leaf"),
    (["kernel"], "matches no leaf; the leaves are: block/fc/bias, block/fc/kernel, "),
])  # fmt: skip
def test_rule_that_matches_no_leaf(rules, shown):
    with pytest.raises(ValueError, match=shown):
        jaxprune.dense_mask(PARAMS, jaxprune.where(*rules))


def test_rule_that_matches_no_leaf_inside_prune():
    where = jaxprune.where("fc8/*")
    tx = jaxprune.prune(
        optax.sgd(1.0), jaxprune.hold, lambda p: jaxprune.dense_mask(p, where)
    )
    with pytest.raises(ValueError, match="matches no leaf"):
        tx.init(PARAMS)
    tx.init({})  # the placeholder of optax.tree.map_params


def test_where_needs_a_rule():
    with pytest.raises(ValueError, match="at least one rule"):
        jaxprune.where()


@pytest.mark.usefixtures("untyped")
def test_a_rule_of_another_kind():
    with pytest.raises(ValueError, match=r"got the pattern 3, expected a glob"):
        jaxprune.where("fc1/*", 3)


def test_names():
    assert leaf_name((DictKey("a"), SequenceKey(0), GetAttrKey("w"))) == "a/0/w"
    assert leaf_name((DictKey("fc"), GetAttrKey("value"))) == "fc"
    assert leaf_name((DictKey("fc"), DictKey("value"))) == "fc/value"
    assert leaf_name((GetAttrKey("value"),)) == "value"
    assert leaf_name(()) == ""

"""What the trace of a function finds, in forms that networks are written in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import report


X = jnp.ones((2, 4))
RNG = np.random.default_rng(0)


def some(*shape, keep=0.4):
    return RNG.random(shape) < keep


def rows(apply, params, mask=None, x=X, **kwargs):
    return {
        row.path: row for row in report.count(apply, params, mask, x, **kwargs).layers
    }


def custom_jvp(w, x):
    f = jax.custom_jvp(lambda x, w: x @ w)
    f.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1] + p[0] @ t[1]))
    return f(x, w)


def custom_vjp(w, x):
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    return f(x, w)


WAYS = {
    "plain": lambda w, x: x @ w,
    "jit": lambda w, x: jax.jit(lambda w, x: jax.jit(jnp.dot)(x, w))(w, x),
    "remat": lambda w, x: jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, w),
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
    "vmap": lambda w, x: jax.vmap(lambda x: w.T @ x)(x),
    "vmap of both": lambda w, x: jax.vmap(jnp.dot)(x, jnp.stack([w, w])),
    "einsum": lambda w, x: jnp.einsum("io,bi->ob", w, x),
    "reshaped": lambda w, x: x @ w.reshape(6, 4).T.reshape(4, 6),
    "reversed": lambda w, x: x @ w[::-1, ::-1],
    "bfloat16": lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    "scaled": lambda w, x: x @ (w * 0.5 / jnp.linalg.norm(w)),
    "halves": lambda w, x: jnp.concatenate([x @ w[:, :2], x @ w[:, 2:]], -1),
    "permuted": lambda w, x: x @ w[:, jnp.array([5, 3, 1, 0, 2, 4])],
    "masked again": lambda w, x: x @ jnp.where(jnp.eye(4, 6) > 0, w, 0),
    "padded": lambda w, x: jnp.pad(x, ((0, 0), (1, 2))) @ jnp.pad(w, ((1, 2), (0, 3))),
    "beside zeros": lambda w, x: x @ jnp.concatenate([w, jnp.zeros((4, 2))], 1),
    "tiled": lambda w, x: jnp.tile(x, (1, 3)) @ jnp.tile(w, (3, 1)) / 3,
    "barrier": lambda w, x: x @ lax.optimization_barrier((w, w + 1))[0],
    "cond elsewhere": lambda w, x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x @ w),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_dense_layer_in_any_form(way):
    mask = some(4, 6)
    (row,) = rows(WAYS[way], jnp.ones((4, 6)), jnp.asarray(mask)).values()
    times = 3 if way == "tiled" else 1
    assert row.flop == 2 * 24 * times
    assert row.flop_kept == 2 * mask.sum() * times
    assert (row.weights, row.kept, row.followed) == (24, mask.sum(), True)
    assert row.kind == "fc"
    more = {"padded": 7 * 9 / 24, "beside zeros": 8 / 6}.get(way, times)
    assert row.flop_run == pytest.approx(48 * more)
    assert row.inputs == (8 if way == "halves" else 4)  # counted at every use


def test_a_row_that_is_broadcast_by_a_constant():
    """4 of the 6 are alive, and each is in a column of 4."""
    mask = jnp.array([[True, False, True, True, False, True]])
    apply = lambda w, x: x @ (w * jnp.ones((4, 6)))
    (row,) = rows(apply, jnp.ones((1, 6)), mask).values()
    assert (row.weights, row.kept, row.flop, row.flop_kept) == (6, 4, 48, 32)


def test_stacked_kernels_are_told_apart():
    """Query, key and value in one product: each has its own row."""
    params = {name: jnp.ones((4, n)) for name, n in (("q", 3), ("k", 3), ("v", 5))}
    mask = {"q": some(4, 3), "k": None, "v": some(4, 5)}
    apply = lambda p, x: x @ jnp.concatenate([p["q"], p["k"], p["v"]], axis=1)
    found = rows(apply, params, mask)
    assert {n: row.flop for n, row in found.items()} == {"q": 24, "k": 24, "v": 40}
    kept = {"q": 2 * mask["q"].sum(), "k": 24, "v": 2 * mask["v"].sum()}
    assert {n: row.flop_kept for n, row in found.items()} == kept


def test_scanned_layers_and_recurrence():
    params = {"deep": jnp.ones((3, 4, 4)), "cell": jnp.ones((4, 4))}
    mask = {"deep": some(3, 4, 4), "cell": some(4, 4)}

    def apply(p, x):
        x, outs = lax.scan(lambda x, w: (jax.nn.relu(x @ w),) * 2, x, p["deep"])
        x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ p["cell"]), None), x, None, length=5)
        x = lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ p["cell"]), x)
        return x, outs.sum()

    found = rows(apply, params, mask)
    assert list(found) == ["deep", "cell"]
    assert (found["deep"].flop, found["cell"].flop) == (2 * 48, 7 * 2 * 16)
    assert found["deep"].flop_kept == 2 * mask["deep"].sum()
    assert found["cell"].flop_kept == 7 * 2 * mask["cell"].sum()
    assert found["cell"].weights == 16
    backwards = lambda p, x: lax.scan(
        lambda x, w: (x @ w, None), x, p["deep"], reverse=True
    )[0]
    assert rows(backwards, params, mask)["deep"].flop_kept == found["deep"].flop_kept


def test_a_recurrent_layer_reads_one_step_at_a_time():
    """5 steps of 4 numbers; the state is a constant at first, then 8 numbers."""
    params = {"i": jnp.ones((4, 8)), "h": jnp.ones((8, 8))}

    def apply(p, x):
        cell = lambda h, x: (jnp.tanh(x @ p["i"] + h @ p["h"]), None)
        return lax.scan(cell, jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1))[0]

    found = rows(apply, params, x=jnp.ones((3, 5, 4)))
    assert (found["i"].inputs, found["i"].flop) == (5 * 4, 5 * 2 * 32)
    assert (found["h"].inputs, found["h"].flop) == (4 * 8, 4 * 2 * 64)


def test_weights_chosen_by_data_are_counted_apart():
    apply = lambda p, x: jnp.einsum("bi,bio->bo", x, p[jnp.argmax(x, -1)])
    counts = report.count(apply, jnp.ones((4, 4, 6)), None, X)
    assert (counts.layers, counts.flop_unweighted) == ((), 48)
    assert counts.others == 96


def test_weight_normalisation_belongs_to_the_direction():
    params = {"v": jnp.ones((4, 6)), "g": jnp.ones(6)}
    mask = {"v": some(4, 6), "g": None}
    norm = lambda v: jnp.sqrt((v**2).sum(0, keepdims=True))
    (row,) = rows(
        lambda p, x: x @ (p["g"] * p["v"] / norm(p["v"])), params, mask
    ).values()
    assert (row.path, row.flop, row.flop_kept) == ("v", 48, 2 * mask["v"].sum())
    assert row.followed


LOST = {
    "centred": lambda p, x: x @ (p["w"] - p["w"].mean()),
    "exponential": lambda p, x: x @ jnp.exp(p["w"]),
    "low rank": lambda p, x: x @ (p["w"] @ p["u"]),
    "sum of leaves": lambda p, x: x @ (p["w"] + p["b"]),
    "ones beside": lambda p, x: x @ jnp.concatenate([p["w"], jnp.ones((4, 1))], 1),
}


@pytest.mark.parametrize("way", LOST)
def test_weights_whose_zeros_are_lost_save_nothing(way):
    params = {"w": jnp.ones((4, 6)), "u": jnp.ones((6, 3)), "b": jnp.ones(6)}
    mask = {"w": some(4, 6), "u": None, "b": None}
    (row,) = rows(LOST[way], params, mask).values()
    assert (row.path, row.kept, row.followed) == ("w", mask["w"].sum(), False)
    assert row.flop_kept == row.flop == {"low rank": 24, "ones beside": 56}.get(way, 48)


@pytest.mark.parametrize("ways", [(jnp.exp, jnp.sin), (jnp.sin, jnp.exp)])
def test_a_leaf_of_which_one_use_is_not_followed(ways):
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 6))}
    mask = {"a": some(4, 4), "b": some(4, 6)}
    apply = lambda p, x: x @ ways[0](p["a"]) @ ways[1](p["a"]) @ p["b"]
    counts = report.count(apply, params, mask, X)
    a, b = counts.layers
    assert (a.followed, b.followed, counts.total.followed) == (False, True, False)
    assert a.flop_kept == 2 * 16 + 2 * mask["a"].sum()
    assert b.units == 6  # nothing reads them


def test_products_without_weights_are_counted_apart():
    """Attention: 2 heads of 3, 5 tokens; scores and values take 2 x 2 x 5 x 5 x 3."""
    params = {n: jnp.ones((6, 6)) for n in "qkvo"} | {"table": jnp.ones((11, 6))}

    def apply(p, tokens):
        x = p["table"][tokens]
        q, k, v = ((x @ p[n]).reshape(*x.shape[:2], 2, 3) for n in "qkv")
        a = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, k))
        return jnp.einsum("bhij,bjhd->bihd", a, v).reshape(x.shape) @ p["o"]

    tokens = jnp.zeros((3, 5), jnp.int32)
    counts = report.count(apply, params, None, tokens)
    assert [row.path for row in counts.layers] == ["q", "k", "v", "o"]
    assert counts.total.flop == 4 * 2 * 5 * 36
    assert counts.flop_unweighted == 2 * (2 * 2 * 5 * 5 * 3)
    assert counts.others == 66  # an embedding is looked up, not multiplied
    table = some(11, 6)
    mask = dict.fromkeys(params) | {"table": table}
    counts = report.count(apply, params, mask, tokens)
    assert (counts.others, counts.others_kept) == (66, table.sum())
    assert [row.inputs for row in counts.layers] == [30, 30, 30, 30]


def test_readings_of_branches():
    """A fire module and a residual: who produced what a layer reads."""
    params = {n: jnp.ones((4, 4)) for n in "abcd"} | {"e": jnp.ones((8, 4))}

    def apply(p, x):
        x = jax.nn.relu(x @ p["a"])
        both = [jax.nn.relu(x @ p["b"]), jax.nn.relu(x @ p["c"])]
        y = jnp.concatenate(both, -1) @ p["e"]
        return jax.nn.relu(x + y) @ p["d"]

    x = jnp.asarray(RNG.normal(size=(3, 4))).at[0, :2].set(0)
    params = jax.tree.map(lambda p: RNG.normal(size=p.shape), params)
    found = report.activations(apply, params, [x])
    assert [r.producers for r in found.readings] == [
        (), ("a",), ("b",), ("c",), ("a", "e"),
    ]  # fmt: skip
    p = params
    a = np.maximum(np.asarray(x) @ p["a"], 0)
    b, c = np.maximum(a @ p["b"], 0), np.maximum(a @ p["c"], 0)
    sum_ = np.maximum(a + np.concatenate([b, c], -1) @ p["e"], 0)
    nonzero = [np.count_nonzero(v) for v in (x, a, b, c, sum_)]
    assert [r.nonzero for r in found.readings] == nonzero
    table = rows(apply, params, None, x, activations=found)
    share = {"b": nonzero[2] / 12, "c": nonzero[3] / 12, "e": nonzero[4] / 12, "d": 1.0}
    assert {n: table[n].activations for n in share} == pytest.approx(share)
    # What "a" gives is read twice: as it is, and in the sum.
    assert table["a"].activations == pytest.approx((nonzero[1] + nonzero[4]) / 24)
    assert table["e"].flop_needed == round(64 * (nonzero[2] + nonzero[3]) / 24)
    assert table["a"].flop_needed == 32  # the input counts as dense, zeros or not


def test_activations_add_up_over_batches_of_any_size():
    apply = lambda p, x: (jnp.maximum(x @ p["a"], 0) - 0.0) @ p["b"]
    params = {"a": jnp.eye(3), "b": jnp.ones((3, 1))}
    x = jnp.array([[1.0, -1, 0], [-0.0, jnp.nan, 2], [3, 4, 5], [0, 0, -1]])
    found = report.activations(apply, params, (batch for batch in (x[:3], x[3:])))
    assert found.examples == 4
    # Row by row: 1 0 0, 0 NaN 2, 3 4 5, 0 0 0; a NaN in a row makes all of it NaN.
    assert found.readings[1] == (("a",), 1 + 3 + 3 + 0, 12)
    assert all(type(r.nonzero) is int for r in found.readings)
    mask = {"a": jnp.array([[False] * 3, [True] * 3, [True] * 3]), "b": None}
    found = report.activations(apply, params, [x[2:]], mask)
    assert found.readings[1] == (("a",), 2, 6)  # 0 4 5, 0 0 0
    with pytest.raises(ValueError, match="batches is empty, expected at least one"):
        report.activations(apply, params, [])


def test_what_cannot_be_counted_is_refused():
    w = jnp.ones((4, 4))
    loop = lambda w, x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    with pytest.raises(ValueError, match="a product inside of 'while', whose operatio"):
        report.count(loop, w, None, X)
    branch = lambda w, x: lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x, x)
    with pytest.raises(ValueError, match="a product inside of 'cond'"):
        report.count(branch, w, None, X)
    with pytest.raises(
        ValueError, match=r"the mask of .* has shape \(4, 2\), expected"
    ):
        report.count(lambda w, x: x @ w, w, jnp.ones((4, 2), bool), X)
    with pytest.raises(
        ValueError, match="said to hold 3 examples, but a product takes"
    ):
        report.count(lambda w, x: x @ w, w, None, X, examples=3)
    with pytest.raises(ValueError, match="no first axis that counts examples"):
        report.count(lambda w, x: x * w, w, None, jnp.float32(1))
    with pytest.raises(ValueError, match="multiplies no leaf of params"):
        report.first_and_last(lambda w, x: x + w[0], w, X)


def test_activations_of_another_function_are_refused():
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    one = lambda p, x: x @ p["a"]
    two = lambda p, x: x @ p["a"] @ p["b"]
    found = report.activations(one, params, [X])
    with pytest.raises(
        ValueError, match=r"measured on layers that read from .*expected"
    ):
        report.count(two, params, None, X, activations=found)
    either = lambda p, x: (one if len(x) > 1 else two)(p, x)
    with pytest.raises(ValueError, match="two batches run through different layers"):
        report.activations(either, params, [X, X[:1]])
    with pytest.raises(ValueError, match="activations has no share for a, expected"):
        report.count(two, params, None, X, activations={"b": 0.5})
    with pytest.raises(
        ValueError, match=r"activations of a is 38.0, expected one in \[0"
    ):
        report.count(two, params, None, X, activations={"a": 38.0})


def test_first_and_last_follow_execution_not_names():
    params = {"z": jnp.ones((4, 4)), "a": jnp.ones((4, 4)), "m": jnp.ones((4, 4))}
    apply = lambda p, x: x @ p["z"] @ p["m"] @ p["a"]
    assert report.first_and_last(apply, params, X) == ("z", "a")

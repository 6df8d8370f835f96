import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from quick import quick

import jaxprune


CUT = jaxprune.to_sparsity(jaxprune.magnitude, 0.5)
NET = {
    "conv": {"kernel": np.ones((2, 2, 1, 4)), "bias": np.ones(4)},
    "fc": {"kernel": np.ones((100, 20)), "bias": np.ones(20)},
    "head": {"kernel": np.ones((20, 3))},
    "scale": np.array(1.0, np.float32),
}


def net_mask():
    conv = np.zeros((2, 2, 1, 4), bool)
    conv[0, 1, 0, 2] = True
    fc = np.arange(2000).reshape(100, 20) % 8 == 0
    return {
        "conv": {"kernel": conv, "bias": None},
        "fc": {"kernel": fc, "bias": None},
        "head": {"kernel": None},
        "scale": None,
    }


def test_summarize():
    rows = jaxprune.summarize(NET, net_mask())
    assert rows == [
        ("conv/bias", (4,), 4, 4, False),
        ("conv/kernel", (2, 2, 1, 4), 16, 1, True),
        ("fc/bias", (20,), 20, 20, False),
        ("fc/kernel", (100, 20), 2000, 250, True),
        ("head/kernel", (20, 3), 60, 60, False),
        ("scale", (), 1, 1, False),
    ]
    assert all(isinstance(row, jaxprune.LayerReport) for row in rows)


def test_describe_by_hand():
    # 2101 weights, 336 alive; prunable 2016 and 251.
    expected = """\
leaf         shape    weights  alive   kept
conv/bias    4              4      4  100.0%  never pruned: fewer than 2 dimensions
conv/kernel  2x2x1x4       16      1    6.2%  at the floor of 1 live weight
fc/bias      20            20     20  100.0%  never pruned: fewer than 2 dimensions
fc/kernel    100x20     2,000    250   12.5%
head/kernel  20x3          60     60  100.0%  never pruned: left out of the mask
scale        scalar         1      1  100.0%  never pruned: fewer than 2 dimensions
total                   2,101    336   16.0%  compression 6.3 on all, 8.0 on prunable"""
    assert jaxprune.describe(NET, net_mask()) == expected
    text = jaxprune.describe(NET, net_mask(), min_keep=250)
    assert text.count("at the floor of 250 live weights") == 2


def test_describe_a_dense_and_an_empty_mask():
    params = {"w": np.ones((2, 2)), "one": np.ones((1, 1)), "none": np.ones((0, 2))}
    text = jaxprune.describe(params, jaxprune.dense_mask(params))
    assert text.endswith("compression 1.0 on all, 1.0 on prunable")
    assert "floor" not in text
    dead = {name: np.zeros(w.shape, bool) for name, w in params.items()}
    text = jaxprune.describe(params, dead)
    assert text.endswith("compression infinite on all, infinite on prunable")


def test_report_of_shapes_and_its_counts():
    """Sizes are Python's integers, past 2**31 weights; nothing of that size is made."""
    params = {"w": jax.ShapeDtypeStruct((2**20, 2**13), jnp.float32)}
    (row,) = jaxprune.summarize(params, {"w": None})
    assert row.size == 2**33


def test_reports_refuse_a_mask_that_does_not_fit():
    bad = net_mask()
    bad["fc"]["kernel"] = bad["fc"]["kernel"].T
    for report in (jaxprune.summarize, jaxprune.describe):
        with pytest.raises(
            ValueError, match=r"the mask of fc/kernel has shape \(20, 1"
        ):
            report(NET, bad)


PARAMS = toy.make_params()
LABELS = {"fc1": {"kernel": "a", "bias": "b"}, "fc2": {"kernel": "b", "bias": "b"}}


def pruned(inner=None, schedule=CUT):
    return jaxprune.prune(optax.adam(0.1) if inner is None else inner, schedule)


WRAPPERS = {
    "bare": lambda: pruned(),
    "chain": lambda: optax.chain(optax.clip(1.0), pruned()),
    "named_chain": lambda: optax.named_chain(("x", optax.clip(1.0)), ("y", pruned())),
    "MultiSteps": lambda: optax.MultiSteps(pruned(), 1),
    "apply_if_finite": lambda: optax.apply_if_finite(pruned(), 3),
    "masked": lambda: optax.masked(pruned(), lambda p: jax.tree.map(lambda _: True, p)),
    "partition": lambda: optax.partition(
        {"a": pruned(), "b": pruned(optax.sgd(0.1))}, LABELS
    ),
    "partition by prefix": lambda: optax.partition(
        {"a": pruned(), "b": pruned(optax.sgd(0.1))}, {"fc1": "a", "fc2": "b"}
    ),
    "nested": lambda: optax.chain(
        optax.apply_if_finite(
            optax.partition({"a": pruned(), "b": pruned()}, LABELS), 3
        )
    ),
}


@pytest.mark.parametrize(
    "wrapper", quick(WRAPPERS, "bare", "MultiSteps", "nested", "partition by prefix")
)
def test_get_mask_in_the_structure_of_the_params(wrapper):
    tx = WRAPPERS[wrapper]()
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    expected = jaxprune.prune_now(PARAMS, CUT)[1]
    found = jaxprune.get_mask(state)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_structs(found, expected)
    params = optax.apply_updates(PARAMS, updates)
    jaxprune.verify(params, state)
    assert "never pruned" in jaxprune.describe(params, found)


@pytest.mark.parametrize("wrapper", ["partition", "masked"])
def test_get_mask_where_a_part_is_not_pruned(wrapper):
    """Here a whole subtree of the mask may be one `None`; it still fits the params."""
    if wrapper == "partition":
        tx = optax.partition(
            {"a": pruned(), "b": optax.sgd(0.1)}, {"fc1": "a", "fc2": "b"}
        )
    else:
        tx = optax.chain(optax.masked(pruned(), {"fc1": True, "fc2": False}))
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    mask = jaxprune.get_mask(state)
    assert set(toy.by_name(mask)) == {"fc1/kernel"}
    jaxprune.verify(params, state)
    rows = {row.path: row.alive for row in jaxprune.summarize(params, mask)}
    assert rows == {"fc1/bias": 16, "fc1/kernel": 128, "fc2/bias": 16,
                    "fc2/kernel": 256}  # fmt: skip
    chex.assert_trees_all_equal(jaxprune.apply_mask(params, mask), params)


def test_get_mask_needs_a_prune_state():
    with pytest.raises(ValueError, match="holds no PruneState; expected that of an op"):
        jaxprune.get_mask(optax.adam(0.1).init(PARAMS))


def test_get_mask_refuses_two_masks_of_one_leaf():
    state = optax.chain(pruned(), pruned()).init(PARAMS)
    with pytest.raises(ValueError, match="two PruneStates cover the same leaf"):
        jaxprune.get_mask(state)


def test_get_mask_of_one_prune_around_another():
    only = lambda glob: lambda p: jaxprune.dense_mask(p, jaxprune.where(glob))
    inner = jaxprune.prune(optax.adam(0.1), CUT, only("fc1/kernel"))
    tx = jaxprune.prune(optax.chain(optax.clip(1.0), inner), CUT, only("fc2/kernel"))
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    expected = jaxprune.prune_now(PARAMS, CUT)[1]
    chex.assert_trees_all_equal(jaxprune.get_mask(state), expected)
    jaxprune.verify(params, state)
    with pytest.raises(ValueError, match="fc1/kernel"):
        jaxprune.verify({"fc1": PARAMS["fc1"], "fc2": params["fc2"]}, state)
    twice = jaxprune.prune(inner, jaxprune.hold)
    with pytest.raises(ValueError, match="two PruneStates cover the same leaf"):
        jaxprune.get_mask(twice.init(PARAMS))


def test_verify_counts_and_names_the_first_leaf():
    pruned_params, mask = jaxprune.prune_now(PARAMS, CUT)
    state = pruned(schedule=jaxprune.hold).init(PARAMS)._replace(mask=mask)
    jaxprune.verify(pruned_params, state)
    dead = np.argwhere(~np.asarray(mask["fc2"]["kernel"]))
    kernel = pruned_params["fc2"]["kernel"]
    for row, column in dead[:3]:
        kernel = kernel.at[row, column].set(1e-30)
    stray = {**pruned_params, "fc2": {**pruned_params["fc2"], "kernel": kernel}}
    message = r"^fc2/kernel has 3 dead weights that are not zero.*must come last"
    with pytest.raises(ValueError, match=message):
        jaxprune.verify(stray, state)
    with pytest.raises(ValueError, match=r"^fc1/kernel has 128 dead weights"):
        jaxprune.verify(PARAMS, state)


def test_verify_with_other_params():
    state = pruned().init(PARAMS)
    with pytest.raises(ValueError, match="expected that of the params"):
        jaxprune.verify({"w": jnp.ones((2, 2))}, state)


def test_verify_of_bfloat16():
    params = toy.make_params(dtype=jnp.bfloat16)
    out, mask = jaxprune.prune_now(params, CUT)
    state = pruned().init(params)._replace(mask=mask)
    jaxprune.verify(out, state)
    with pytest.raises(ValueError, match="dead weights"):
        jaxprune.verify(params, state)

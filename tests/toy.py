"""The small problem that most tests train, and NumPy's answers to compare with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._paths import leaf_name


WIDTH = 16


def make_params(seed=0, dtype=jnp.float32):
    """Two dense layers of 16; kernels may be pruned, biases by default not."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {
        "fc1": {"kernel": normal(WIDTH, WIDTH) / 4, "bias": normal(WIDTH) / 8},
        "fc2": {"kernel": normal(WIDTH, WIDTH) / 4, "bias": normal(WIDTH) / 8},
    }


def loss(params, batch):
    x, y = batch
    h = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    out = h @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    return jnp.mean(jnp.square(out - y))


def batches(steps, dtype=np.float32):
    rng = np.random.default_rng(1)
    return [
        tuple(rng.normal(size=(8, WIDTH)).astype(dtype) for _ in range(2))
        for _ in range(steps)
    ]


def drawn(module, *inputs, seed=0):
    """Params of a flax module; flax's own draws take seconds to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]

    def draw(path, p):
        if len(p.shape) < 2:
            return jnp.full(p.shape, float(path[-1].key == "scale"), p.dtype)
        scale = (2 / np.prod(p.shape[:-1])) ** 0.5
        return jnp.asarray(scale * rng.normal(size=p.shape), p.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def by_name(tree):
    """A tree as a dict from leaf name to NumPy array."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): np.asarray(leaf) for path, leaf in pairs}


def assert_dead_are_zero(params, mask):
    """Every dead weight is +0, not -0."""
    params = by_name(params)
    for name, alive in by_name(mask).items():
        dead = params[name][~alive].astype(np.float32)
        assert not dead.any(), name
        assert not np.signbit(dead).any(), name


def assert_shrinks(before, after):
    before = by_name(before)
    for name, alive in by_name(after).items():
        assert not (alive & ~before[name]).any(), name


def dead_number(sparsity, n):
    """How many of n die: the integer rule, in Python's integers."""
    q = round(float(np.float32(sparsity)) * 2**24)
    return (q * n + 2**23) >> 24


def rank(scores, alive):
    """Scores as float64 numbers in the order of worth: dead, finite, inf, NaN."""
    s = np.abs(np.asarray(scores).astype(np.float64))
    s = np.where(np.isinf(s), 1e39, np.where(np.isnan(s), 1e40, s))
    return np.where(alive, s, -1.0)


def cut(scores, alive, dead, keep=1):
    """The mask that `dead` of one leaf's weights dying leaves, by a full sort."""
    alive = np.asarray(alive)
    if not alive.size:
        return alive
    key = rank(scores, alive)
    dead = min(dead, alive.size - min(keep, alive.size))
    return alive & (key >= np.sort(key, axis=None)[dead])


def cut_all(scores, alive, dead, keep=1):
    """The same over a dict of leaves, with at least `keep` left in each."""
    keys = {name: rank(scores[name], alive[name]) for name in alive}
    flat = np.sort(np.concatenate([key.ravel() for key in keys.values()]))
    spare = sum(key.size - min(keep, key.size) for key in keys.values())
    threshold = flat[min(dead, spare)]
    return {
        name: alive[name] & floor(key, key >= threshold, keep)
        for name, key in keys.items()
    }


def floor(key, mask, keep):
    """At least the `keep` largest keys, of equal ones the first by position."""
    if mask.sum() >= keep:
        return mask
    mask = np.zeros(key.size, bool)
    mask[np.argsort(-key, axis=None, kind="stable")[:keep]] = True
    return mask.reshape(key.shape)

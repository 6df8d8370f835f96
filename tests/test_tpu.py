"""A TPU that is not there: what XLA makes of pruning for one, and for eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_task
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from experiments import recipes
from experiments.bench._train_sides import Fixed
from experiments.bench.compiled import size_of
from experiments.data import Batch
from experiments.layout import make_layout, shardings
from experiments.program import make_program


pytest.importorskip("libtpu")

# Large enough for the search to start from a sample, and a small one.
SHAPES = {"fc1": (1024, 512), "conv": (3, 3, 64, 128), "bias": (512,)}
MATRIX = 1024 * 512  # bytes of its mask
SAMPLE = 4 << 16  # bytes of the keys that place the first thresholds
GLOBAL = jaxprune.to_sparsity(jaxprune.magnitude, 0.9, scope="global", min_keep=3)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-reduce|all-to-all|collective-permute"
    r"|reduce-scatter)(?:-start)?\("
)


@pytest.fixture(scope="module")
def chips():
    jax.devices()  # the CPU's, by flags of which libtpu would end the process
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        # It would ask the cloud what machine this is, and let one process in at a time.
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield topologies.get_topology_desc("v5e:2x4", platform="tpu").devices


@pytest.fixture(autouse=True)
def for_tpu(monkeypatch):
    """The default backend decides how some things are computed."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def mesh_of(chips, kind):
    return Mesh(
        np.array(chips).reshape(4, 2), ("x", "y"), axis_types=(KINDS[kind],) * 2
    )


def on_mesh(mesh):
    """Rows along one axis and columns along the other, of the last two axes."""

    def sharding(shape):
        lead = (None,) * (len(shape) - 2)
        return NamedSharding(mesh, P(*lead, "x", "y") if len(shape) > 1 else P())

    return sharding


def placed(tree, sharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x.shape)),
        tree,
    )


def compiled(schedule, sharding, dtype=jnp.float32):
    """An update step, params and state donated, and the shapes of both."""
    tx = jaxprune.prune(optax.adam(1e-3), schedule)
    shapes = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in SHAPES.items()}
    params = placed(shapes, sharding)
    state = placed(jax.eval_shape(tx.init, params), sharding)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(params, state, params).compile(), (params, state)


def collectives(program):
    """Name and bytes of the largest array of whatever is sent between devices."""
    text = re.sub(r"/\*.*?\*/", "", program.as_text())
    for types, name in _COLLECTIVE.findall(text):
        yield name, max(map(size_of, re.findall(r"[a-z]+\d*\[[\d,]*\]", types)))


def held(tree):
    """Bytes of a tree on one device."""
    return sum(
        np.prod(x.sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def check_in_place(program, given):
    """What is donated is written over."""
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= held(given)
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert fresh < 4096  # counters


@pytest.mark.parametrize(
    ("dtype", "schedule"),
    [
        ("float32", jaxprune.every(10, GLOBAL)),
        ("float32", jaxprune.by_std(0.7)),
        ("bfloat16", jaxprune.to_sparsity(jaxprune.saliency, 0.5)),
    ],
    ids=["every", "std", "saliency"],
)
def test_update_on_one_chip(chips, schedule, dtype):
    where = SingleDeviceSharding(chips[0])
    check_in_place(*compiled(schedule, lambda shape: where, jnp.dtype(dtype)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["global", "std"])
def test_no_matrix_is_sent_between_chips(chips, name, kind):
    """A threshold is made of counts and of a sample, deviations of sums."""
    schedule = {"global": GLOBAL, "std": jaxprune.by_std(0.7)}[name]
    mesh = mesh_of(chips, kind)
    with jax.set_mesh(mesh):
        program, given = compiled(schedule, on_mesh(mesh))
    check_in_place(program, given)
    sent = list(collectives(program))
    assert any(name == "all-reduce" for name, _ in sent)
    assert max(size for _, size in sent) <= SAMPLE < MATRIX
    # As many for each slice as there are slices, if a leaf were cut into them.
    assert len(sent) < 100


def test_what_is_sent_is_seen(chips):
    """The check above finds a mask that is gathered."""
    mesh = mesh_of(chips, "auto")
    split, whole = NamedSharding(mesh, P("x", "y")), NamedSharding(mesh, P())
    w = jax.ShapeDtypeStruct(SHAPES["fc1"], jnp.float32, sharding=split)
    program = jax.jit(lambda w: w > 0, out_shardings=whole).lower(w).compile()
    assert max(size for _, size in collectives(program)) >= MATRIX


@pytest.mark.parametrize("mesh", ["data=1", "data=4,model=2"])
def test_step_of_an_experiment(chips, mesh, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: chips)
    layout = make_layout(mesh, fsdp=mesh != "data=1")
    network = small_task.NETWORK
    network = network._replace(module=small_task.Small(jnp.bfloat16))
    plan = recipes.plan(small_task.CONFIG, network, 4, given=True)
    feed = Fixed(None, network.preprocessing)
    program = make_program(small_task.CONFIG, network, plan, feed, layout)
    shapes = jax.eval_shape(program.begin, None)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings(layout, shapes.params, shapes),
    )
    like = lambda *shape, dtype: jax.ShapeDtypeStruct(
        shape, dtype, sharding=layout.batch
    )
    images = like(16, *network.input, dtype=jnp.uint8)
    batch = Batch(images, like(16, dtype=jnp.int32), like(16, dtype=jnp.bool_))
    compiled = program.one.lower(state, batch).compile()
    check_in_place(compiled, state)
    assert any(name == "all-reduce" for name, _ in collectives(compiled)) == (
        mesh != "data=1"
    )

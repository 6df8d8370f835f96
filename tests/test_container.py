"""The compressed file: what comes back, what it takes, and what is refused."""

import base64
import json
import os
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import jaxprune
from jaxprune import compress
from jaxprune.compress import _file as container
from jaxprune.compress import _leaf as leaf_code
from jaxprune.compress._huffman import CorruptError
from jaxprune.compress._save import named_leaves


CODERS = ["range", "huffman"]


def small():
    """A layer that is shared, one that is not, one without weights, and a bias."""
    rng = np.random.default_rng(0)
    alive = rng.random((40, 30)) < 0.2
    shared = np.where(alive, rng.choice(np.float32([-1.5, -0.25, 0.5, 3]), (40, 30)), 0)
    params = {
        "fc1": {"kernel": shared.astype(np.float32), "bias": np.arange(3.0)},
        "fc2": {"kernel": np.where(alive, rng.normal(size=(40, 30)), 0)},
        "none": np.zeros((2, 3), np.float32),
    }
    mask = {
        "fc1": {"kernel": alive, "bias": None},
        "fc2": {"kernel": alive},
        "none": np.zeros((2, 3), bool),
    }
    return params, mask


def saved(path, coder="range", params_and_mask=None):
    params, mask = params_and_mask or small()
    jaxprune.save(path, params, mask, coder=coder)
    return path.read_bytes()


def assert_same_bits(found, expected):
    chex.assert_trees_all_equal_structs(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def none_where_missing(mask):
    return jax.tree.map(lambda m: m is None, mask, is_leaf=lambda m: m is None)


@pytest.mark.parametrize("coder", CODERS)
def test_params_and_mask_come_back(tmp_path, coder):
    params, mask = small()
    saved(tmp_path / "net", coder)
    found, found_mask = jaxprune.load(tmp_path / "net")
    assert_same_bits(found, params)
    assert_same_bits(found_mask, mask)
    assert none_where_missing(found_mask) == none_where_missing(mask)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    "values",
    [
        np.float32([0.5, -0.0, np.nan, -np.inf, 1e-45, 0.5, -0.0, 0.5]),
        np.array([1, -2, 300, 300, 1, -2, 5, 5], np.int16),
        np.array([1, 2, 250, 250, 1, 2, 5, 5], np.uint8),
        np.array([1.5, -2, 3, 1.5, 1.5, 1.5, 3, 3], ml_dtypes.bfloat16),
        np.array([1.5, -2, 3, 1.5, 1.5, 1.5, 3, 3], np.float16),
        np.array([1.5, -2, 3, 1.5, 1.5, 1.5, 3, 3], np.complex64),
        np.array([True] * 8),
    ],
)
def test_bits_of_live_values_come_back(tmp_path, coder, values):
    alive = np.tile([True, False], 16).reshape(2, 16)
    array = np.zeros((2, 16), values.dtype)
    array[alive] = np.tile(values, 2)
    # A live zero and a dead weight are not the same.
    compress.save(tmp_path / "x", {"w": array}, {"w": alive}, coder=coder)
    found, mask = compress.load(tmp_path / "x")
    assert_same_bits(found, {"w": array})
    np.testing.assert_array_equal(mask["w"], alive)
    assert compress.sizes(tmp_path / "x").layers[0].clusters == np.unique(values).size


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=60, deadline=None)
@given(
    density=st.sampled_from([0, 0.01, 0.1, 0.5, 1]),
    clusters=st.integers(1, 300),
    n=st.integers(0, 3000),
    seed=st.integers(0, 99),
)
def test_leaves_of_any_density_come_back(coder, density, clusters, n, seed):
    rng = np.random.default_rng(seed)
    alive = rng.random(n) < density
    array = np.where(alive, rng.integers(1, clusters + 1, n), 0).astype(np.float32)
    leaf, parts = leaf_code.encode_leaf(array, alive, coder)
    found, mask = leaf_code.decode_leaf(leaf, b"".join(parts))
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(mask, alive)


def test_shared_weights_come_back_and_are_as_small_as_they_say(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (100, 80))}
    tx = jaxprune.to_sparsity(jaxprune.magnitude, 0.9)
    params, mask = jaxprune.prune_now(params, tx)
    params, codes = compress.share(params, mask, 4, init="density")
    compress.save(tmp_path / "net", params, mask)
    like = jax.eval_shape(lambda: params)
    found, found_mask = compress.load(tmp_path / "net", like)
    assert_same_bits(found, params)
    assert_same_bits(found_mask, mask)
    assert np.unique(np.asarray(codes["w"])).size == 17
    layer = compress.sizes(tmp_path / "net").layers[0]
    assert (layer.weights, layer.alive, layer.clusters) == (8000, 800, 16)
    assert 0.5 * 64 < layer.codebook_bytes < 64
    # Four bits a weight, and the entropy of a mask of a tenth, 0.469 bits of each.
    assert 0.8 * 4 < layer.code_bits < 1.1 * 4
    assert 0.98 * 4.69 < layer.index_bits < 1.05 * 4.69


@pytest.mark.parametrize("coder", CODERS)
def test_sizes_add_up_to_the_file(tmp_path, coder):
    data = saved(tmp_path / "net", coder)
    found = compress.sizes(tmp_path / "net")
    assert found.file_bytes == len(data)
    assert found.header_bytes + found.total.bytes == len(data)
    assert found.total.bytes == sum(row.bytes for row in found.layers)
    rows = {row.path: row for row in found.layers}
    assert list(rows) == ["fc1/bias", "fc1/kernel", "fc2/kernel", "none"]
    assert rows["fc1/bias"].value_bytes == rows["fc1/bias"].bytes == 3 * 8
    assert rows["fc2/kernel"].value_bytes == rows["fc2/kernel"].alive * 8
    assert rows["fc1/kernel"].codebook_bytes == 4 * 4
    assert (rows["fc1/kernel"].book_bytes > 0) == (coder == "huffman")
    assert found.total.dense_bytes == 24 + 4800 + 9600 + 24


def test_fillers_are_counted(tmp_path):
    alive = np.zeros(1000, bool)
    alive[[3, 4, 7, 9, 11, 990]] = True
    compress.save(tmp_path / "x", {"w": np.float32(alive)}, {"w": alive})
    layer = compress.sizes(tmp_path / "x").layers[0]
    gaps = np.array([3, 0, 2, 1, 1, 978])
    assert layer.fillers == (gaps // (2**layer.gap_bits - 1)).sum()


def test_any_reader_of_safetensors_opens_it(tmp_path):
    data = saved(tmp_path / "net")
    with safe_open(tmp_path / "net", "np") as file:
        assert file.metadata() == {"jaxprune": container.VERSION}
        table = file.get_tensor("table").tobytes()
        leaves = file.get_tensor("leaves").tobytes()
    assert data.endswith(table + leaves)
    rows = json.loads(zlib.decompress(table[:-4]))
    assert zlib.crc32(data[: -len(leaves) - 4]) == int.from_bytes(table[-4:], "little")
    at = 0
    for row in rows:
        size = sum(row["parts"].values())
        crc = row.pop("crc")
        about = json.dumps(row, separators=(",", ":")).encode()
        assert zlib.crc32(leaves[at : at + size], zlib.crc32(about)) == crc
        at += size
    assert at == len(leaves)


# By either coder: positions as a map with and without neighbours and as gaps, codes
# judged by neighbours, a codebook as steps, values that nothing shares.
STORED = {
    "range": """
pa1{>00000dm>+7ZDn*}WMOn+Utc0Rdm?IKcyMxcZe=1mA~7O;EFyGaVr*q1I(s5yba`-PB03^fI3g?}b7*03Wg<
FTGC4F|EFxrKbYWj_W@d9`baNs)TQDp#IW%2;EFx@WVRmJ6B075_WOR9OWg<EvRX8FnB6DbAaAhJoTQ)E@T`VGGV
RT_%Z)Rq5Wpr~QI$JV1G%PtVFkO9pARr(hc-noD-EM>+5Jul+uDRexSn*ZNW`l~>lvM+0(`<bA4sGqycH28(hHuV
+`UaD^TBx8IO#lL2d|lGEce9C1;YoNh>7?do0*mo6Ky`!7xYgpS*a@`0g-S@FsFYNzoqT1s^R)fU6g<n+L=i?f&7
-eofr{}0gXhjR^ZX1|S$^!Wft3_z8aHkjAT-B<TSK%SYsV#z!@QXWi=*P|C)+{Q8y74AX9jGnacuHwY#6%)!iYM5
nlLocQmGTmOgcLSo2iUbEHjUSK9UeBci@==E$<FYiQGZxza64q?+V}X#euI*w9rCwn$h?6<=?NBls@`gj*mN-B>}
69m*u$hH!WVdG-Haw&VF?6y|IwuAmm!=vQTV4zX4$3zvWc$B1Hf=0KoG;@DGQ5mEI(E7+r>?)gz^=DDA_O<WQxB+
GqV}t1qFHZo8@Gr%^d*9wXWTDln~RhY8wAg^-L~@UV$|t$a6;3wtx$f=r_CVsP2X#EoH+&yCEn-i&RkS-pf-{ak|
mg>!?lg9~%9=?iKqww{#xpgSSboT@=@WFNBjfp>Ba@j&i2Oyck~IV@*LC8!YOF82Tc0000000000000000000000
0000001M9k2iZ0000000000003950001}XmkPq0002^6rTV900000006de@9|n=M6B7cVRkY=K7zN4Xsc7z2TGL-
>&%?rm+mLVd<L0J9-6<#MTG9!hWDLyzFjApJ`%x!G^wcTM>km8wofV7;ZN}lVw>cLKYoTPL~-fc@BNj8Y{4~FXxQ
0vZ;93<0$MH{dT7qb^T-LsJJQK)l`CPGtv5Zjo$3w@lZbsvv2R7AaxUADUk^F?Y7q<s#5>*o^;dp1NN!C<{uOR8D
a^>UEZ9aEf#_?j-d&>w005;DrK0I2I2TvH_=_Wr)N@5rsa>V{DnOuJ`yU5fvikdZp&QK5*YA1o$N0=c=U~#?5gh{
+r1jcya=-}y000%X>=;QJe87%{OM|OIhki^N<f%l}8K8uEs8op>6K<b7*cR4oP!|26D;iwM*QEQtAtFldUS>`$jk
li}2wRUSU#k$Uil>jg-uP01;$s@O^Ojq@KG-7UY`#ZHmCEoAugvNl*<Ant06YLd073vnFj#0=++18;3|~B7|Ns97
!Tta7(KG8-h+ag@
""",
    "huffman": """
pa1{>00000dm>+7ZDn*}WMOn+Utc0Rdm?IKcyMxcZe=1mA~7O;EFyGaVr*q1I(s5yba`-PB03^fI3g?}b7*03Wg<
FTGB_|@EFxrKbYWj_W@d9`baNs)TQDp#I51s(EFx@WVRmJ6B075_WOR9OWg<EvRX8FnB6DbAaAhJoTQ)d0T`VGGV
RT_%Z)Rq5Wpr~QI$JV0Ff2JXHeG#vARr(hc-oDT*=~a{5Ji8bnrA<Zw+ZG~qNp-p8dL`mTUAB;drg4WsgkO1p2c_
W(LG+FwigE}WR>lKK{0%`OIiBH4xB=#Kij2q6ek9)?S>xGD@@jpF1*ytAn$TWrIv(RqoJ97YvxTo{nnHs(lm@1X9
8pCH`~5sP4f<^W=j#8T!d%d6mIPsTB~i1Z^LEL=wQhDY6|Moh%oSDKe#T;gj(0S;N(1(<;B);JMfxS%Vo)+th~SN
a<O6Y#FztWnIsWb;p*N+Tva_J5tPEGL>zaddm?G>h(tt$$qx}H858Zlo)M{-Xa^##jFF@wp3;5%nY>1Pl)Vt_aaf
UI9{a`r2S9rOgmloP1kR@~2T0BuedkW*05|}^2*yE_#sl4Sn)ZLq*GaE<0QXQQb<o$h`J}o}-QYp)pnI#N*0cWiU
E1~l9+H9mx=Sx-eBByNSHKUtf$q9Zdq3vuq;>Bg4{`zTw3<6VR_kP%^8g(>f$q9Ze~<X?x*GSu4^;y?=_S3F^Kxl
7-T<EJ2f8$xu76F}>91M<e`o*zfWQC%V88$XK)?V1Fu(u+Aiw|s5WoNc0KfnM;J*L>z`p<hpuYeBfWH6$K)(P00K
WhLfW80#00000fIa{K06zc#KtBKgfIk2Lpg#Zrz&`*006+i$AV2^BKtMsvavX*kNKuq!8OU;+=={Nke;TsB#Br3m
moRwTLU+`E)VTYxsYgF`m+Y=g?5WfZ_nX`GCw^!4Cv(IQHN*-k$PFVjCYeq}D}nS%Li9IPd(kO6rCKXG2Uza~Y4<
}{>bW|mLm)P&q)8=JBSZpOlX7lk*;yXc_wQh$QmtgH8hOq;t>xiHZ?yeX<r)^^O}Q$VqL5ce)Q3;1u+&df>jUNWK
C9=rJVNewg1ax6)@Khl;}?tbIIssf;sE9JRE}~W6*duwVV-{ru2(~V000mG0ssIq00agACIH9;Kmve31fT!_1qbm
0hz0-{0FnUr`1$(#{Qds_009C61O)~M2nh-c3=Iws5fT#=6&4p585$cL9Udu)V-&?Hic=J&DT-2*rYVYIl*K8EQx
w1e003o{K?p(|^Upmr&_WP}uDXn483;lXZMG>&Qkcdux8HM|=Q<FCB`Hc&r72u-!q&C1jAI(swXSoV=e_TLJo5-b
5bLg^7{)#K+@&c_bDaG1%2Jf2Yg*UeeYLG?UiZJ>eT-um|Np=M002AyKmbAjL@-!rS=?M)T?}75Ul0f~00F9i01O
NO06Z`N4tM
""",
}


@pytest.mark.parametrize("coder", CODERS)
def test_files_that_were_written_before_are_read(tmp_path, coder):
    """A change to both sides of a coder is seen by nothing else."""
    r, c, _, o = np.indices((9, 6, 1, 20))
    v = (r - 4) * (o % 5 - 2) + 2 * (c - 2) * (o % 3 - 1) - 2
    conv = ((20 * c + o) ** 2 % 101 < 30) ^ (r * r * (c + o) % 23 == 7)
    r, c = np.indices((40, 20))
    dense = (r * 7 + c * r % 5) % 11 < (c % 4 > 2) * 9
    few = np.arange(500) ** 2 % 997 < 20
    params = {
        "bias": np.float16([0.5, -2]),
        "conv": conv * np.float32(v / 4),
        "dense": (dense * (r - 9)).astype(np.int8),
        "few": few * np.float16(np.arange(500)),
    }
    data = base64.b85decode("".join(STORED[coder].split()))
    (tmp_path / "net").write_bytes(data)
    found, mask = compress.load(tmp_path / "net")
    chex.assert_trees_all_equal(found, params)
    masks = {"bias": None, "conv": conv, "dense": dense, "few": few}
    assert_same_bits(mask, masks)


@pytest.mark.parametrize("mask", [None, {"w": None}])
def test_dense_params_are_stored_as_they_are(tmp_path, mask):
    params = {"w": np.arange(6, dtype=">f4").reshape(2, 3)}
    compress.save(tmp_path / "x", params, mask)
    found, found_mask = compress.load(tmp_path / "x")
    np.testing.assert_array_equal(found["w"], params["w"])
    assert found_mask == {"w": None}


def test_params_of_any_framework_come_back(tmp_path):
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    module = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    for params in (state, module, (jnp.ones((2, 2)), [jnp.ones(2)]), jnp.ones(3)):
        params = eqx.filter(params, eqx.is_array) if params is module else params
        mask = jaxprune.dense_mask(params, lambda name, p: True)
        compress.save(tmp_path / "x", params, mask)
        found, found_mask = compress.load(tmp_path / "x", params)
        assert_same_bits(found, params)
        assert_same_bits(found_mask, mask)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    found, _ = compress.load(tmp_path / "x")
    np.testing.assert_array_equal(found, np.ones(3))


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b/c", "a")])
def test_paths_below_others_need_params_like(tmp_path, names):
    params = {name: np.full(2, i) for i, name in enumerate(names)}
    compress.save(tmp_path / "x", params)
    chex.assert_trees_all_equal(compress.load(tmp_path / "x", params)[0], params)
    message = f"{max(names)} lies below the leaf a, .* params_like"
    with pytest.raises(ValueError, match=message) as error:
        compress.load(tmp_path / "x")
    assert not isinstance(error.value, CorruptError)


def test_sharding_is_that_of_params_like(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    params = {"w": jax.device_put(jnp.ones((8, 2)), sharding)}
    compress.save(tmp_path / "x", params, jaxprune.dense_mask(params))
    found, mask = compress.load(tmp_path / "x", params)
    assert found["w"].sharding == mask["w"].sharding == sharding


def test_what_does_not_fit_is_refused(tmp_path):
    params, mask = small()
    path = tmp_path / "net"
    for wrong, message in (
        ((params, {"fc1": mask["fc1"]}), "structure"),
        (({**params, "none": np.ones((2, 3))}, mask), "6 dead weights of none are not"),
        (({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, None), "two leaves .* a/b"),
        (({"a": np.array(["x"])}, None), "a is <U1"),
        (({"a": jax.ShapeDtypeStruct((2,), "float32")}, None), "a is a ShapeDtypeS"),
        (({"a": {"key": jax.random.key(0)}}, None), r"a/key holds .* nnx\.Param"),
    ):
        with pytest.raises(ValueError, match=message):
            compress.save(path, *wrong)
    unchecked: Any = vars(compress.save)["__wrapped__"]  # by jaxtyping
    with pytest.raises(ValueError, match="coder is 'zip'"):
        unchecked(path, params, mask, coder="zip")
    unchecked = vars(named_leaves)["__wrapped__"]
    with pytest.raises(ValueError, match="a is a float, expected an array; make it"):
        list(unchecked({"a": 1.0, "w": np.ones(2)}, None))
    assert not list(tmp_path.iterdir())
    saved(path)
    for like, message in (
        ({**params, "more": np.ones(1)}, "net: more is in params_like alone"),
        ({"fc1": params["fc1"]}, "net: fc2/kernel is in the file alone"),
        ({**params, "none": np.ones((3, 2))}, r"none is float32 \(2, 3\), expected"),
    ):
        with pytest.raises(ValueError, match=message):
            compress.load(path, like)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    before = saved(tmp_path / "net")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        compress.save(tmp_path / "net", {"w": np.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_bytes() == before


def test_loading_takes_little_more_than_the_params(tmp_path):
    rng = np.random.default_rng(0)
    alive = rng.random((1500, 1000)) < 0.1
    params = {
        name: np.where(alive, rng.integers(1, 33, alive.shape), 0).astype(np.float32)
        for name in "ab"
    }
    compress.save(tmp_path / "net", params, {"a": alive, "b": alive})
    compress.load(tmp_path / "net")
    tracemalloc.start()
    compress.load(tmp_path / "net")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * sum(p.nbytes for p in params.values())


def test_importing_the_library_does_not_import_the_coder():
    code = (
        "import sys, jaxprune, jaxprune.compress;"
        "print([m for m in ('safetensors', 'constriction') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_range_coder_the_error_names_the_extra(tmp_path, monkeypatch):
    saved(tmp_path / "net")
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"jaxprune\[compress\]"):
        compress.save(tmp_path / "other", *small())
    with pytest.raises(ImportError, match=r"jaxprune\[compress\]"):
        compress.load(tmp_path / "net")
    saved(tmp_path / "net", "huffman")
    compress.load(tmp_path / "net")

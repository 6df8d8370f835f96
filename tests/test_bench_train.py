"""The benchmark of training steps: small on a CPU, and its PyTorch twins."""

import csv

import numpy as np
import pytest

from experiments.bench import _torch_nets, _train_nets, compiled, train_step
from experiments.models import preprocess


TORCH = "PyTorch is what it is timed beside"


@pytest.mark.slow
def test_a_small_run_times_every_side_and_counts_its_operations(tmp_path):
    out = tmp_path / "out.csv"
    flags = ["--small", "--networks", "alexnet-torchvision", "--dtype", "float32"]
    flags += ["--sides", "pruned", "dense", "plain", "--peak-tflops", "0.5"]
    assert train_step.main([*flags, "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = {row["side"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["pruned", "dense", "plain"]
    # 63 pixels: conv1 sees 15 x 15, pools to 7, 3 and 1. Two operations a weight and
    # position, three times, but for conv1 twice: pixels need no gradient.
    conv1 = 15 * 15 * 11 * 11 * 3 * 64
    others = 7 * 7 * 25 * 64 * 192 + 9 * 9 * (192 * 384 + 384 * 256 + 256 * 256)
    others += 256 * 32 + 32 * 32 + 32 * 20
    flop = 2 * (2 * conv1 + 3 * others)
    for row in rows.values():
        assert float(row["gflop_per_image"]) == pytest.approx(flop / 1e9, abs=6e-4)
        rate = float(row["images_per_second"])
        assert rate == pytest.approx(4e3 / float(row["ms_per_step"]), rel=0.05)
        share = rate * flop / 0.5e12
        assert float(row["share_of_peak"]) == pytest.approx(share, abs=6e-4)
        assert row["peak_from"] == "given"
        assert float(row["step_gib"]) > 0
    assert float(rows["pruned"]["sparsity"]) == pytest.approx(0.9, abs=1e-3)
    assert float(rows["dense"]["sparsity"]) == 0
    assert float(rows["dense"]["speed_over_dense"]) == 1
    assert all(row["cpu"] and row["jax"] for row in rows.values())


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("vgg16", 138_357_544),
        ("alexnet", 60_965_224),
        ("alexnet-torchvision", 61_100_840),
    ],
)
def test_the_twin_in_pytorch_has_as_many_parameters(name, params):
    torch = pytest.importorskip("torch", reason=TORCH)
    network = _train_nets.network_of(name, "bfloat16", None, False)
    with torch.device("meta"):
        net = _torch_nets.make_net(torch, network)
        logits = net(torch.zeros(2, 3, *network.input[:2]))
    assert sum(p.numel() for p in net.parameters()) == params
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_the_twin_in_pytorch_trains_on_the_same_pixels(name, monkeypatch):
    """The first convolution is given what `preprocess` gives ours."""
    torch = pytest.importorskip("torch", reason=TORCH)
    network = _train_nets.network_of(name, "float32", None, True)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, *network.input), np.uint8)
    seen, made, make_net = [], [], _torch_nets.make_net

    def spied(torch, network):
        net = make_net(torch, network)
        net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        made.append(net)
        return net

    monkeypatch.setattr(_torch_nets, "make_net", spied)
    step = _torch_nets.make_steps(
        network,
        images,
        np.array([3, 7]),
        device="cpu",
        dtype="float32",
        lr=0.1,
        strength=0.0,
        compiled=False,
    )
    before = made[0][-1].weight.detach().clone()
    step()
    expected = np.asarray(preprocess(images, network.preprocessing))
    got = seen[0].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(made[0][-1].weight, before)


HLO = """
ENTRY %main.9 (p: f32[1024,512], q: pred[8]) -> (f32[512], f32[1024,512]) {
  %p = f32[1024,512]{1,0} parameter(0)
  %q = pred[8]{0} parameter(1)
  %sum.1 = f32[512]{0} fusion(%p, %q), kind=kInput, calls=%fused_sum
  %copy.2 = f32[1024,512]{1,0} copy(%p), metadata={op_name="x(%p)"}
  %few = pred[8]{0} copy(%q)
  %pair = (f32[512]{0}, /*index=1*/f32[1024,512]{1,0}) tuple(%sum.1, %copy.2)
  ROOT %while.3 = (f32[512]{0}, f32[1024,512]{1,0}) while(%pair), body=%b
"""


def test_what_a_compiled_program_does_is_counted():
    matrix = 4 * 1024 * 512
    moved = (matrix + 8 + 2048) + 2 * matrix + 2 * 8
    assert compiled.counted(HLO) == (3, 1, [matrix], moved)


def test_a_gpu_that_jax_cannot_compile_for_is_told(monkeypatch, capsys, tmp_path):
    def none(*args, **kwargs):
        raise RuntimeError("no plugin for cuda")

    monkeypatch.setattr(compiled.topologies, "get_topology_desc", none)
    monkeypatch.setattr(compiled.jax.config, "update", lambda *args: None)
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiled.main(["--out", str(tmp_path / "x.csv")]) == 1
    assert "no plugin for cuda" in capsys.readouterr().err
    assert compiled.main(["--batch", "0"]) == 2
    assert not list(tmp_path.iterdir())

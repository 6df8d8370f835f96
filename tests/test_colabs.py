"""The notebooks run from top to bottom, and are stored without output."""

import csv
import os
import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
COLABS = sorted((ROOT / "colabs").glob("*.ipynb"))
VGG16 = ROOT / "colabs" / "vgg16_imagenet_tpu.ipynb"


def test_there_are_notebooks():
    expected = {"quickstart", "new_method", "vgg16_imagenet_tpu"}
    assert {path.stem for path in COLABS} >= expected


@pytest.mark.parametrize("path", COLABS, ids=lambda path: path.stem)
def test_stored_without_output(path):
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    # The first cell is the only one that may install anything.
    assert "google.colab" in code[0].source
    assert not any("pip" in cell.source for cell in code[1:])


def test_all_install_from_the_repository_that_the_package_names():
    """A notebook on Colab has no file beside it, so each names the address itself."""
    nbformat = pytest.importorskip("nbformat")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cells = [nbformat.read(path, as_version=4).cells for path in COLABS]
    for each in cells:
        first = next(cell.source for cell in each if cell.cell_type == "code")
        addresses = re.findall(r"https?://[^\s\"']*", first)
        assert addresses == [project["urls"]["Repository"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in COLABS if path != VGG16], ids=lambda path: path.stem
)
def test_runs(path, tmp_path, monkeypatch):
    assert "compression" in run(path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.data
def test_vgg16_runs_on_photographs_and_goes_on(tmp_path, monkeypatch):
    """Two steps of each phase, at a size at which the convolutions cost little."""
    root = os.environ.get("JAXPRUNE_DATA")
    if not root:
        pytest.skip("JAXPRUNE_DATA is not set")
    flags = "--dtype float32 --crop 32 --resize 40 --batch 8 --log-every 1"
    flags += " --train-split validation[:16] --eval-split validation[:16]"
    flags += " --rounds 1 --dense-epochs 1 --retrain-epochs 1 --warmup 0"
    monkeypatch.setenv("VGG16_DATA", str(Path(root) / "tfds"))
    monkeypatch.setenv("VGG16_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VGG16_FLAGS", flags)
    text = run(VGG16, tmp_path, monkeypatch)
    rows = {row["round"]: row for row in csv.DictReader(rounds_of(text))}
    assert list(rows) == ["dense", "round 1"]
    assert float(rows["dense"]["compression_params"]) == 1
    assert float(rows["round 1"]["compression_params"]) == pytest.approx(13, rel=1e-3)
    assert "the whole run, without judging" in text
    # Nothing was fetched: the folder of the test holds the run alone.
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def rounds_of(text):
    """The lines of rounds.csv among what was printed."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("round,error"))
    return [lines[begin], *(x for x in lines[begin + 1 :] if x.count(",") == 6)]


def run(path, tmp_path, monkeypatch):
    """Runs a notebook, and gives what it printed."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    # One device, as anywhere but in these tests, and the checkout's own library.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )

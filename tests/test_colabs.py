"""The notebooks run from top to bottom, and are stored without output."""

import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
COLABS = sorted((ROOT / "colabs").glob("*.ipynb"))


def test_there_are_notebooks():
    assert {path.stem for path in COLABS} >= {"quickstart", "new_method"}


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
    first = {
        next(cell.source for cell in each if cell.cell_type == "code") for each in cells
    }
    assert len(first) == 1
    addresses = re.findall(r'"(https?://.*?)"', first.pop())
    assert addresses == [project["urls"]["Repository"]]


@pytest.mark.parametrize("path", COLABS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
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
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "compression" in text

"""The notebooks run from top to bottom, and are stored without output."""

from pathlib import Path

import pytest


COLABS = sorted((Path(__file__).parents[1] / "colabs").glob("*.ipynb"))


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

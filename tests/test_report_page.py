"""Tables read back by parsers of CSV and Markdown; the page by headless Chromium."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from jaxprune import report


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture(scope="module")
def parts():
    """Counts, storage and energy of two layers; one has a hostile name."""
    params = {"a|<b>": jnp.ones((40, 30)), "z": jnp.ones((30, 10))}
    mask = {"a|<b>": jnp.arange(1200).reshape(40, 30) % 10 == 0, "z": None}
    apply = lambda p, x: jax.nn.relu(x @ p["a|<b>"]) @ p["z"]
    x = jnp.ones((2, 40))
    shares = {"a|<b>": 0.5}
    counts = report.count(apply, params, mask, x, activations=shares)
    stored = report.storage(counts, params, mask)
    return counts, stored, report.energy(counts, stored, cache_bytes=4096)


def test_csv_is_exact(parts):
    text = report.to_csv(report.table(*parts))
    first, second, total = csv.DictReader(io.StringIO(text))
    assert first["layer"] == "a|<b>"
    assert (first["weights"], first["kept"], first["flop"]) == ("1200", "120", "2400")
    assert (first["flop_kept"], first["flop_needed"]) == ("240", "240")
    assert (second["flop_kept"], second["flop_needed"]) == ("600", "300")
    assert float(second["flop_needed_percent"]) == 50
    assert total["weights"] == "1500"
    assert float(total["kept_percent"]) == pytest.approx(100 * 420 / 1500)
    # 120 weights of 32 bits and 5 more each.
    assert (first["stored_bytes"], first["index_bits"]) == ("555", "5")
    assert (second["stored_bytes"], second["index_bits"]) == ("1200", "")
    pj = float(second["picojoules_operations"])
    assert pj == pytest.approx(300 * 4.6)
    assert float(second["picojoules"]) == pj + float(second["picojoules_memory"])


class Cells(HTMLParser):
    """Text of every cell of every table, row by row."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.cell = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell.strip())

    def handle_data(self, data):
        self.cell += data


EXPECTED = [
    ["a|<b>", "40x30", "1.20K", "120", "10.0", "2.40K", "10.0", "50.0", "10.0"],
    ["z", "30x10", "300", "300", "100.0", "600", "100.0", "100.0", "50.0"],
    ["total", "", "1.50K", "420", "28.0", "3.00K", "28.0", "62.5", "18.0"],
]


def test_markdown_as_a_parser_reads_it(parts):
    text = report.to_markdown(report.table(parts[0]))
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    head, *body = Cells(rendered).rows
    assert head[0] == "layer"
    assert head[-1] == "FLOP% by both"
    assert body == EXPECTED


def test_unmeasured_columns_are_left_out(parts):
    counts = report.count(lambda w, x: x @ w, jnp.ones((4, 4)), None, jnp.ones((1, 4)))
    rows = report.table(counts)
    assert "Act%" not in report.to_markdown(rows)
    assert next(csv.DictReader(io.StringIO(report.to_csv(rows))))["flop_needed"] == ""
    with pytest.raises(ValueError, match=r"the storage is of .*, expected"):
        report.table(counts, parts[1])
    with pytest.raises(ValueError, match="the table has no rows"):
        report.to_csv([])


def test_rich_shows_every_cell(parts):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(report.to_rich(report.table(parts[0]), "[bold]net"))
    text = console.file.getvalue()
    for cell in (cell for row in EXPECTED for cell in row):
        assert cell in text


@pytest.fixture
def written(tmp_path, parts):
    Image.fromarray(np.full((30, 900), 9, np.uint8)).save(tmp_path / "wide.png")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="70" height="20"></svg>'
    (tmp_path / "small.svg").write_text(svg)
    path = tmp_path / "page.html"
    report.page(
        path,
        "LeNet <script>document.title='broken'</script>",
        facts={"error": "1.59%", "cache & more": 4096},
        tables={"Layers": report.table(*parts)},
        pictures={
            "Weights & more": tmp_path / "wide.png",
            "Small": tmp_path / "small.svg",
        },
        notes=["FLOP are 2 for each multiply-add."],
    )
    (tmp_path / "wide.png").unlink()
    (tmp_path / "small.svg").unlink()
    return path


def test_page_needs_nothing_else(written):
    text = written.read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []
    assert not re.search(r"url\(|@import|<script|<link", text)
    assert [p.name for p in written.parent.iterdir()] == ["page.html"]
    head, *body = Cells(text).rows
    assert [row[: len(EXPECTED[0])] for row in body] == EXPECTED
    assert head[-1] == "pJ pruned"


PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  parent.document.documentElement.dataset.found = JSON.stringify({
    inner: innerWidth,
    scroll: document.documentElement.scrollWidth,
    images: images.map(i => [i.alt, i.naturalWidth]),
    right: Math.max(...images.map(i => i.getBoundingClientRect().right)),
    font: parseFloat(getComputedStyle(document.querySelector("td")).fontSize),
    table: document.querySelector(".scroll").scrollWidth,
    title: document.title,
    text: document.body.innerText,
  });
})</script>"""


class Root(HTMLParser):
    """The attributes of the html element."""

    def __init__(self, html):
        super().__init__()
        self.found = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "html" and not self.found:
            self.found = dict(attrs)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [360, 1400])
def test_page_in_chromium(written, width):
    """What must be on it is; only tables scroll sideways, in a box of their own.

    The page stands in a frame, as a window cannot be as narrow as a phone.
    """
    page = html.escape(written.read_text().replace("</body>", PROBE + "</body>"))
    outer = written.with_name("outer.html")
    frame = f'<iframe srcdoc="{page}" width="{width}" height="900" style="border:0">'
    outer.write_text(f"<!doctype html><html><body>{frame}</iframe></body></html>")
    run = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={written.parent / 'profile'}",
         "--window-size=1500,1000", outer.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = json.loads(Root(run.stdout).found["data-found"])
    assert found["title"] == "LeNet <script>document.title='broken'</script>"
    for text in (
        found["title"], "1.59%", "cache & more", "Layers", "a|<b>", "1.20K", "62.5",
        "Weights & more", "FLOP are 2 for each multiply-add.",
    ):  # fmt: skip
        assert text in found["text"]
    assert found["images"] == [["Weights & more", 900], ["Small", 70]]
    assert found["inner"] == width
    assert max(found["scroll"], found["right"]) <= width
    assert found["font"] >= 12
    assert (found["table"] > width) == (width == 360)


def test_a_page_that_fails_leaves_the_old_one(tmp_path, parts):
    path = tmp_path / "page.html"
    path.write_text("old")
    (tmp_path / "data.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.npz is .*, expected a picture"):
        report.page(path, "net", pictures={"x": tmp_path / "data.npz"})
    with pytest.raises(FileNotFoundError):
        report.page(path, "net", pictures={"x": tmp_path / "missing.png"})
    with pytest.raises(ValueError, match="the table has no rows"):
        report.page(path, "net", tables={"x": []})
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "page.html"]

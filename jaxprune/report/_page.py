"""One HTML page of a run that needs no other file: no script, font or picture."""

import base64
import importlib.resources
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune._whole import write_whole
from jaxprune.report._table import for_people


_IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/webp", "image/gif")


def page(
    path: str | Path,
    title: str,
    *,
    facts: Mapping[str, Any] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    pictures: Mapping[str, str | Path] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes a page that a phone can show, and that can be mailed as one file.

    Everything given is text, never markup: it is escaped.

    Args:
      path: file to write; an older one is replaced.
      title: stands above.
      facts: short things worth knowing, by name, such as the error.
      tables: rows of `jaxprune.report.table`, by heading; the last row of each is the
        total.
      pictures: files of pictures, by what they show; they are put into the page.
      notes: paragraphs that stand last.

    Raises:
      ImportError: if Jinja2 is not installed.
      ValueError: if a file is not a picture by its name, or a table has no rows.
      OSError: if a picture cannot be read. Nothing is written then.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("pages need Jinja2; install jaxprune[report].") from error
    shown = []
    for heading, rows in (tables or {}).items():
        head, body, right = for_people(rows)
        shown.append({"heading": heading, "head": head, "body": body, "right": right})
    source = importlib.resources.files("jaxprune.report").joinpath("page.html.jinja")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    text = environment.from_string(source.read_text(encoding="utf-8")).render(
        title=title,
        facts={name: str(value) for name, value in (facts or {}).items()},
        tables=shown,
        pictures={name: _embedded(Path(p)) for name, p in (pictures or {}).items()},
        notes=list(notes),
    )
    write_whole(path, text.encode())


def _embedded(path: Path) -> str:
    kind, _ = mimetypes.guess_type(path.name)
    if kind not in _IMAGES:
        raise ValueError(
            f"{path} is {kind or 'of no known type'}, expected a picture: "
            f"{', '.join(_IMAGES)}."
        )
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"

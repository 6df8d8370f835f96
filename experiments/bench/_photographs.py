"""A part of a source of photographs, and photographs made larger."""

import dataclasses
import io

from experiments.data.decode import decode
from experiments.data.sources import Source


@dataclasses.dataclass(frozen=True)
class First:
    """The first photographs of a source, which the pipeline reads too."""

    source: Source
    length: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> tuple[bytes, int]:
        return self.source.read(index)

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """A source whose photographs were enlarged, and lie in memory."""

    source: Source
    files: list[tuple[bytes, int]] = dataclasses.field(repr=False)  # Grain writes it

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        return self.files[index]

    def name(self, index: int) -> str:
        return self.source.name(index)


def enlarge(source: Source, side: int, count: int) -> Enlarged:
    """Enlarges the first photographs and encodes them anew."""
    from PIL import Image

    files = []
    for index in range(count):
        data, label = source.read(index)
        image = Image.fromarray(decode(data))
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        out = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append((out.getvalue(), label))
    return Enlarged(source, files)

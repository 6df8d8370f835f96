"""XLA's C interface for custom calls, as far as the fast product needs it.

All structs of `xla/ffi/api/c_api.h`, which jaxlib ships, are read and written as words
of 64 bits; the numbers below are the places of their fields. They are the same in all
versions listed in `KNOWN`, that is from jaxlib 0.7.2 to 0.12.0; with another version
the fast product is not used.
"""

import re
from pathlib import Path

import jax


KNOWN = frozenset((0, minor) for minor in range(1, 6))

# XLA_FFI_CallFrame, whose `args`, `rets` and `attrs` are structs inside it. XLA keeps
# all three alive until the future is set.
EXTENSION, API, CONTEXT, ARGS, RETS, ATTRS, FUTURE = 1, 2, 3, 9, 14, 20, 21
# XLA_FFI_Buffer.
DATA, DIMS = 3, 5
# XLA_FFI_Array, an attribute.
ARRAY = 2
# XLA_FFI_Extension_Base and XLA_FFI_Metadata_Extension.
KIND, NEXT, METADATA = 1, 2, 3
METADATA_KIND = 1
# XLA_FFI_Metadata: two numbers of 32 bits in VERSION; STATE since version 0.2.
VERSION, TRAITS, STATE = 3, 4, 5
# XLA_FFI_Api, functions of one pointer to a struct of arguments.
ERROR_DESTROY, SCHEDULE, THREADS, FUTURE_CREATE, FUTURE_SET = 8, 17, 18, 19, 20
# Such a struct begins with its size and a null pointer.
ARGUMENT = 2


def version() -> tuple[int, int]:
    """Reads which version of the interface the installed jaxlib has.

    Raises:
      ValueError: if it is none of `KNOWN`, or cannot be read.
    """
    path = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"XLA's interface cannot be read: {error}.") from error
    return parse(text)


def parse(header: str) -> tuple[int, int]:
    """Finds the version in the text of the header.

    >>> lines = ["#define XLA_FFI_API_MAJOR 0", "#define XLA_FFI_API_MINOR 3"]
    >>> parse(chr(10).join(lines))
    (0, 3)
    """
    found = [
        re.search(rf"^#define XLA_FFI_API_{part} (\d+)$", header, re.MULTILINE)
        for part in ("MAJOR", "MINOR")
    ]
    numbers = tuple(int(match[1]) for match in found if match)
    if numbers not in KNOWN:
        known = ", ".join(map(str, sorted(KNOWN)))
        read = numbers if len(numbers) == 2 else "unknown"
        raise ValueError(
            f"the version of XLA's interface for custom calls is {read}, expected one "
            f"of {known}."
        )
    return numbers[0], numbers[1]

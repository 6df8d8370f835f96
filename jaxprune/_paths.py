"""Names of leaves, and patterns that match them."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax
from jax.tree_util import GetAttrKey, keystr


Pattern: TypeAlias = str | re.Pattern[str]


def leaf_keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Gives the keys of a path as strings; one of them may hold a "/".

    A trailing `.value` of an NNX variable is dropped, because `nnx.Optimizer` shows it
    to `init` but not to `update`.

    >>> leaf_keys(jax.tree_util.tree_leaves_with_path({"mlp/fc1": {"w": 0}})[0][0])
    ('mlp/fc1', 'w')
    """
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return tuple(keystr((key,), simple=True) for key in path)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Joins the keys of a path by "/".

    >>> leaf_name(jax.tree_util.tree_leaves_with_path({"fc1": {"kernel": 0}})[0][0])
    'fc1/kernel'
    """
    return "/".join(leaf_keys(path))


def leaf_names(tree: Any) -> Any:
    """Gives a tree like `tree` that holds each leaf's name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaf_name(path), tree)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the tree whose paths are these names.

    >>> nested({"fc1/bias": 1, "fc1/kernel": 2})
    {'fc1': {'bias': 1, 'kernel': 2}}

    Raises:
      ValueError: if one path lies below another, as "a/b" below "a".
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = parts = name.split("/")
        for n in range(1, len(parts)):
            if (above := "/".join(parts[:n])) in flat:
                raise ValueError(
                    f"{name} lies below the leaf {above}, so that nested dicts cannot "
                    "hold both"
                )
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def matches(pattern: Pattern, name: str) -> bool:
    """Tells whether a glob or a compiled regular expression matches a whole name.

    In a glob `*`, `?` and `[...]` stay within one segment of the path; a segment `**`
    stands for any number of segments, none included.

    >>> matches("conv*/kernel", "conv1/kernel"), matches("*", "conv1/kernel")
    (True, False)
    >>> matches("**/kernel", "block/conv1/kernel"), matches("**/kernel", "kernel")
    (True, True)
    """
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    return _glob(tuple(pattern.split("/")), tuple(name.split("/")))


def _glob(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_glob(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return (
        bool(name) and fnmatchcase(name[0], pattern[0]) and _glob(pattern[1:], name[1:])
    )


def show(pattern: Pattern) -> str:
    """Writes a pattern as the user wrote it, for messages."""
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    return repr(text)


def check_patterns(what: str, patterns: Iterable[Any]) -> None:
    """Checks that each pattern is a glob or a compiled regular expression.

    Raises:
      ValueError: if one is neither.
    """
    for pattern in patterns:
        if not isinstance(pattern, str | re.Pattern):
            raise ValueError(
                f"{what} got the pattern {pattern!r}, expected a glob such as "
                "'**/kernel' or a compiled regular expression."
            )


def lookup(table: Mapping[Pattern, Any], names: list[str], what: str) -> list[Any]:
    """Gives each name the value of the first pattern that matches it, else `None`.

    Raises:
      ValueError: if a pattern is none, or matches no name at all.
    """
    check_patterns(what, table)
    for pattern in table:
        if not any(matches(pattern, name) for name in names):
            raise ValueError(
                f"{what} has a value for {show(pattern)}, which matches no prunable "
                f"leaf; these are prunable: {', '.join(names) or 'none'}."
            )
    return [
        next((value for p, value in table.items() if matches(p, name)), None)
        for name in names
    ]

"""Rules that choose which leaves may ever be pruned."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxprune._checks import is_array
from jaxprune._paths import Pattern, check_patterns, matches, show


def by_rank(path: str, leaf: Any) -> bool:
    """Chooses floating-point and complex leaves of two or more dimensions.

    Kernels and embeddings, then, but neither biases nor the scales of a norm.
    """
    if not is_array(path, leaf):
        return False
    return len(leaf.shape) >= 2 and jnp.issubdtype(leaf.dtype, jnp.inexact)


class Rules:
    """What `where` returns: a function of (path, leaf), and the rules behind it."""

    def __init__(self, rules: Sequence[Pattern]):
        negated = [isinstance(r, str) and r.startswith("!") for r in rules]
        self._rules: list[tuple[bool, Pattern]] = [
            (not no, rule[1:] if no and isinstance(rule, str) else rule)
            for no, rule in zip(negated, rules, strict=True)
        ]

    def __call__(self, path: str, leaf: Any) -> bool:
        """Tells whether the leaf may be pruned: the last rule that matches decides."""
        chosen = by_rank(path, leaf) if not self._rules[0][0] else False
        for verdict, pattern in self._rules:
            if matches(pattern, path):
                chosen = verdict
        return chosen

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError if a rule matches none of the names."""
        for verdict, pattern in self._rules:
            if not any(matches(pattern, name) for name in names):
                sign = "" if verdict else "!"
                raise ValueError(
                    f"the rule {sign}{show(pattern)} matches no leaf; the leaves are: "
                    f"{', '.join(names)}."
                )


def where(*rules: Pattern) -> Rules:
    """Makes the `where` of `dense_mask` from globs and regular expressions.

    A rule is a glob on the leaf's path ("conv*/kernel"; `*` stays within one segment,
    `**` crosses them), a compiled regular expression that must match the whole path, or
    either kind of exclusion: a glob with a leading "!". Later rules win. When the first
    rule is an exclusion, the start is the default of `dense_mask`, all floating-point
    and complex leaves of two or more dimensions; otherwise it is nothing.

    >>> sorted_choice = where("**/kernel", "!head/*")
    >>> leaf = jnp.zeros((2, 2))
    >>> sorted_choice("fc1/kernel", leaf), sorted_choice("head/kernel", leaf)
    (True, False)

    Args:
      *rules: at least one.

    Returns:
      A function of a leaf's path and the leaf. `dense_mask` raises ValueError when one
      of its rules matches no leaf.

    Raises:
      ValueError: if there is no rule, or one is neither.
    """
    if not rules:
        raise ValueError("where() needs at least one rule, such as '**/kernel'.")
    check_patterns("where()", rules)
    return Rules(rules)

"""What the README shows must run."""

import re
from pathlib import Path

import pytest


README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def namespace():
    """Runs the README's Python blocks in order, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_main_path(namespace, capsys):
    assert namespace["mask"]["fc1"]["bias"] is None
    assert namespace["mask"]["fc1"]["kernel"].shape == (784, 300)


def test_sharding_recipe_covers_the_state(namespace):
    mask = namespace["opt_state"].mask
    assert mask["fc1"]["kernel"].sharding == namespace["replicated"]
    assert mask["fc1"]["bias"] is None


def test_two_commands():
    """One line each, so that they can be pasted."""
    section = README.read_text().split("## Two commands\n")[1].split("\n## ")[0]
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(commands) == 2
    assert all(command.strip().count("\n") == 0 for command in commands)
    assert "experiments.lenet300_prune" in commands[0]
    assert "-m pytest" in commands[1]

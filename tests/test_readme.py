"""The README's promises that a machine can check."""

import re

from helpers import REPOSITORY

from dpeq.cli import app

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_layer_example_runs_and_gives_the_shape_it_says():
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "SteerableConv" in block]
    *lines, last = example.strip().splitlines()
    names: dict = {}
    exec("\n".join(lines), names)
    expression, shape = last.split("  # ")
    assert list(eval(expression, names)) == eval(shape)


def test_every_verb_it_names_exists():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    named = set(re.findall(r"^dpeq +([a-z]+)", shell, re.M)) | set(re.findall(r"`dpeq ([a-z]+)", README))
    assert named
    assert named <= verbs


def test_every_file_it_links_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_it_shows_the_two_commands():
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in README
        assert re.search(rf"^{command}:", makefile, re.M)
